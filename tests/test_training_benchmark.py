"""The training benchmark compares the same work, and refuses to print what it cannot vouch for."""

import argparse
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

import train
import training_engines
from training_engines import ENGINES, ROWS, SAME_WEIGHTS, Engine, draw_batches, fill_of

TINY = {"layers": 1, "hidden": 16, "intermediate": 20, "heads": 2, "vocabulary": 50}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(training_engines.SIZES, "small", TINY)


@pytest.mark.parametrize("work", ["ragged", "grouped"])
def test_engines_do_the_same_work(work: str) -> None:
    engines = {name: Engine(name, "small", work, batches=2, scale=0.3) for name in ENGINES}
    assert len({tuple(engine.tokens) for engine in engines.values()}) == 1
    losses = [engines[name].loss() for name in SAME_WEIGHTS]
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-6)
    for engine in engines.values():
        before = engine.loss()
        for _ in range(4):
            seconds, tokens = engine.step()
            assert seconds > 0
        assert tokens == engine.tokens[1]
        assert engine.loss() < before


def test_lengths() -> None:
    ragged, grouped = (draw_batches(work, 3, 50) for work in ("ragged", "grouped"))
    assert all(len(batch) == ROWS for batch in [*ragged, *grouped])
    assert 0.25 < fill_of(ragged) < 0.5
    assert fill_of(grouped) > 0.75


def test_other_losses_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def working(*_: Any) -> Any:
        yield [SimpleNamespace(name=name, loss=5.0 + 0.001 * i) for i, name in enumerate(SAME_WEIGHTS)]

    monkeypatch.setattr(train, "working", working)
    with pytest.raises(ValueError, match="Same weights, same batch, and other losses"):
        train.measure("small", "ragged", "neutral", argparse.Namespace(batches=1, rounds=1))


def test_the_table() -> None:
    engines = {
        "Marian": {"speeds": [100.0, 200.0, 300.0], "peak": 2**20},
        "T5": {"speeds": [50.0, 300.0, 600.0], "peak": 2**21},
    }
    text = train.table({"size": "small", "work": "ragged", "fill": 0.4, "allocator": "neutral", "engines": engines})
    assert text.splitlines()[-1] == "| T5 | 300 | 50-600 | 1.50 | 0.50-2.00 | 2.00 GiB |"
