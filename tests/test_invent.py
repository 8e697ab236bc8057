"""examples/recipes/invent.py: which words are drawn, how often, and what is written down with them."""

import gzip
import random
import re
import sys
from collections import Counter
from itertools import islice, product
from pathlib import Path
from types import ModuleType

import pytest
import torch
import typer
from transformers import LogitsProcessorList
from typer.testing import CliRunner

import dragoman
from support import ROOT, build, tiny


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "recipes"))
    monkeypatch.setattr(sys, "path", list(sys.path))  # scored_files.py adds to it
    import invent

    return invent


WORDS = ["abab", "abba", "baba", "aab", "bab", "cab"]


def test_letters_are_drawn_as_often_as_the_formula_says(script: ModuleType) -> None:
    """p(x | n letters) = (count(x) + types · p(x | n − 1 letters)) / (tokens + types), down to how often x is seen."""
    texts = [script.BEGIN * script.ORDER + word + script.END for word in WORDS]

    def after(last: str) -> Counter[str]:
        return Counter(text[at] for text in texts for at in range(script.ORDER, len(text)) if text[:at].endswith(last))

    def probability(letter: str, last: str) -> float:
        seen = after(last)
        if not last:
            return seen[letter] / seen.total()
        shorter = probability(letter, last[1:])
        return (seen[letter] + len(seen) * shorter) / (seen.total() + len(seen)) if seen else shorter

    model, rng, draws = script.LetterModel(WORDS), random.Random(1), 20_000
    for text in (script.BEGIN * script.ORDER, script.BEGIN * 3 + "ab", "xxxab", "xxxxx"):
        found = Counter(model.draw_letter(text, rng) for _ in range(draws))
        for letter in "abc" + script.END:
            assert found[letter] / draws == pytest.approx(probability(letter, text), abs=0.015), (text, letter)


def test_words_are_new_and_of_usual_lengths(script: ModuleType) -> None:
    syllables = ["".join(letters) for letters in product("bdfglmnprtvz", "aeiouy", "bdfglmnprtvz")]
    random.Random(3).shuffle(syllables)
    known, left_out = syllables[:600], set(syllables[600:650])
    words = [*known, *("x" + word for word in known), "a", "o" * 30]  # two lengths of one word in 1,202 each
    made = list(islice(script.invent(words, left_out, seed=0), 100))
    assert len(set(made)) == 100
    assert not {*made} & {*words, *left_out}
    assert {len(word) for word in made} == {3, 4}
    assert len({*made} & {*syllables}) > 20
    assert made == list(islice(script.invent(words, left_out, seed=0), 100))
    assert made != list(islice(script.invent(words, left_out, seed=1), 100))


def test_words_are_looked_up_in_lists(script: ModuleType, tmp_path: Path) -> None:
    """New ones, of known letters and usual lengths, whatever else stands in their lines; written as the known are."""
    names, words = tmp_path / "names", tmp_path / "words.gz"
    names.write_text("CAAB 0.1 2\nBABB\nABBA 0.2 3\n\nCAB\nBOB\nAB\nBABBB\nACAB\n")
    words.write_bytes(gzip.compress(b"babb\nbaa\naca\n"))
    found = script.look_up([names, words], [word.upper() for word in WORDS], {"ACA"}, seed=0)
    assert sorted(found) == ["ACAB", "BAA", "BABB", "CAAB"]
    assert sorted(script.look_up([names, words], WORDS, set(), seed=0)) == ["aca", "baa", "babb"]
    assert script.look_up([words], [*WORDS, "A"], set(), seed=0) == script.look_up([words], WORDS, set(), seed=0)
    many = tmp_path / "many"
    many.write_text("\n".join(map("".join, product("abc", repeat=4))))
    drawn = [script.look_up([many], WORDS, set(), seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert sorted(drawn[0]) == sorted(drawn[2]) != drawn[0]
    assert len(drawn[0]) == 3**4 - 3  # abab, abba, baba


def test_what_several_models_write_together_is_written_down(script: ModuleType, tmp_path: Path) -> None:
    tokenizer = dragoman.DragomanTokenizer.train(["abcdefgh"], algorithm="char", byte_fallback=False, vocab_size=40)
    models = []
    for seed in (2, 3):
        sizes = tiny(vocab_size=len(tokenizer), tie_word_embeddings=False)
        models.append(build(dragoman.DragomanConfig.from_tokenizer(tokenizer, preset=sizes), seed))
        models[-1].save_pretrained(tmp_path / str(seed))
        tokenizer.save_pretrained(tmp_path / str(seed))
    known = "".join(f"{word}\tx y\n" for word in WORDS)
    (tmp_path / "train.tsv").write_text(known)
    (tmp_path / "valid.tsv").write_text("abb\tz\n")
    output = tmp_path / "new" / "out.tsv"
    script.main(
        tmp_path / "train.tsv",
        7,
        output,
        models=[tmp_path / "2", tmp_path / "3"],
        but_not=tmp_path / "valid.tsv",
        seed=5,
        max_new_tokens=6,
        batch_size=3,
    )
    content = output.read_text()
    assert content.startswith(known)
    rows = [line.split("\t") for line in content.removeprefix(known).splitlines()]
    words = list(islice(script.invent(WORDS, {"abb"}, seed=5), 7))
    inputs = tokenizer(words, padding=True, return_tensors="pt")
    together = LogitsProcessorList([dragoman.EnsembleLogitsProcessor(models, **inputs)])
    ids = models[0].generate(**inputs, logits_processor=together, num_beams=1, do_sample=False, max_new_tokens=6)
    answers = tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert rows == [[word, answer] for word, answer in zip(words, answers, strict=True) if answer]
    alone = models[0].generate(**inputs, num_beams=1, do_sample=False, max_new_tokens=6)
    assert not torch.equal(alone, ids)
    (tmp_path / "list").write_text("abb\nbbb\ncc\nacc\nabab\n")
    given = {"models": [tmp_path / "2"], "but_not": tmp_path / "valid.tsv", "max_new_tokens": 6}
    script.main(tmp_path / "train.tsv", 2, output, lists=[tmp_path / "list"], **given)
    added = [line.partition("\t")[0] for line in output.read_text().removeprefix(known).splitlines()]
    assert added == script.look_up([tmp_path / "list"], WORDS, {"abb"}, seed=0)
    assert len(added) == 2


def test_the_commands_get_as_far_as_their_file(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "examples" / "recipes" / "README.md").read_text("utf-8")
    text = f"{page}\n{script.__doc__}".replace("\\\n", "")
    commands = re.findall(r"python examples/recipes/invent\.py (.*)", text)
    assert len(commands) == 4
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    app.command()(script.main)
    for command in commands:
        result = CliRunner().invoke(app, command.split())
        assert (result.exit_code, result.stderr) == (1, f"score: {command.split()[0]}: no such file.\n")


def test_what_is_refused(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("abcdefgh", "abcdefgx"):
        words = dragoman.DragomanTokenizer.train([name], algorithm="char", byte_fallback=False, vocab_size=40)
        build(dragoman.DragomanConfig.from_tokenizer(words, preset=tiny(vocab_size=len(words)))).save_pretrained(
            tmp_path / name
        )
        words.save_pretrained(tmp_path / name)
    (tmp_path / "train.tsv").write_text("ab\tx\ncab\ty\n")
    with pytest.raises(typer.Exit):
        script.main(
            tmp_path / "train.tsv", 2, tmp_path / "out.tsv", models=[tmp_path / "abcdefgh", tmp_path / "abcdefgx"]
        )
    assert "have different vocabularies" in capsys.readouterr().err
    monkeypatch.setattr(script, "PATIENCE", 200)
    with pytest.raises(typer.Exit):
        script.main(tmp_path / "train.tsv", 10_000, tmp_path / "out.tsv", models=[tmp_path / "abcdefgh"])
    assert "new words to be had from its letters, not 10,000" in capsys.readouterr().err
    (tmp_path / "list").write_text("bac\nzoo\n")
    with pytest.raises(typer.Exit):
        script.main(
            tmp_path / "train.tsv", 2, tmp_path / "out.tsv", models=[tmp_path / "abcdefgh"], lists=[tmp_path / "list"]
        )
    assert re.search(r"there are 1 new words in \S+list, not 2\.", capsys.readouterr().err)
    assert not (tmp_path / "out.tsv").exists()
