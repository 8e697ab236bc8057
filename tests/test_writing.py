"""examples/recipes/writing.py: what models that write from either end of a text find likely together, by hand."""

import json
import re
from pathlib import Path
from typing import Any

import invent
import pytest
import score
import torch
import turn_round
import typer
from torch import Tensor
from typer.testing import CliRunner
from writing import turned

import dragoman
from support import ROOT, build, tiny

SOURCES = ["abc", "hgfed", "a", "cab", "bbbbbbb"]
LIMITS: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Any]:
    folder = tmp_path_factory.mktemp("models")
    sides = {"algorithm": "char", "target_algorithm": "word", "share_vocabulary": False, "byte_fallback": False}
    words = dragoman.DragomanTokenizer.train(["abcdefgh"], ["P Q R S T U V W X Y Z"] * 2, vocab_size=40, **sides)
    found = {}
    for seed in (5, 6, 7):
        sizes = tiny(tie_word_embeddings=False, share_embeddings=False)
        model = build(dragoman.DragomanConfig.from_tokenizer(words, preset=sizes), seed)
        model.lm_head.weight.data *= 3
        model.generation_config.no_repeat_ngram_size = 1  # a text of one word alone is the same turned round
        model.save_pretrained(folder / str(seed))
        words.save_pretrained(folder / str(seed))
        found[folder / str(seed)] = model.double(), words
    return found


def say(model: Any, words: Any, source: str, text: str, penalty: float) -> float:
    """``Σ log p / tokens^penalty`` of one text, token by token."""
    total, ids = 0.0, [words.convert_tokens_to_ids("<s>")]
    labels = words(text_target=text)["input_ids"]
    for label in labels:
        log_p: Tensor = model(**words([source], return_tensors="pt"), decoder_input_ids=torch.tensor([ids])).logits
        total += log_p[0, -1].log_softmax(-1)[label].item()
        ids.append(label)
    return total / len(labels) ** penalty


@torch.no_grad()
@pytest.mark.parametrize("penalty", [1.0, 0.0])
def test_from_both_ends(penalty: float, models: dict[Path, Any], tmp_path: Path) -> None:
    first, second, backwards = models
    test = tmp_path / "test.tsv"
    test.write_text("".join(f"{source}\tP Q\n" for source in SOURCES))
    command = [str(first), "g2p", str(test), "--with", str(second), "--backwards", str(backwards), "--batch-size", "2"]
    command += ["--num-beams", "3", "--nbest", "2", "--max-new-tokens", "6", "--length-penalty", str(penalty)]
    app = typer.Typer()
    app.command()(score.main)
    assert CliRunner().invoke(app, [*command, "--output-dir", str(tmp_path / "out")]).exit_code == 0
    lines = [line.split("\t") for line in (tmp_path / "out" / "nbest.tsv").read_text().splitlines()]
    won = {backwards: 0, first: 0, second: 0}
    for number, source in enumerate(SOURCES):
        texts: dict[str, Path] = {}
        for folder, (model, words) in models.items():
            asked = {**words([source], return_tensors="pt"), **LIMITS, "length_penalty": penalty}
            for text in words.batch_decode(model.generate(**asked, num_return_sequences=3), skip_special_tokens=True):
                texts.setdefault(turned(text) if folder == backwards else text, folder)
        scores = {}
        for text in texts:
            each = [
                say(model, words, source, turned(text) if folder == backwards else text, penalty)
                for folder, (model, words) in models.items()
            ]
            scores[text] = sum(each) / 3
        expected = sorted(scores, key=lambda text: -scores[text])[:2]
        rows = [line for line in lines if line[0] == str(number)]
        assert [row[3] for row in rows] == expected
        for row in rows:
            assert float(row[2]) == pytest.approx(scores[row[3]], abs=1e-4)
        won[texts[expected[0]]] += 1
    assert won[backwards]
    assert won[first] + won[second]
    result = json.loads((tmp_path / "out" / "score.json").read_text())
    assert [result[name][0]["checkpoint"] for name in ("with", "backwards")] == [str(second), str(backwards)]
    assert len({result["weights_sha256"], *(result[name][0]["weights_sha256"] for name in ("with", "backwards"))}) == 3


def test_invented_words_are_answered_from_both_ends(models: dict[Path, Any], tmp_path: Path) -> None:
    first, second, backwards = models
    known = "abab\tP\nabba\tQ\nbaba\tP Q\naab\tR\nbab\tS\ncab\tT\n"
    (tmp_path / "train.tsv").write_text(known)
    answers = []
    for name, more in (("alone", {}), ("both", {"backwards": [backwards], "num_beams": 3})):
        made = {"models": [first, second], "max_new_tokens": 6, "batch_size": 3, **more}
        invent.main(tmp_path / "train.tsv", 5, tmp_path / name, **made)
        answers.append((tmp_path / name).read_text().removeprefix(known))
    test, out = tmp_path / "words.tsv", tmp_path / "out"
    test.write_text(answers[1])
    options = {"others": [second], "backwards": [backwards], "num_beams": 3, "max_new_tokens": 6, "output_dir": out}
    score.main(first, score.Task.G2P, test, **options)
    assert json.loads((out / "score.json").read_text())["wer"] == 0
    assert answers[0] != answers[1]


def test_targets_are_turned_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train.tsv", "valid.tsv"):
        (tmp_path / name).write_text("b a\tK  AE T\tmore\nc\tX\n")
    turn_round.main([tmp_path / "train.tsv", tmp_path / "valid.tsv"], tmp_path / "new" / "turned")
    for name in ("train.tsv", "valid.tsv"):
        assert (tmp_path / "new" / "turned" / name).read_text() == "b a\tT AE K\nc\tX\n"
    with pytest.raises(typer.Exit):
        turn_round.main([tmp_path / "train.tsv"], tmp_path)
    assert "would be written over" in capsys.readouterr().err
    assert (tmp_path / "train.tsv").read_text().startswith("b a\tK  AE T")


def test_what_does_not_go_backwards(
    models: dict[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, _ = models
    (tmp_path / "x").write_text("a\tP\n")
    for task, options, message in (
        ("g2p", {"truncate": True}, "--truncate does not go with --backwards"),
        ("classification", {}, "--with and --backwards are for tasks whose answers are written"),
    ):
        with pytest.raises(typer.Exit):
            score.main(first, score.Task(task), tmp_path / "x", backwards=[second], **options)
        assert message in capsys.readouterr().err
    with pytest.raises(typer.Exit):
        score.main(first, score.Task.G2P, tmp_path / "x", backwards=[tmp_path / "none"])
    assert "none: no such folder" in capsys.readouterr().err


def test_the_commands_of_the_page_and_the_script_get_as_far_as_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "examples" / "recipes" / "README.md").read_text("utf-8")
    commands = re.findall(r"python examples/recipes/turn_round\.py (.*)", f"{page}\n{turn_round.__doc__}")
    assert len(commands) == 2
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    app.command()(turn_round.main)
    for command in commands:
        result = CliRunner().invoke(app, command.split())
        assert (result.exit_code, result.stderr) == (1, f"score: {command.split()[0]}: no such file.\n")
