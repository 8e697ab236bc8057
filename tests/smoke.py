"""Run against an installed wheel, outside the checkout: builds, trains a step, saves, reloads, generates.

python smoke.py FOLDER leaves there what smoke_without_plugin.py loads.
"""

import multiprocessing
import sys
from importlib import metadata, util
from pathlib import Path

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import dragoman
from dragoman.verification import verify


def vocabulary_size_in(folder: str) -> int:
    """In a spawned process the registration has to happen anew."""
    return len(AutoTokenizer.from_pretrained(folder))


def main(folder: str) -> None:
    package = Path(dragoman.__file__).parent
    assert "site-packages" in package.parts, package
    files = [str(file) for file in metadata.files("dragoman") or ()]
    tops = {file.split("/")[0] for file in files}
    assert all(top == "dragoman" or top.endswith(".dist-info") for top in tops), tops
    assert "dragoman/py.typed" in files
    assert not any(part in file for file in files for part in ("tests", "examples", "benchmarks"))
    for wing in ("configuration", "modeling", "tokenization"):
        assert util.find_spec(wing) is None, f"{wing} landed at the top of site-packages"

    tokenizer = dragoman.DragomanTokenizer.train(["hello world"], vocab_size=300)
    config = dragoman.DragomanConfig.from_tokenizer(tokenizer)
    model = dragoman.DragomanForConditionalGeneration(config)
    batch = tokenizer(["hello"], text_target=["world"], return_tensors="pt")
    model(**batch).loss.backward()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    again = AutoModelForSeq2SeqLM.from_pretrained(folder)
    logits = again(**batch).logits.detach()
    torch.testing.assert_close(logits, model.eval()(**batch).logits)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(vocabulary_size_in, (folder,)) == len(tokenizer)
    assert not [finding for finding in verify(folder) if finding.problem], "the wheel lacks sources, or changes them"
    noted = {"batch": {name: ids.tolist() for name, ids in batch.items()}, "logits": logits}
    batch.pop("labels")
    torch.save({**noted, "generated": again.generate(**batch, max_new_tokens=5)}, Path(folder) / "noted.pt")
    print(f"smoke test passed: dragoman {dragoman.__version__} on Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main(sys.argv[1])
