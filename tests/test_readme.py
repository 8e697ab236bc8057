"""Every command and snippet of the README is run, or is what CI runs."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DataCollatorForSeq2Seq

from support import ROOT

README = (ROOT / "README.md").read_text("utf-8")


RESULTS = (ROOT / "docs" / "results.md").read_text("utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_snippets_run(tmp_path: Path) -> None:
    assert blocks("python")
    for snippet in blocks("python"):
        assert len(snippet.splitlines()) <= 14
        subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, check=True, timeout=120)
    assert (tmp_path / "my-model" / "model.safetensors").is_file()


def test_the_loss_shown_counts_no_padding() -> None:
    shown: dict[str, Any] = {}
    exec(next(block for block in blocks("python") if "loss =" in block).partition("model.save_pretrained")[0], shown)
    tokenizer, sides = shown["tokenizer"], zip(shown["english"], shown["german"], strict=True)
    batch = DataCollatorForSeq2Seq(tokenizer)([tokenizer(source, text_target=target) for source, target in sides])
    assert (batch["labels"] == -100).any()
    torch.testing.assert_close(shown["loss"], shown["model"](**batch).loss)


def test_installation_is_what_ci_runs() -> None:
    ci = (ROOT / ".ci" / "run").read_text("utf-8")
    installation, tests = next(block for block in blocks("bash") if "pytest" in block).strip().split(" && ")
    assert installation.removeprefix("python -m pip install ") in ci
    assert f"\n{tests}\n" in ci


def test_examples_take_the_options_shown() -> None:
    commands = [
        line for block in blocks("bash", README + RESULTS) for line in re.split(r"\n|&&", block) if "examples/" in line
    ]
    scripts = [f"examples/{name}.py" for name in ("pronounce", "push_to_hub", "sentiment", "train_seq2seq")]
    assert sorted({command.split()[1] for command in commands}) == scripts
    for script in scripts:
        usage = subprocess.run(
            [sys.executable, ROOT / script, "--help"], capture_output=True, text=True, check=True, timeout=120
        ).stdout
        options = {option for command in commands if script in command for option in re.findall(r"--\w+", command)}
        assert all(re.search(rf"{option}\b", usage) for option in options), options


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
