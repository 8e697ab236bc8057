"""The training benchmark compares the same work, and refuses to print what it cannot vouch for."""

import pytest

import train
from peer_models import Sizes
from training_engines import ENGINES, ROWS, SAME_WEIGHTS, Engine, Work, draw_batches, fill_of

TINY = Sizes(1, 16, 20, 2, 50)


@pytest.mark.parametrize("order", ["ragged", "grouped"])
def test_engines_do_the_same_work(order: str) -> None:
    names = [name for name in ENGINES if name != "x-transformers"]  # no requirement of the tests
    engines = {name: Engine(name, Work(TINY, order, 2, 0.3)) for name in names}
    assert len({tuple(engine.tokens) for engine in engines.values()}) == 1
    losses = [engines[name].loss() for name in SAME_WEIGHTS]
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-6)
    for engine in engines.values():
        before = engine.loss()
        for i in range(4):
            seconds, tokens = engine.step(i % 2)
            assert seconds > 0
        assert tokens == engine.tokens[1]
        assert engine.loss() < before


def test_lengths() -> None:
    ragged, grouped = (draw_batches(Work(TINY, order)) for order in ("ragged", "grouped"))
    assert all(len(batch) == ROWS for batch in [*ragged, *grouped])
    assert 0.25 < fill_of(ragged) < 0.5
    assert fill_of(grouped) > 0.75


def test_other_losses_are_refused() -> None:
    train.check({"Marian": 5.0, "Dragoman, packed": 5.00001})
    train.check({"Marian": 5.0, "Dragoman, packed": 5.001}, "bf16")
    with pytest.raises(ValueError, match="Same weights, same batch, and other losses"):
        train.check({"Marian": 5.0, "Dragoman, packed": 5.001})


def test_the_table() -> None:
    row = {"tokens_per_second": 300.0, "ratio": 1.5, "lowest": 0.5, "highest": 2.0, "peak": 2**31}
    about = {"conditions": {"allocator": "neutral"}, "sizes": "some", "fill": 0.4}
    text = train.table("small", about | {"engines": {"T5": row}, "failed": {"BART": "ended with 1"}})
    assert text.splitlines()[-3] == "| T5 | 300 | 1.50 | 0.50-2.00 | 2.00 GiB |"
    assert text.endswith("BART is missing: it ended with 1")
