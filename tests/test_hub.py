"""The code beside a checkpoint: which files, what is in them, what is never overwritten, and how to do without."""

import ast
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.dynamic_module_utils import get_relative_import_files, get_relative_imports
from transformers.models.auto import modeling_auto

import dragoman
from dragoman import DragomanConfig, DragomanEncoderModel, DragomanForConditionalGeneration, DragomanTokenizer
from dragoman.flattening import flatten
from dragoman.hub import NOTE, SETTING
from support import ROOT, batch, build, tiny


@pytest.fixture(scope="module")
def tokenizer() -> DragomanTokenizer:
    return DragomanTokenizer.train(["a dog runs"], ["ein Hund rennt"], vocab_size=300, share_vocabulary=False)


def copies(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in folder.glob("*.py")}


def auto_map(folder: Path, file: str = "config.json") -> dict[str, Any]:
    return json.loads((folder / file).read_text("utf-8"))["auto_map"]


def test_auto_map_names_all_that_is_registered(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    registered = {"AutoConfig": DragomanConfig}
    for name, auto in vars(modeling_auto).items():
        if name.startswith("AutoModel") and DragomanConfig in getattr(auto, "_model_mapping", ()):
            registered[name] = auto._model_mapping[DragomanConfig]
    assert {"AutoModel", "AutoModelForSeq2SeqLM", "AutoModelForTextEncoding"} < registered.keys()
    expected = {name: f"{cls.__module__.split('.')[-1]}.{cls.__name__}" for name, cls in registered.items()}
    assert auto_map(tmp_path) == expected


def test_exactly_the_files_that_are_needed(tmp_path: Path, tokenizer: DragomanTokenizer) -> None:
    """By transformers' own reading of each entry point, for every class of one model type."""
    saved = {
        "config": tiny(),
        "model": build(tiny()),
        "encoder": DragomanEncoderModel(tiny()),
        "tokenizer": tokenizer,
    }
    found = {}
    for name, thing in saved.items():
        folder = tmp_path / name
        thing.save_pretrained(folder)
        file = "tokenizer_config.json" if name == "tokenizer" else "config.json"
        needed = set()
        for reference in auto_map(folder, file).values():
            entry = folder / f"{(reference if isinstance(reference, str) else reference[0]).split('.')[0]}.py"
            needed |= {entry, *map(Path, get_relative_import_files(entry))}
        assert set(folder.glob("*.py")) == needed
        found[name] = copies(folder)
        # What is loaded first names all: after a broken download, transformers finds what is missing at this depth only.
        first = folder / ("tokenization_dragoman.py" if name == "tokenizer" else "configuration_dragoman.py")
        assert {f"{module}.py" for module in get_relative_imports(first)} == copies(folder).keys() - {first.name}
    assert found["config"] == found["model"] == found["encoder"]
    # Pushed on its own, one must not replace a file of another version that the other relies on.
    assert not found["config"].keys() & found["tokenizer"].keys()


def test_what_a_copy_says(tmp_path: Path, tokenizer: DragomanTokenizer) -> None:
    """A header, then the source with its relative imports made flat; the one addition never runs."""
    build(tiny()).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert len(copies(tmp_path)) > 20
    for name, text in copies(tmp_path).items():
        [source] = [path for wing in ("configuration", "modeling", "tokenization") for path in (ROOT / wing).glob(name)]
        original = source.read_text("utf-8")
        header, body = text.splitlines()[:4], text.splitlines()[4:]
        assert all(line.startswith("# ") for line in header)
        assert dragoman.__version__ in header[0]
        assert f"{source.parent.name}/{name}" in header[0]
        assert hashlib.sha256(original.encode()).hexdigest() in header[1]
        assert header[3] == "# SPDX-License-Identifier: Apache-2.0"
        for line, was in zip(body, original.splitlines(), strict=False):
            assert line == was or (line.startswith("from .") and was.startswith("from ..")), line
        added = body[len(original.splitlines()) :]
        assert bool(added) == (name in ("configuration_dragoman.py", "tokenization_dragoman.py"))
        assert not added or added[2].startswith("if False:")
        assert not any(node.level > 1 for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom))


def test_flattening() -> None:
    source = (
        '"""Größe."""\nfrom ..a.b import (\n    c,\n)\nfrom . b import d  # from ..x.y import z\n'
        'if True:\n    from ...a.e import f as g; text = "from ..h.i import j"\nfrom torch import nn\n'
    )
    flat, siblings = flatten(source)
    assert flat == (
        '"""Größe."""\nfrom .b import (\n    c,\n)\nfrom .b import d  # from ..x.y import z\n'
        'if True:\n    from .e import f as g; text = "from ..h.i import j"\nfrom torch import nn\n'
    )
    assert sorted(siblings) == ["b", "b", "e"]
    with pytest.raises(ValueError, match="line 1: import names from a concrete module"):
        flatten("from . import modeling\n")


def test_same_bytes_in_any_order(tmp_path: Path, tokenizer: DragomanTokenizer) -> None:
    model = build(tiny())
    for folder, parts in {"one": (model, tokenizer), "two": (tokenizer, model, tokenizer, model.config)}.items():
        for part in parts:
            part.save_pretrained(tmp_path / folder)
    assert copies(tmp_path / "one") == copies(tmp_path / "two")
    assert not [path for path in tmp_path.glob("*/*") if path.name.startswith((".", "_"))]  # nothing half written


def test_files_of_others_stay(tmp_path: Path) -> None:
    (tmp_path / "attention.py").write_text("mine = 1\n")
    with pytest.raises(FileExistsError, match=rf"{tmp_path.name}.attention\.py is not a copy that dragoman wrote"):
        build(tiny()).save_pretrained(tmp_path)
    assert (tmp_path / "attention.py").read_text() == "mine = 1\n"
    assert len(list(tmp_path.iterdir())) == 1
    (tmp_path / "attention.py").rename(tmp_path / "mine.py")
    build(tiny()).save_pretrained(tmp_path)
    assert (tmp_path / "mine.py").read_text() == "mine = 1\n"


def test_no_copy_grows_old(tmp_path: Path, tokenizer: DragomanTokenizer) -> None:
    """What another version left is replaced, on both sides, and what it alone needed goes."""
    model = build(tiny())
    for first, second in ((model, tokenizer), (tokenizer, model)):
        folder = tmp_path / type(first).__name__
        first.save_pretrained(folder)
        expected = copies(folder)
        for name, text in expected.items():
            (folder / name).write_text(text.replace(f"dragoman {dragoman.__version__}", "dragoman 0.0.9") + "old = 1\n")
        (folder / "gone.py").write_text("# Written by dragoman 0.0.9\n")
        second.save_pretrained(folder)
        assert expected.items() <= copies(folder).items()
        assert "gone.py" not in copies(folder)


def test_a_configuration_that_was_copied_gets_its_code(tmp_path: Path, tokenizer: DragomanTokenizer) -> None:
    """As Trainer does while it pushes in training: config.json from a checkpoint, then the tokenizer is saved."""
    (tmp_path / "output").mkdir()
    build(tiny()).save_pretrained(tmp_path / "checkpoint")
    shutil.copy(tmp_path / "checkpoint" / "config.json", tmp_path / "output")
    tokenizer.save_pretrained(tmp_path / "output")
    assert copies(tmp_path / "checkpoint").items() < copies(tmp_path / "output").items()


def test_a_push_beside_the_saving_sees_whole_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainer lists its folder in another thread, at any time, and pushes what it finds."""
    listed: set[str] = set()
    replace = Path.replace

    def list_and_replace(path: Path, target: Path) -> Path:
        listed.update(filter_repo_objects(os.listdir(tmp_path), ignore_patterns=["_*", "checkpoint-*"]))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", list_and_replace)
    tiny().save_pretrained(tmp_path)
    assert "attention.py" in listed
    assert listed <= copies(tmp_path).keys()


def test_derived_classes_are_not_taken_for_ours(tmp_path: Path, tokenizer: DragomanTokenizer) -> None:
    class Mine(DragomanConfig):
        model_type = "mine"

    class MyTokenizer(DragomanTokenizer):
        pass

    Mine().save_pretrained(tmp_path)
    MyTokenizer.train(["a dog"], vocab_size=300).save_pretrained(tmp_path)
    assert not copies(tmp_path)
    for file in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((tmp_path / file).read_text("utf-8"))


def test_a_stale_auto_map_is_cured(tmp_path: Path, tokenizer: DragomanTokenizer) -> None:
    build(tiny()).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    expected = auto_map(tmp_path), auto_map(tmp_path, "tokenizer_config.json")
    for path in tmp_path.glob("*.py"):
        path.unlink()
    for file, stale in (
        ("config.json", {"AutoModel": "modeling_old.OldModel"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["tokenization_old.OldTokenizer", None]}),
    ):
        fields = json.loads((tmp_path / file).read_text("utf-8"))
        (tmp_path / file).write_text(json.dumps({**fields, "auto_map": stale}), "utf-8")
    AutoModelForSeq2SeqLM.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    assert (auto_map(tmp_path / "again"), auto_map(tmp_path / "again", "tokenizer_config.json")) == expected
    assert "tokenization_dragoman.py" in copies(tmp_path / "again")


def test_opting_out(tmp_path: Path, tokenizer: DragomanTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = build(tiny()), batch(tiny())
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setenv(SETTING, "0")
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for part in again:
        part.save_pretrained(tmp_path)
    assert not copies(tmp_path)
    assert set(auto_map(tmp_path).values()) == {f"{NOTE}--no.Code"}
    assert auto_map(tmp_path, "tokenizer_config.json") == {"AutoTokenizer": [f"{NOTE}--no.Code", None]}
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert type(loaded) is DragomanForConditionalGeneration
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, rtol=0, atol=0)
    text = "a dog", "ein Hund"
    assert dict(AutoTokenizer.from_pretrained(tmp_path)(text[0], text_target=text[1])) == dict(
        tokenizer(text[0], text_target=text[1])
    )
    with pytest.raises(ValueError, match=NOTE):  # transformers prefers the folder's tokenizer to the plugin's
        AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=True)
    monkeypatch.setenv(SETTING, "off")
    with pytest.raises(ValueError, match="DRAGOMAN_EXPORT_CODE='off' in the environment must be 1"):
        model.save_pretrained(tmp_path)


def test_opting_out_of_one_part_keeps_the_code_of_the_other(
    tmp_path: Path, tokenizer: DragomanTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tiny()).save_pretrained(tmp_path)
    expected = copies(tmp_path)
    monkeypatch.setenv(SETTING, "0")
    tokenizer.save_pretrained(tmp_path)
    assert copies(tmp_path) == expected


def test_loading_a_config_by_the_plugin_needs_no_flag(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is DragomanConfig
    assert type(AutoConfig.from_pretrained(tmp_path, trust_remote_code=True)) is DragomanConfig
