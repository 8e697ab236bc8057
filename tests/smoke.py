"""Run against an installed wheel, outside the checkout: builds, trains a step, saves, reloads, generates."""

import multiprocessing
import sys
import tempfile
from importlib import metadata, util
from pathlib import Path

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import dragoman


def vocabulary_size_in(folder: str) -> int:
    """In a spawned process the registration has to happen anew."""
    return len(AutoTokenizer.from_pretrained(folder))


def main() -> None:
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
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        again = AutoModelForSeq2SeqLM.from_pretrained(folder)
        torch.testing.assert_close(again(**batch).logits, model.eval()(**batch).logits)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(vocabulary_size_in, (folder,)) == len(tokenizer)
    print(f"smoke test passed: dragoman {dragoman.__version__} on Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
