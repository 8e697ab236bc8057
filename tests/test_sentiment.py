"""examples/sentiment.py: where its texts come from, what it measures and explains, and the whole as one command."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import sentiment
import sentiment_data
from dragoman import DragomanConfig, DragomanTokenizer
from support import ROOT, build, tiny

SCRIPT = ROOT / "examples" / "sentiment.py"
ENGLISH = ["a wonderfully lovely film", "an awfully poor film , and long", "it isn't fine"]


def test_reviews_are_kept_once_and_split_by_what_they_say() -> None:
    rows, held_out = sentiment_data.read_reviews()
    assert 17_000 < len(rows) + len(held_out) < 18_000  # of 35,124 lines
    assert 0.09 < len(held_out) / (len(rows) + len(held_out)) < 0.11
    said = [sentiment_data.bare(text) for text, _ in rows + held_out]
    assert len(set(said)) == len(said)
    assert {label for _, label in held_out} == {"neg", "pos"}
    for text, _ in held_out[:50]:  # decided by letters and digits alone
        assert sentiment_data.is_held_out(f"  {text.upper()} ...")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("label\ttext_a\n1\t很 好\n0\t不 好\n", [("很 好", "1"), ("不 好", "0")]),
        ("\ufeff1\tgood , label\t!\n\n", [("good , label\t!", "1")]),
        ("0 one long string\r\n1 fine\n", [("one long string", "0"), ("fine", "1")]),
    ],
)
def test_files(content: str, expected: sentiment_data.Rows, tmp_path: Path) -> None:
    file = tmp_path / "texts"
    file.write_bytes(content.encode())
    assert sentiment_data.read_file(file) == expected


@pytest.mark.parametrize(
    ("content", "message"), [("", "no labelled text"), ("1\tgood\nbad\n", "line 2: .* a tab"), ("1\n", "a space")]
)
def test_broken_files(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "texts"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        sentiment_data.read_file(file)


@pytest.fixture(scope="module")
def tokenizer() -> DragomanTokenizer:
    return DragomanTokenizer.train(ENGLISH * 3, vocab_size=330)


def test_texts_vary_in_training_only(tokenizer: DragomanTokenizer) -> None:
    rows = [(text * 3, "b") for text in ENGLISH]
    plain = sentiment_data.LabelledTexts(rows, ["a", "b"], tokenizer, 100)
    assert plain[0] == plain[0] == {"input_ids": tokenizer(rows[0][0])["input_ids"], "labels": 1}
    for rates in ({"bpe_dropout": 0.3}, {"word_dropout": 0.3}):
        varied = sentiment_data.LabelledTexts(rows, ["a", "b"], tokenizer, 100, **rates)
        readings = [varied[0]["input_ids"] for _ in range(8)]
        assert len({tuple(ids) for ids in readings}) > 4
        assert all(ids[-1] == tokenizer.eos_token_id for ids in readings)
        if "bpe_dropout" in rates:
            assert {tokenizer.decode(ids[:-1]) for ids in readings} == {rows[0][0]}
        else:
            assert all(len(ids) < len(plain[0]["input_ids"]) + 1 for ids in readings)
    assert plain[0]["input_ids"] == tokenizer(rows[0][0])["input_ids"]
    assert len(sentiment_data.LabelledTexts(rows, ["a", "b"], tokenizer, 5)[0]["input_ids"]) == 5


def test_measures() -> None:
    """Three classes: F1 2/3, 1/2 and 0."""
    found = np.array([0, 0, 1, 1])
    labels = np.array([0, 1, 1, 2])
    scores = sentiment.measure(found, labels, 3)
    assert scores["accuracy"] == 50
    assert scores["macro_f1"] == pytest.approx(100 * (2 / 3 + 1 / 2 + 0) / 3)
    assert sentiment.measure(found, found, 5) == {"accuracy": 100, "macro_f1": 100}  # the other classes do not occur


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_the_shares_add_up_to_the_logit(pooling: str, tokenizer: DragomanTokenizer) -> None:
    config = DragomanConfig.from_tokenizer(tokenizer, preset=tiny(pooling=pooling), num_labels=3)
    model = build(config, auto=AutoModelForSequenceClassification)
    for text in ENGLISH:
        evidence = sentiment.explain(text, 2, model, tokenizer, 100)
        assert [word.strip() for word, _ in evidence if word.strip()] == text.replace("'", " ' ").split()
        outputs = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        direction = model.classifier.weight[2] - model.classifier.weight.mean(0)
        end = outputs.pooling_weights[0, -1] * (outputs.hidden_states[-1][0, -1] @ direction)  # stands for no word
        expected = (outputs.logits[0, 2] - outputs.logits[0].mean()) - (
            model.classifier.bias[2] - model.classifier.bias.mean()
        )
        assert sum(share for _, share in evidence) == pytest.approx(float((expected - end).detach()), abs=1e-4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("naïve café", ["naïve", " ", "café"]),
        ("很好😀!", ["很好", "😀", "!"]),
        ("日本 film", ["日", "本", " film"]),
    ],
)
def test_a_character_of_several_bytes_is_shown_once(text: str, expected: list[str]) -> None:
    tokenizer = DragomanTokenizer.train(["很好 the film is good"] * 9, vocab_size=400)
    config = DragomanConfig.from_tokenizer(tokenizer, preset=tiny(), num_labels=2)
    model = build(config, auto=AutoModelForSequenceClassification)
    assert [word for word, _ in sentiment.explain(text, 1, model, tokenizer, 100)] == expected


def test_words() -> None:
    assert sentiment.continues_a_word("lovely", 3, 3)
    assert not sentiment.continues_a_word("a film", 1, 2)
    assert not sentiment.continues_a_word("film.", 4, 4)
    assert not sentiment.continues_a_word("很好", 1, 1)
    explained = [[("Good ", 2.0), (",", 9.0), ("bad", -1.0)], [(" good", 1.0), ("rare", 5.0)]] * 4
    words = sentiment.decisive_words([*explained, [("bad", -1.0)]])
    assert words == [("bad", -1.0), ("good", 1.5)]
    assert sentiment.highlight([("good", 2.0), (" [b]<script>", -0.1)]).plain == "good [b]<script>"


def test_one_command_then_a_pipeline(tmp_path: Path) -> None:
    """One word decides: it is found, and named first."""
    words = "the film was with story actor scene long a in and".split()
    for name, count in (("train", 200), ("valid", 60)):
        lines = []
        for i in range(count):
            text = [words[(i * 7 + j * (3 + i % 4)) % 11] for j in range(3 + i % 5)]
            text.insert(i % len(text), "lovely" if i % 2 else "awful")
            lines.append(f"{['bad', 'good'][i % 2]}\t{' '.join(text)}")
        (tmp_path / name).write_text("\n".join(lines), "utf-8")
    options = [f"--train_file={tmp_path}/train", f"--validation_file={tmp_path}/valid", f"--output_dir={tmp_path}/run"]
    options += "--epochs 6 --vocab_size 300 --hidden_size 32 --batch_size 16 --learning_rate 1e-2".split()
    options += "--dropout 0 --seeds 0 1 --pooling attention --word_dropout 0 --bpe_dropout 0".split()
    done = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "seed 1: accuracy 100.00 %, macro F1 100.00 %" in done.stdout
    assert "accuracy: mean 100.00 %, 100.00 to 100.00 %" in done.stdout
    written = json.loads((tmp_path / "run" / "results.json").read_text("utf-8"))
    assert written["texts"] == [200, 60]
    assert written["unlike"]["pooling"] == "attention"
    assert written["unlike"].keys() >= {"epochs", "dropout"}
    assert "layers" not in written["unlike"]
    assert [(one["seed"], one["accuracy"]) for one in written["seeds"]] == [(0, 100), (1, 100)]
    assert "Most decisive words for 'good': lovely" in done.stdout
    assert "against it: awful" in done.stdout
    assert (tmp_path / "run" / "decisive_words.png").read_bytes().startswith(b"\x89PNG")
    assert AutoTokenizer.from_pretrained(tmp_path / "run").model_max_length == 160
    found = pipeline("text-classification", model=str(tmp_path / "run"))(["an awful story", "a lovely story"])
    assert [answer["label"] for answer in found] == ["bad", "good"]


@pytest.mark.parametrize("pooling", ["first", "last_eos"])
def test_where_one_token_stands_for_all_no_word_is_named(pooling: str, capsys: pytest.CaptureFixture[str]) -> None:
    sentiment.show([("a lovely film", "1")], ["0", "1"], None, sentiment.Arguments(pooling=pooling))  # type: ignore[arg-type]
    assert "python -m dragoman explain runs/sentiment TEXT" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("learnt", "measured", "message"),
    [
        ("0\ta\n1\tb\n", "0\ta\n2\tb\n", r"has labels that .*a lacks: \['2'\]$"),
        ("a\t0\nb\t1\n", "c\t0\nd\t1\ne\t0\nf\t1\n", r"lacks: \['c', 'd', 'e'\] and 1 more; is the label the first"),
        ("mood\ttext\n0\ta\n1\tb\n", "mood\ttext\n0\tc\n", "'mood' is a label of the first line of both files alone"),
    ],
)
def test_labels_that_make_no_task(learnt: str, measured: str, message: str, tmp_path: Path) -> None:
    files = tmp_path / "a", tmp_path / "b"
    for file, content in zip(files, (learnt, measured), strict=True):
        file.write_text(content)
    with pytest.raises(ValueError, match=message):
        sentiment_data.read_rows(*files)


def test_half_of_the_files_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--train_file and --validation_file, or neither"):
        sentiment.main(["--train_file", str(tmp_path / "x")])


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        (None, [], "No such file"),
        (b"0 \xff\n", [], "texts: not UTF-8"),
        (b"0 a b\n0 c d\n", [], "has one label, '0'"),
        (b"0 a b\n1 c d\n", ["--vocab_size", "3"], "vocab_size=3 is too small"),
        (b"0 a b\n1 c d\n", ["--pooling", "lst"], "pooling"),
        (b"0 a b\n1 c d\n", ["--epochs", "0"], "epochs must be above 0, not 0"),
    ],
)
def test_what_cannot_work_is_said(content: bytes | None, more: list[str], message: str, tmp_path: Path) -> None:
    file = tmp_path / "texts"
    if content is not None:
        file.write_bytes(content)
    files = ["--train_file", str(file), "--validation_file", str(file), "--output_dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match=message):
        sentiment.main([*files, *more])
