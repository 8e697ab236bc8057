"""The main example: split, scoring, a short run, and a fresh process that speaks."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import pronounce
from support import ROOT

SCRIPT = ROOT / "examples" / "pronounce.py"


def test_dictionary() -> None:
    dictionary = pronounce.read_dictionary()
    assert len(dictionary) > 120_000
    assert dictionary["a"] == ["AH", "EY"]  # no stress marks, every way once
    assert dictionary["read"] == ["R EH D", "R IY D"]
    assert len({phoneme for ways in dictionary.values() for way in ways for phoneme in way.split()}) == 39
    held_out = sum(map(pronounce.is_held_out, dictionary)) / len(dictionary)
    assert 0.045 < held_out < 0.055
    # Decided by the word alone: these never change.
    assert [word for word in ("dog", "cat", "knowledge", "swallows", "dzik") if pronounce.is_held_out(word)] == [
        "swallows",
        "dzik",
    ]


def test_scoring() -> None:
    dictionary = {"a": ["AH", "EY"], "dog": ["D AO G"], "read": ["R EH D", "R IY D"]}
    words = ["a", "dog", "read"]
    assert pronounce.measure(dictionary, words, ["EY", "D AO G", "R IY D"]) == (0, 0)
    word_errors, phoneme_errors = pronounce.measure(dictionary, words, ["EY", "D AO", "R IY D Z Z"])
    assert word_errors == pytest.approx(100 * 2 / 3)
    assert phoneme_errors == pytest.approx(100 * 3 / 7)


def test_one_command_then_a_fresh_process(tmp_path: Path) -> None:
    folder = tmp_path / "pronounce"
    options = ["--minutes", "0.1", "--max_eval_words", "20", "--output_dir", str(folder)]
    trained = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, timeout=300)
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert "20 held-out words: WER" in trained.stdout
    assert {"model.safetensors", "config.json", "tokenizer.json", "attention.png"} <= {p.name for p in folder.iterdir()}
    assert (folder / "attention.png").read_bytes().startswith(b"\x89PNG")
    command = [sys.executable, SCRIPT, "--say", "Dragoman", "cat", "--output_dir", str(folder)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert [line.split()[0] for line in said.splitlines()] == ["Dragoman", "cat"]


def test_interrupting_keeps_a_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "interrupted"
    options = ["--minutes", "5", "--max_eval_words", "5", "--output_dir", str(folder)]
    with subprocess.Popen(
        [sys.executable, SCRIPT, *options],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as process:
        assert process.stderr is not None
        seen = b""
        while b"loss" not in seen:  # training has begun
            seen += process.stderr.read1(100)  # type: ignore[attr-defined]
            assert process.poll() is None, seen
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr[-2000:]
    assert b"keeping what was learned" in stdout
    assert (folder / "model.safetensors").is_file()


def test_speaking_before_training_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="train one first"):
        pronounce.main(["--say", "dog", "--output_dir", str(tmp_path)])


@pytest.mark.parametrize("name", ["minutes", "max_eval_words"])
def test_limits_are_checked_before_training(name: str) -> None:
    with pytest.raises(SystemExit, match=f"--{name} must be above 0, not 0"):
        pronounce.main([f"--{name}", "0"])
