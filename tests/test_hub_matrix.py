"""Who saved × who loads × in which order × which class: every folder loads everywhere, to the same bits.

First the plugin saves; then every kind of process loads all of it and saves it again; then every kind of process loads
what each of these saved. In modes b to d, code runs from the folder:

    a  plugin imported, no flag         c  plugin imported, trust_remote_code=True
    b  no dragoman at all, the flag     d  plugin installed but not imported, the flag
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import loading_process
from dragoman import (
    DragomanConfig,
    DragomanEncoderModel,
    DragomanModel,
    DragomanRecurrentConfig,
    DragomanRecurrentModel,
    DragomanTokenizer,
)
from dragoman.hub import NOTE, SETTING
from support import build, recurrent, tiny

ALL = ["config", "seq2seq", "base", "encoder", "tokenizer"]
# Folder: who saved it in what order, and what can be loaded from it.
FOLDERS = {
    "one-model-first": ("model+tokenizer", ALL),
    "two-tokenizer-first": ("tokenizer+model", ALL),
    "two-trainer": ("trainer", ALL),
    "one-base": ("model", ["config", "base", "encoder"]),
    "two-encoder": ("model", ["config", "encoder"]),
    "classifier-encoder": ("model", ["config", "encoder", "classifier"]),
    "half-sharded": ("sharded+tokenizer", ALL[1:]),
    "recurrent-model-first": ("model+tokenizer", [name for name in ALL if name != "encoder"]),
    "recurrent-base": ("model", ["config", "base"]),
    "two-config": ("config", ["config"]),
    "one-tokenizer": ("tokenizer", ["tokenizer"]),
    "two-tokenizer": ("tokenizer", ["tokenizer"]),
}
WITHOUT_CODE = "one-model-first"
AGAIN = {"one-model-first": "tokenizer+model", "two-tokenizer-first": "trainer", "two-trainer": "model+tokenizer"}
AGAIN |= {"recurrent-model-first": "tokenizer+model"}
MODES = "abcd"

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forks of one")


def originals() -> dict[str, dict[str, Any]]:
    """What is saved: with one vocabulary and all ties, the same in bf16, and with two vocabularies and none shared."""
    english, german = ["a dog runs", "two dogs run"], ["ein Hund rennt", "zwei Hunde rennen"]
    made = {}
    for name in ("one", "half", "two"):
        shared = name != "two"
        tokenizer = DragomanTokenizer.train(english, german, vocab_size=300, share_vocabulary=shared)
        overrides: dict[str, Any] = {} if shared else {"position_encoding": "sinusoidal", "logits_bias": True}
        config = DragomanConfig.from_tokenizer(tokenizer, preset=tiny(**overrides))
        model = build(config)
        encoder = DragomanEncoderModel(config).eval()
        base = DragomanModel(config).eval()
        base.load_state_dict(model.model.state_dict())
        encoder.load_state_dict({k: v for k, v in base.state_dict().items() if k.startswith("encoder.")})
        dtype = torch.bfloat16 if name == "half" else torch.float32
        models = {"seq2seq": model.to(dtype), "base": base.to(dtype), "encoder": encoder.to(dtype)}
        made[name] = {"config": config, **models, "tokenizer": tokenizer}
    tokenizer = made["one"]["tokenizer"]
    config = DragomanConfig.from_tokenizer(tokenizer, preset=tiny(pooling="attention"), num_labels=3)
    classifier = build(config, auto=AutoModelForSequenceClassification)
    encoder = DragomanEncoderModel(config).eval()
    encoder.load_state_dict(classifier.model.state_dict())
    made["classifier"] = {"config": config, "encoder": encoder, "classifier": classifier}
    config = DragomanRecurrentConfig.from_tokenizer(tokenizer, preset=recurrent())
    model = build(config)
    base = DragomanRecurrentModel(config).eval()
    base.load_state_dict(model.model.state_dict())
    made["recurrent"] = {"config": config, "seq2seq": model, "base": base, "tokenizer": tokenizer}
    return made


def spawn(jobs: list[dict[str, Any]], folder: Path, name: str) -> None:
    """Run jobs in processes whose caches lie in ``folder``."""
    file = folder / f"{name}.json"
    file.write_text(json.dumps(jobs), "utf-8")
    environment = {**os.environ, "HF_MODULES_CACHE": str(folder / "modules"), "HF_HOME": str(folder / "home")}
    environment |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, loading_process.__file__, str(file)]
    done = subprocess.run(
        command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout or done.stderr


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `plugin/…` that this process saved, and `a/… b/… c/… d/…` that others loaded and saved again."""
    root = tmp_path_factory.mktemp("matrix")
    made = originals()
    for name, (how, facets) in FOLDERS.items():
        things = made[name.split("-")[0]]
        chosen = {facet: things[facet] for facet in facets}
        loading_process.save(chosen, root / "plugin" / name, how)
        noted = {facet: loading_process.FACETS[facet][1](thing) for facet, thing in chosen.items()}
        torch.save(noted, root / f"{name}.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SETTING, "0")
        loading_process.save(made["one"], root / "bare" / WITHOUT_CODE, "model+tokenizer")
    jobs: list[dict[str, Any]] = [{"mode": mode, "folders": folders(root, ["plugin"], again=mode)} for mode in MODES]
    for job in jobs:
        if job["mode"] in "ac":
            job["folders"].append((str(root / "bare" / WITHOUT_CODE), ALL[1:4], "", ""))
        else:
            job["refused"] = [(str(root / "bare" / WITHOUT_CODE), NOTE)]
    jobs[0]["folders"].append((str(root / "bare" / WITHOUT_CODE), ["tokenizer"], "", ""))
    spawn(jobs, root, "first")
    return root


def folders(
    root: Path, savers: Iterable[str], again: str | None = None, names: Iterable[str] = FOLDERS
) -> list[tuple[str, list[str], str, str]]:
    rows = []
    for saver in savers:
        for name in names:
            how, facets = FOLDERS[name]
            rows.append(
                (str(root / saver / name), facets, f"{root}/{again}/{name}" if again else "", AGAIN.get(name, how))
            )
    return rows


# By default, what a second saving could change: modes c and d load as a and b do, and other folders hold less of it.
@pytest.mark.parametrize(
    ("modes", "names"),
    [("ab", [*AGAIN, "two-config", "one-tokenizer"]), pytest.param(MODES, FOLDERS, marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_every_process_loads_what_every_process_saved(modes: str, names: Iterable[str], matrix: Path) -> None:
    jobs = [{"mode": mode, "folders": folders(matrix, MODES, names=names)} for mode in modes]
    spawn(jobs, matrix, f"second-{modes}")


@pytest.mark.parametrize("mode", MODES)
def test_saving_again_leaves_the_same_code(mode: str, matrix: Path) -> None:
    for name in FOLDERS:
        first, second = (
            {path.name: path.read_bytes() for path in (matrix / saver / name).glob("*.py")}
            for saver in ("plugin", mode)
        )
        assert first == second
        assert first
