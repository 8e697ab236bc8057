"""A crash while a checkpoint is saved: what is in the folder then is the old one, the new one, or refused."""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.modeling_utils
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

import saving_process
from dragoman import DragomanForConditionalGeneration, DragomanTokenizer
from support import batch, build, tiny

SHARD = "40KB"
LAYERS = {"encoder_num_hidden_layers": 1, "decoder_num_hidden_layers": 1}
# Old and new: one file or many. With transformers' own writer, for comparison.
JOBS = {
    "one over one": ("one", "5GB", False),
    "many over many": ("many", SHARD, False),
    "many over one": ("one", SHARD, False),
    "one over many": ("many", "5GB", False),
    "transformers, many over many": ("many", SHARD, True),
}


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """Weights, configuration and generation settings all differ; shapes do not."""
    made = {"old": build(tiny(**LAYERS), seed=0), "new": build(tiny(**LAYERS, logits_scale=0.5), seed=1)}
    made["new"].generation_config.num_beams = 3
    return made


def classify(folder: Path, models: dict[str, Any]) -> str:
    """`old`, `new`, `mixture`, or what the error says."""
    try:
        found = AutoModelForSeq2SeqLM.from_pretrained(folder)
    except (OSError, ValueError) as error:
        return str(error)
    matches = [
        name
        for name, model in models.items()
        if found.config.logits_scale == model.config.logits_scale
        and found.generation_config.num_beams == model.generation_config.num_beams
        and all(torch.equal(found.state_dict()[key], value) for key, value in model.state_dict().items())
    ]
    return matches[0] if matches else "mixture"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forks of one")
def test_killed_at_any_point(models: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAGOMAN_EXPORT_CODE", "0")  # writing code is tested elsewhere, and would be most of the tries
    models["new"].save_pretrained(tmp_path / "new")
    models["old"].save_pretrained(tmp_path / "one")
    models["old"].save_pretrained(tmp_path / "many", max_shard_size=SHARD)
    jobs = [(name, str(tmp_path / old), shard, alone) for name, (old, shard, alone) in JOBS.items()]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, saving_process.__file__, *(str(tmp_path / n) for n in ("new", "tries", "jobs.json"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for name, (_, _, by_transformers) in JOBS.items():
        found = [classify(folder, models) for folder in sorted((tmp_path / "tries" / name).iterdir())]
        counts = Counter(verdict if verdict in ("old", "new", "mixture") else "refused" for verdict in found)
        if by_transformers:  # if these are right one day, so is transformers, and checkpoint_saving.py can go
            assert counts["mixture"] > 0, counts
            continue
        assert not counts["mixture"], counts
        kinds = [verdict if verdict in ("old", "new") else "refused" for verdict in found]
        assert kinds == sorted(kinds, key=["old", "refused", "new"].index), kinds  # never back again
        assert counts["old"] >= 10, counts
        assert counts["new"] >= 1, counts
        assert 1 <= counts["refused"] <= 12, counts
        for verdict in found:
            assert verdict in ("old", "new") or re.search(r"config\.json", verdict), verdict


@pytest.mark.parametrize("old", ["5GB", SHARD])
def test_an_exception_leaves_the_old_checkpoint(
    old: str, models: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models["old"].save_pretrained(tmp_path, max_shard_size=old)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write, written = transformers.modeling_utils.safe_save_file, []

    def fail_at_the_second(tensors: Any, name: str, **kwargs: Any) -> None:
        written.append(name)
        if len(written) == 2:
            Path(name).write_bytes(b"half")
            raise OSError("no space left")
        write(tensors, name, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(transformers.modeling_utils, "safe_save_file", fail_at_the_second)
        with pytest.raises(OSError, match="no space left"):
            models["new"].save_pretrained(tmp_path, max_shard_size=SHARD)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert classify(tmp_path, models) == "old"
    models["new"].save_pretrained(tmp_path, max_shard_size=SHARD)
    assert classify(tmp_path, models) == "new"


def test_an_exception_while_files_are_moved(
    models: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models["old"].save_pretrained(tmp_path / "old", max_shard_size=SHARD)
    replace = Path.replace
    for number in range(1, 6):  # generation settings, three shards, configuration; the index is the same
        folder, moved = tmp_path / str(number), []
        shutil.copytree(tmp_path / "old", folder)

        def fail(
            self: Path, target: Path, folder: Path = folder, moved: list[Path] = moved, number: int = number
        ) -> Any:
            if Path(target).parent == folder:
                moved.append(target)
                if len(moved) == number:
                    raise PermissionError("somebody reads it")
            return replace(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", fail)
            with pytest.raises(PermissionError, match="somebody reads it"):
                models["new"].save_pretrained(folder, max_shard_size=SHARD)
        assert "config.json" in classify(folder, models)
        with pytest.raises(OSError, match=r"has no config\.json, which is written last"):
            DragomanForConditionalGeneration.from_pretrained(folder)
        models["new"].save_pretrained(folder, max_shard_size=SHARD)
        assert classify(folder, models) == "new"


@pytest.mark.parametrize(("first", "second"), [("5GB", SHARD), (SHARD, "5GB"), (SHARD, "60KB")])
def test_no_weights_of_before_stay(first: str, second: str, models: dict[str, Any], tmp_path: Path) -> None:
    """transformers leaves an old model.safetensors beside new shards, and loads the old one."""
    (tmp_path / "mine").mkdir(parents=True)
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    models["old"].save_pretrained(tmp_path, max_shard_size=first, variant="fp16")
    models["old"].save_pretrained(tmp_path, max_shard_size=first)
    models["new"].save_pretrained(tmp_path, max_shard_size=second)
    assert classify(tmp_path, models) == "new"
    models["new"].save_pretrained(tmp_path / "fresh", max_shard_size=second)
    weights = {path.name for path in tmp_path.glob("model*") if "fp16" not in path.name}
    assert weights == {path.name for path in (tmp_path / "fresh").glob("model*")}
    variant = DragomanForConditionalGeneration.from_pretrained(tmp_path, variant="fp16")
    torch.testing.assert_close(variant.state_dict(), models["old"].state_dict(), rtol=0, atol=0)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
    models["old"].save_pretrained(tmp_path, max_shard_size=second)
    assert classify(tmp_path, models) == "old"


def test_same_configuration_leaves_no_moment_without_it(
    models: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one file of weights is all that changes, replacing it is all that is done."""
    models["old"].save_pretrained(tmp_path)
    again = build(tiny(**LAYERS), seed=2)
    removed: list[str] = []
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda self, **kwargs: (removed.append(self.name), unlink(self, **kwargs))[1])
    again.save_pretrained(tmp_path)
    assert not removed
    inputs = batch(again.config)
    found = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    torch.testing.assert_close(found(**inputs).logits, again(**inputs).logits, rtol=0, atol=0)


def test_leftovers_of_a_killed_process(models: dict[str, Any], tmp_path: Path) -> None:
    for name in (".saving-dead", ".saving-alive"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("half")
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(tmp_path / ".saving-dead", (two_days_ago, two_days_ago))
    models["old"].save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob(".*")] == [".saving-alive"]
    assert classify(tmp_path, models) == "old"


def test_what_else_lies_in_the_folder_stays(models: dict[str, Any], tmp_path: Path) -> None:
    """A tokenizer and its code, other processes' part, an adapter beside the model that it adapts."""
    tokenizer = DragomanTokenizer.train(["a dog"], vocab_size=300)
    tokenizer.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "README.md"}
    models["old"].save_pretrained(tmp_path, is_main_process=False)
    assert before.keys() == {path.name for path in tmp_path.iterdir()} - {"README.md"}
    models["old"].save_pretrained(tmp_path)
    assert before.items() <= {path.name: path.read_bytes() for path in tmp_path.iterdir()}.items()
    (tmp_path / "file").write_text("x")
    models["old"].save_pretrained(tmp_path / "file")  # transformers logs an error
    assert (tmp_path / "file").read_text() == "x"


def test_only_what_was_saved_is_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What else lies in the folder is the user's own."""
    pushed: list[list[str]] = []

    def record(self: Any, folder: Path, names: list[str], *_: Any, **__: Any) -> None:
        pushed.append(names)

    monkeypatch.setattr(DragomanForConditionalGeneration, "_push", record)
    DragomanTokenizer.train(["a dog"], vocab_size=300).save_pretrained(tmp_path)
    (tmp_path / "train.py").write_text("KEY = 'secret'")
    for model in (build(tiny(**LAYERS)), build(tiny(**LAYERS, logits_scale=0.5))):
        model.save_pretrained(tmp_path, push_to_hub=True)
    assert (tmp_path / "train.py").read_text() == "KEY = 'secret'"
    for names in pushed:
        assert {"config.json", "model.safetensors", "modeling_conditional_generation.py"} <= set(names)
        assert not {"train.py", "tokenizer.json", "tokenizer_config.json"} & set(names)
    assert len(pushed) == 2


def test_an_adapter_replaces_no_model(models: dict[str, Any], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    models["old"].save_pretrained(tmp_path)
    adapted = DragomanForConditionalGeneration.from_pretrained(tmp_path)
    adapted.add_adapter(peft.LoraConfig(target_modules=["q_proj"], r=2))
    adapted.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert (tmp_path / "config.json").is_file()
    (tmp_path / "adapter_config.json").unlink()
    assert classify(tmp_path, models) == "old"


def test_an_adapter_alone_is_loaded_by_any_class(models: dict[str, Any], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    models["old"].save_pretrained(tmp_path / "base")
    adapted = DragomanForConditionalGeneration.from_pretrained(tmp_path / "base")
    adapted.add_adapter(peft.LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "config.json").exists()
    inputs = batch(adapted.config)
    for cls in (DragomanForConditionalGeneration, AutoModelForSeq2SeqLM):
        loaded = cls.from_pretrained(tmp_path / "adapter")
        torch.testing.assert_close(loaded(**inputs).logits, adapted(**inputs).logits)


def test_signature_is_transformers_own() -> None:
    ours, theirs = (
        {name: parameter.default for name, parameter in inspect.signature(cls.save_pretrained).parameters.items()}
        for cls in (DragomanForConditionalGeneration, PreTrainedModel)
    )
    assert ours == theirs
    assert list(ours) == list(theirs)
