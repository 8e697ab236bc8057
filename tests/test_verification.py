"""`python -m dragoman verify`: nothing but what this version writes passes."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import bart_models
import dragoman
from dragoman import DragomanTokenizer
from dragoman.__main__ import app
from dragoman.conversion.folders import convert_folder
from dragoman.verification import verify
from support import build, tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    build(tiny()).save_pretrained(folder)
    DragomanTokenizer.train(["a dog"], ["ein Hund"], vocab_size=300, share_vocabulary=False).save_pretrained(folder)
    return folder


def problems(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for finding in verify(folder):
        if finding.problem is not None:
            found[finding.path] = found.get(finding.path, "") + finding.problem
    return found


def edit(file: str, **fields: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text("utf-8"))
        (folder / file).write_text(json.dumps({**content, **fields}), "utf-8")

    return change


def test_what_was_saved_passes(folder: Path) -> None:
    assert problems(folder) == {}
    assert {finding.path for finding in verify(folder)} == {path.name for path in folder.iterdir()}
    sharded = folder.parent / "sharded"
    build(tiny()).save_pretrained(sharded, max_shard_size="50KB")
    assert problems(sharded) == {}
    alone = folder.parent / "tokenizer"
    DragomanTokenizer.train(["a dog"], vocab_size=300).save_pretrained(alone)
    assert problems(alone) == {}


def test_a_folder_without_code_passes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAGOMAN_EXPORT_CODE", "0")
    build(tiny()).save_pretrained(folder.parent / "plain")
    assert problems(folder.parent / "plain") == {}
    (folder.parent / "plain" / "norms.py").write_bytes((folder / "norms.py").read_bytes())
    assert problems(folder.parent / "plain").keys() == {"norms.py"}


def test_traces_of_a_download_pass(folder: Path) -> None:
    traces = folder / ".cache" / "huggingface"
    (traces / "download").mkdir(parents=True)
    for name in (".gitignore", "CACHEDIR.TAG", "download/config.json.metadata", "download/config.json.lock"):
        (traces / name).write_text("")
    assert problems(folder) == {}
    (traces / "download" / "x.py").write_text("")
    assert problems(folder).keys() == {".cache/huggingface/download/x.py"}


def test_any_changed_byte_is_found(folder: Path) -> None:
    """One byte of each file of code, at its beginning, its end and in between, changed, added or taken away."""
    files = sorted(folder.glob("*.py"))
    assert len(files) > 20
    for number, file in enumerate(files):
        content = file.read_bytes()
        at = (0, len(content) - 1, len(content) * number // len(files))[number % 3]
        changed = bytes([content[at] ^ 1])
        for tampered in (content[:at] + changed + content[at + 1 :], content + b"\n", content[:-1]):
            file.write_bytes(tampered)
            assert problems(folder).keys() == {file.name}
        file.write_bytes(content)
    assert problems(folder) == {}


def link(folder: Path) -> None:
    (folder / "norms.py").unlink()
    (folder.parent / "elsewhere.py").write_text("")
    (folder / "norms.py").symlink_to(folder.parent / "elsewhere.py")


def sub_folder(folder: Path) -> None:
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text("import os")


def windows(folder: Path) -> None:
    (folder / "norms.py").write_bytes((folder / "norms.py").read_bytes().replace(b"\n", b"\r\n"))


def half_saved(folder: Path) -> None:
    (folder / ".saving-x").mkdir()
    (folder / ".saving-x" / "config.json").write_text("{}")


def older(folder: Path) -> None:
    text = (folder / "loss.py").read_text("utf-8")
    (folder / "loss.py").write_text(text.replace(f"dragoman {dragoman.__version__}", "dragoman 0.0.9"), "utf-8")


TAMPERING: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "unknown code": (lambda f: (f / "evil.py").write_text("import os"), "evil.py", "not code that dragoman"),
    "missing code": (lambda f: (f / "norms.py").unlink(), "norms.py", "missing, and auto_map needs it"),
    "Windows line ends": (windows, "norms.py", "first in line 1$"),
    "older code": (older, "loss.py", r"says dragoman 0\.0\.9.*pip install dragoman==0\.0\.9"),
    "pickle": (lambda f: torch.save({}, f / "pytorch_model.bin"), "pytorch_model.bin", "may run code"),
    "training arguments": (lambda f: torch.save({}, f / "training_args.bin"), "training_args.bin", "may run code"),
    "pickle in disguise": (lambda f: torch.save({}, f / "model.safetensors"), "model.safetensors", "cut off, or"),
    "link": (link, "norms.py", "a symbolic link"),
    "sub-folder": (sub_folder, "custom_generate/generate.py", "no files into folders"),
    "died while saving": (half_saved, ".saving-x/config.json", "died while it saved: delete it"),
    "unknown file": (lambda f: (f / "adapter_config.json").write_text("{}"), "adapter_config.json", "not a file of"),
    "pipe": (lambda f: os.mkfifo(f / "generation_config.json.pipe"), "generation_config.json.pipe", "not a regular"),
    "other auto_map": (edit("config.json", auto_map={"AutoModel": "e/r--x.Y"}), "config.json", "other code"),
    "more in auto_map": (
        edit("tokenizer_config.json", auto_map={"AutoProcessor": "x.Y"}),
        "tokenizer_config.json",
        "o",
    ),
    "other pipelines": (edit("config.json", custom_pipelines={"t": {"impl": "x.Y"}}), "config.json", "names code"),
    "other owner": (edit("config.json", model_type="bert"), "config.json", "model_type is not dragoman"),
    "other tokenizer": (
        edit("tokenizer_config.json", tokenizer_class="X"),
        "tokenizer_config.json",
        "tokenizer_class is",
    ),
    "unknown field": (
        edit("config.json", transformers_weights="x.bin"),
        "config.json",
        "no field 'transformers_weights'",
    ),
    "kernel": (edit("config.json", attn_implementation="evil/kernel"), "config.json", "names code on the Hub"),
    "broken JSON": (lambda f: (f / "generation_config.json").write_text("{"), "generation_config.json", "is not JSON"),
    "nested too deep": (lambda f: (f / "config.json").write_text("[" * 200_000), "config.json", "is not JSON"),
    "nothing of ours": (
        lambda f: [p.unlink() for p in f.iterdir()],
        ".",
        "no config.json and no tokenizer_config.json",
    ),
}


@pytest.mark.parametrize("case", TAMPERING)
def test_tampering_is_found(case: str, folder: Path) -> None:
    tamper, path, message = TAMPERING[case]
    tamper(folder)
    assert re.search(message, problems(folder)[path])


def test_the_tokenizer_of_a_converted_model(folder: Path, tmp_path: Path) -> None:
    theirs, ours = tmp_path / "bart", tmp_path / "ours"
    bart_models.tiny("Bart").save_pretrained(theirs)
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", *"adgo"]
    (theirs / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (theirs / "merges.txt").write_text("#version: 0.2\n")
    convert_folder(theirs, ours)
    assert problems(ours) == {}
    assert {"vocab.json", "merges.txt", "tokenizer_config.json"} <= {finding.path for finding in verify(ours)}
    (ours / "vocab.json").write_text("[")
    assert "is not JSON" in problems(ours).pop("vocab.json")
    (ours / "vocab.json").write_text("{}")
    (ours / "vocab.bin").write_bytes(b"x")
    assert problems(ours).keys() == {"vocab.bin"}
    (ours / "vocab.bin").unlink()
    for tamper in (
        edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["x.Y", None]}),
        edit("tokenizer_config.json", tokenizer_class="OwnTokenizer"),
        lambda f: (f / "config.json").unlink(),
    ):
        copy = tmp_path / f"copy-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(ours, copy)
        tamper(copy)
        assert "tokenizer_class is not DragomanTokenizer" in problems(copy)["tokenizer_config.json"]
        assert "not a file of dragoman's" in problems(copy)["merges.txt"]
    (folder / "vocab.json").write_text("{}")  # ours has no use for it
    assert problems(folder).keys() == {"vocab.json"}


@pytest.mark.parametrize("name", ["MarianTokenizer", "M2M100Tokenizer"])
def test_a_tokenizer_of_sentencepiece_needs_no_sentencepiece(name: str, tmp_path: Path) -> None:
    """transformers lists these two only where it is installed."""
    bart_models.tiny("Bart").save_pretrained(tmp_path / "theirs")
    convert_folder(tmp_path / "theirs", tmp_path / "ours")
    (tmp_path / "ours" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    (tmp_path / "ours" / "source.spm").write_bytes(b"x")
    assert problems(tmp_path / "ours") == {}


def test_command(folder: Path) -> None:
    command = [sys.executable, "-m", "dragoman", "verify", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder.parent, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "as it should be" in done.stdout
    runner = CliRunner()
    (folder / "norms.py").write_text("x")
    refused = runner.invoke(app, ["verify", str(folder)])
    assert refused.exit_code == 1
    assert "Refused by dragoman" in refused.output
    assert runner.invoke(app, ["verify", str(folder / "nowhere")]).exit_code == 2
