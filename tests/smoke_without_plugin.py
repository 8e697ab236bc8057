"""Run by .ci/run in an environment without dragoman: loads what smoke.py saved, and compares.

python smoke_without_plugin.py FOLDER
"""

import importlib.util
import sys
from pathlib import Path

import torch
from transformers import AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer


def main(folder: Path) -> None:
    assert importlib.util.find_spec("dragoman") is None, "this is about an environment without it"
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
    noted = torch.load(folder / "noted.pt")
    batch = tokenizer(["hello"], text_target=["world"], return_tensors="pt")
    assert {name: ids.tolist() for name, ids in batch.items()} == noted["batch"]
    torch.testing.assert_close(model(**batch).logits, noted["logits"], rtol=0, atol=0)
    batch.pop("labels")
    torch.testing.assert_close(model.generate(**batch, max_new_tokens=5), noted["generated"], rtol=0, atol=0)
    assert type(AutoModel.from_pretrained(folder, trust_remote_code=True)).__name__ == "DragomanModel"
    print("loaded without dragoman")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
