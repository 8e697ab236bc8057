"""examples/recipes/score.py: rates by hand, sacreBLEU's own number, and a checkpoint scored from the command line."""

import gzip
import hashlib
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import typer
from sacrebleu import corpus_bleu
from transformers import BartConfig, BartForSequenceClassification, LogitsProcessorList, pipeline
from typer.testing import CliRunner

import dragoman
import dragoman.__main__
from ladder import SIDES
from support import ROOT, build, tiny
from test_pipelines import letters


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("score", ROOT / "examples" / "recipes" / "score.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_word_is_right_by_any_pronunciation_and_errors_count_against_the_nearest(script: ModuleType) -> None:
    references = [["AH B", "EY B IY"], ["K AE T"], ["D AO G", "D AA"]]
    answers = ["EY B IY", "K AH T S", "D AA G Z"]
    # right; one changed and one added of 3; one changed and one added of 3, two added to "D AA": the shorter is taken
    found = script.score("g2p", answers, references, False, False)
    assert found == {"wer": pytest.approx(100 * 2 / 3), "per": pytest.approx(100 * (0 + 2 + 2) / (3 + 3 + 2))}
    found = script.score("transliteration", ["abbe", "arlan", "x"], [["abbe"], ["arlen"], ["yyy"]], False, False)
    assert found == {"wer": pytest.approx(100 * 2 / 3), "cer": pytest.approx(100 * (0 + 1 + 3) / (4 + 5 + 3))}
    assert script.score("classification", ["1", "0", "1"], [["1"], ["1"], ["1"]], False, False) == {
        "accuracy": pytest.approx(200 / 3)
    }


def test_bleu_is_that_of_sacrebleu(script: ModuleType) -> None:
    cut = (["ein M@@ ann l@@ iest das Buch .", "zwei Hun@@ de rennen im Park"], ["ein Mann liest ein B@@ uch .", "Zwei Hunde ren@@ nen im Park"])  # fmt: skip
    whole = (["ein Mann liest das Buch .", "zwei Hunde rennen im Park"], ["ein Mann liest ein Buch .", "Zwei Hunde rennen im Park"])  # fmt: skip
    for lowercase in (False, True):
        found = script.score("bleu", cut[0], [[text] for text in cut[1]], True, lowercase)
        expected = corpus_bleu(whole[0], [whole[1]], tokenize="none", lowercase=lowercase, force=True).score
        assert 0 < found["bleu"] == pytest.approx(expected)
        assert f"case:{'lc' if lowercase else 'mixed'}" in found["signature"]
        assert "tok:none" in found["signature"]
    plain = script.score("bleu", whole[0], [[text] for text in whole[1]], False, False)
    assert plain["bleu"] == pytest.approx(corpus_bleu(whole[0], [whole[1]]).score)
    assert "tok:13a" in plain["signature"]


def test_files(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "g2p.tsv").write_text("A\tAH\nB\tB IY\nA\tEY\n")
    test = script.read_test("g2p", tmp_path / "g2p.tsv", None)
    assert (test.sources, test.references) == (["A", "B"], [["AH", "EY"], ["B IY"]])
    with gzip.open(tmp_path / "ar.txt.gz", "wb") as file:
        file.write("\ufeffآب\tabbe\r\nآنز\tanz".encode())
    test = script.read_test("transliteration", tmp_path / "ar.txt.gz", None)
    assert (test.sources, test.references) == (["آب", "آنز"], [["abbe"], ["anz"]])
    (tmp_path / "sst").write_text("0 one long string .\n1 good\n")
    (tmp_path / "senti").write_text("label\ttext_a\n1\t好 酒店\n")
    assert script.read_test("classification", tmp_path / "sst", None).sources == ["one long string .", "good"]
    test = script.read_test("classification", tmp_path / "senti", None)
    assert (test.sources, test.references) == (["好 酒店"], [["1"]])
    (tmp_path / "named").write_text("very good\tI liked\tit\nvery bad\tI left\n")
    test = script.read_test("classification", tmp_path / "named", None)
    assert (test.sources, test.references) == (["I liked\tit", "I left"], [["very good"], ["very bad"]])
    (tmp_path / "three").write_text("a\tb\tCC-BY\n")
    assert script.read_test("bleu", tmp_path / "three", None).references == [["b"]]
    (tmp_path / "senti").write_text("labels\ttext\n1\t好 酒店\n")
    assert script.read_test("classification", tmp_path / "senti", None).sources == ["好 酒店"]


BAD: list[tuple[str, str, str | None, str]] = [
    ("g2p", "A\n", None, "test:1: expected two columns, found 'A'"),
    ("transliteration", "a\tb\nc\t \n", None, "test:2: expected two columns"),
    ("bleu", "a\n", "b\nc\n", "they are not parallel"),
    ("bleu", "", "b\n", "test: the file is empty"),
    ("classification", "label\ttext\n", None, "test holds no labelled text"),
    ("g2p", "A\tAH\n", "b\n", "--references is for bleu"),
    ("bleu", "a\n \n", "b\nc\n", "test:2: the line is empty"),
    ("classification", "0 a\n 1 b\n", None, "test, line 2: expected a label, a space and a text"),
    ("g2p", "A\tAH\udcff\n", None, "test: not UTF-8"),
]


@pytest.mark.parametrize(("task", "content", "references", "message"), BAD, ids=lambda value: str(value)[:12])
def test_bad_files(
    script: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    task: str,
    content: str,
    references: str | None,
    message: str,
) -> None:
    (tmp_path / "test").write_text(content, errors="surrogateescape")
    (tmp_path / "references").write_text(references or "")
    with pytest.raises(typer.Exit):
        script.read_test(script.Task(task), tmp_path / "test", references and tmp_path / "references")
    assert message in capsys.readouterr().err


def run(script: ModuleType, *arguments: Any) -> str:
    app = typer.Typer()
    app.command()(script.main)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def test_a_checkpoint_is_scored_and_its_answers_written_down(
    script: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = dragoman.DragomanTokenizer.train(["abcdefgh"], algorithm="char", byte_fallback=False, vocab_size=40)
    config = dragoman.DragomanConfig.from_tokenizer(
        words, preset=tiny(vocab_size=len(words), tie_word_embeddings=False)
    )
    model = build(config)
    model.generation_config.max_length = 30  # as train_seq2seq.py has it
    model.save_pretrained(tmp_path / "model")
    words.save_pretrained(tmp_path / "model")
    sources = ["abc", "hgfed", "a", "cab"]
    pipe = pipeline("dragoman-text2text", model=str(tmp_path / "model"), num_beams=3, max_new_tokens=6, device="cpu")
    best = [record["generated_text"] or "x" for record in pipe(sources)]
    best[1] += "zz"  # not what it says
    test = tmp_path / "test.tsv"
    test.write_text("".join(f"{source}\t{target}\n" for source, target in zip(sources, best, strict=True)))
    options = ["--num-beams", 3, "--nbest", 2, "--max-new-tokens", 6, "--batch-size", 2]
    caplog.clear()
    printed = run(script, tmp_path / "model", "transliteration", test, *options, "--output-dir", tmp_path / "out")
    assert "seem to have been set" not in caplog.text  # at every batch
    result = json.loads((tmp_path / "out" / "score.json").read_text())
    answers = [record["generated_text"] for record in pipe(sources)]
    wrong = sum(answer != target for answer, target in zip(answers, best, strict=True))
    assert 0 < wrong < 4
    assert result["wer"] == 25 * wrong
    assert f"test.tsv, 4 rows: wer {25 * wrong:.2f}, cer" in printed
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    assert result["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    lines = [line.split("\t") for line in (tmp_path / "out" / "nbest.tsv").read_text().splitlines()]
    assert [(line[0], line[1]) for line in lines] == [(str(row), rank) for row in range(4) for rank in "12"]
    assert [line[3] for line in lines[::2]] == [" ".join(answer.split()) for answer in answers]
    assert [line[4] for line in lines[::2]] == sources
    assert all(float(a[2]) >= float(b[2]) for a, b in zip(lines[::2], lines[1::2], strict=True))


def test_checkpoints_are_scored_together(script: ModuleType, tmp_path: Path) -> None:
    models = []
    for seed in (2, 3):
        words = dragoman.DragomanTokenizer.train(["abcdefgh"], algorithm="char", byte_fallback=False, vocab_size=40)
        sizes = tiny(vocab_size=len(words), tie_word_embeddings=False)
        models.append(build(dragoman.DragomanConfig.from_tokenizer(words, preset=sizes), seed))
        models[-1].save_pretrained(tmp_path / str(seed))
        words.save_pretrained(tmp_path / str(seed))
    test = tmp_path / "test.tsv"
    test.write_text("abc\tx\nhgfed\tx\na\tx\ncab\tx\n")
    options = ["--num-beams", 3, "--nbest", 1, "--max-new-tokens", 6, "--batch-size", 3]
    run(script, tmp_path / "2", "transliteration", test, *options)
    run(script, tmp_path / "2", "transliteration", test, "--with", tmp_path / "3", *options)
    alone, together = (tmp_path / "2" / f"transliteration-test.tsv{end}" for end in ("", "-ensemble"))
    hashes = [hashlib.sha256((tmp_path / name / "model.safetensors").read_bytes()).hexdigest() for name in "23"]
    result = json.loads((together / "score.json").read_text())
    assert result["weights_sha256"] == hashes[0]
    assert result["with"] == [{"checkpoint": str(tmp_path / "3"), "weights_sha256": hashes[1]}]
    assert "with" not in json.loads((alone / "score.json").read_text())
    inputs = words(["abc", "hgfed", "a", "cab"], padding=True, return_tensors="pt")
    processor = LogitsProcessorList([dragoman.EnsembleLogitsProcessor(models, **inputs)])
    ids = models[0].generate(**inputs, logits_processor=processor, num_beams=3, max_new_tokens=6)
    written = [line.split("\t")[3] for line in (together / "nbest.tsv").read_text().splitlines()]
    assert written == [" ".join(text.split()) for text in words.batch_decode(ids, skip_special_tokens=True)]
    assert written != [line.split("\t")[3] for line in (alone / "nbest.tsv").read_text().splitlines()]


def test_what_is_not_scored_together(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("abcdefgh", "abcdefgx"):
        words = dragoman.DragomanTokenizer.train([name], algorithm="char", byte_fallback=False, vocab_size=40)
        config = dragoman.DragomanConfig.from_tokenizer(words, preset=tiny(vocab_size=len(words)))
        build(config).save_pretrained(tmp_path / name)
        words.save_pretrained(tmp_path / name)
    test, others = tmp_path / "test", [tmp_path / "abcdefgx"]
    test.write_text("abc\tx\n")
    for task, message in (
        ("g2p", "have different vocabularies"),
        ("classification", "--with and --backwards are for tasks whose"),
    ):
        with pytest.raises(typer.Exit):
            script.main(tmp_path / "abcdefgh", script.Task(task), test, others=others)
        assert message in capsys.readouterr().err


def test_what_is_written_counts_too(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With two vocabularies, get_vocab() is the source's."""
    for name in ("xyz", "xyw"):
        words = dragoman.DragomanTokenizer.train(
            ["abc"], [name], algorithm="char", byte_fallback=False, vocab_size=40, share_vocabulary=False
        )
        sizes = tiny(vocab_size=words.source_vocab_size, tie_word_embeddings=False)
        build(dragoman.DragomanConfig.from_tokenizer(words, preset=sizes)).save_pretrained(tmp_path / name)
        words.save_pretrained(tmp_path / name)
    (tmp_path / "test").write_text("abc\tx\n")
    with pytest.raises(typer.Exit):
        script.main(tmp_path / "xyz", script.Task("g2p"), tmp_path / "test", others=[tmp_path / "xyw"])
    assert "have different vocabularies" in capsys.readouterr().err
    script.main(tmp_path / "xyz", script.Task("g2p"), tmp_path / "test", others=[tmp_path / "xyz"], max_new_tokens=4)


def test_a_classifier_is_scored(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # three labels
    model = BartForSequenceClassification(BartConfig(**sizes, **SIDES)).eval()
    model.save_pretrained(tmp_path / "model")
    letters().save_pretrained(tmp_path / "model")
    texts = ["abc", "d", "ponm", "hgfedcba"]
    with torch.no_grad():
        found = [
            model(**letters()(text, return_tensors="pt", return_token_type_ids=False)).logits.argmax().item()
            for text in texts
        ]
    (tmp_path / "test").write_text(
        "".join(f"{label} {text}\n" for label, text in zip([*found[:3], (found[3] + 1) % 3], texts, strict=True))
    )
    assert "4 rows: accuracy 75.00" in run(script, tmp_path / "model", "classification", tmp_path / "test")
    assert (tmp_path / "model" / "classification-test" / "nbest.tsv").is_file()
    (tmp_path / "others").write_text("1 abc\nneg d\n5 ponm\n")
    with pytest.raises(typer.Exit):
        script.main(tmp_path / "model", script.Task.CLASSIFICATION, tmp_path / "others")
    assert "others: the model has no label 5, neg; it has 0, 1, 2." in capsys.readouterr().err
    assert not (tmp_path / "model" / "classification-others").exists()


def test_a_source_that_is_too_long(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = letters()
    sizes = {"vocab_size": len(words), "position_encoding": "learned", "max_position_embeddings": 12}
    model = build(tiny(**sizes, pad_token_id=0, eos_token_id=2))
    model.save_pretrained(tmp_path / "model")
    words.save_pretrained(tmp_path / "model")
    (tmp_path / "test").write_text("abc\td\nabcdefghijklmno\td\n")
    with pytest.raises(typer.Exit):
        script.main(tmp_path / "model", script.Task("transliteration"), tmp_path / "test", max_new_tokens=4)
    error = capsys.readouterr().err
    assert "score: Input 1: the text has 16 tokens and the model reads at most 12" in error
    assert "or pass --truncate" in error
    script.main(tmp_path / "model", script.Task("transliteration"), tmp_path / "test", max_new_tokens=4, truncate=True)
    assert "2 rows" in capsys.readouterr().out
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(typer.Exit):
        script.main(tmp_path / "model", script.Task("transliteration"), tmp_path / "test")
    assert "there are no weights (*.safetensors) in it" in capsys.readouterr().err


def test_what_was_not_trained_to_classify(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test").write_text("0 abc\n")
    with pytest.raises(typer.Exit):
        script.main(tmp_path, script.Task("classification"), tmp_path / "test")
    assert "there is no model (config.json) in it" in capsys.readouterr().err
    build(tiny()).save_pretrained(tmp_path)
    with pytest.raises(typer.Exit):
        script.main(tmp_path, script.Task("classification"), tmp_path / "test")
    assert "holds DragomanForConditionalGeneration, which was not trained to classify" in capsys.readouterr().err


def test_the_commands_of_the_recipes_parse(script: ModuleType) -> None:
    """Each command of the README and of the script itself gets as far as looking for the checkpoint."""
    readme = (ROOT / "examples" / "recipes" / "README.md").read_text("utf-8")
    commands = re.findall(r"python examples/recipes/score\.py (.*)", f"{readme}\n{script.__doc__}")
    assert len(commands) == 12
    app = typer.Typer()
    app.command()(script.main)
    for command in commands:
        result = CliRunner().invoke(app, command.split())
        assert (result.exit_code, result.stderr) == (1, f"score: {command.split()[0]}: no such folder.\n")
    (average,) = re.findall(r"python -m dragoman (average .*)", readme)
    result = CliRunner().invoke(dragoman.__main__.app, average.split())
    assert (result.exit_code, result.stderr) == (1, "runs/multi30k/seed-0: no such folder.\n")
