"""Batches by their number of tokens: the budget, the epoch, the processes, and how little of a batch is padding."""

import itertools
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset

from dragoman import DataCollatorForPackedSeq2Seq, TokenBudgetBatchSampler
from dragoman.lengths import read_lengths

Lengths = tuple[list[int], list[int]]
BUDGET = 50
PAIRS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=120)


def cost(batch: list[int], lengths: Lengths, packed: bool, multiple: int = 1) -> int:
    """What a batch comes to on the device."""
    sides = [[math.ceil(side[i] / multiple) * multiple for i in batch] for side in lengths]
    return sum(sum(side) if packed else len(batch) * max(side) for side in sides)


def ragged(examples: int, seed: int = 0, mean: float = 25.0, longest: int = 100) -> Lengths:
    """Log-normal lengths, targets near their sources: of a random batch of 64 rows, a third is tokens."""
    random = np.random.default_rng(seed)
    source = np.clip(np.rint(random.lognormal(math.log(mean) - 0.18, 0.6, examples)), 3, longest)
    target = np.clip(np.rint(source * random.lognormal(0, 0.15, examples)), 3, longest)
    return source.astype(int).tolist(), target.astype(int).tolist()


@settings(deadline=None, max_examples=150)
@given(PAIRS, st.booleans(), st.integers(1, 5), st.integers(0, 3), st.sampled_from([1, 4]))
def test_every_example_once_within_the_budget(
    pairs: list[tuple[int, int]], packed: bool, processes: int, epoch: int, multiple: int
) -> None:
    lengths = [s for s, _ in pairs], [t for _, t in pairs]
    fitting = [i for i in range(len(pairs)) if cost([i], lengths, packed, multiple) <= BUDGET]
    arguments: Any = {"packed": packed, "num_processes": processes, "pad_to_multiple_of": multiple, "seed": 3}
    if not fitting:
        with pytest.raises(ValueError, match="longer than tokens_per_batch=50"):
            TokenBudgetBatchSampler(*lengths, BUDGET, **arguments)
        return
    sampler = TokenBudgetBatchSampler(*lengths, BUDGET, **arguments)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert all(batch and cost(batch, lengths, packed, multiple) <= BUDGET for batch in batches)
    assert len(batches) == len(sampler)
    assert len(sampler) % processes == 0
    seen = Counter(itertools.chain(*batches))
    assert sorted(seen) == fitting
    assert sampler.num_examples == len(fitting)
    if max(map(len, batches)) > 1:  # a batch could have been halved rather than repeated
        assert set(seen.values()) == {1}
    assert batches == list(sampler)
    again = TokenBudgetBatchSampler(*lengths, BUDGET, **arguments)
    again.set_epoch(epoch)
    assert batches == list(again)


@pytest.mark.parametrize("packed", [False, True])
def test_epochs_differ_in_neighbours_and_order_but_not_in_number(packed: bool) -> None:
    lengths = ragged(3000)
    sampler = TokenBudgetBatchSampler(*lengths, 1024, packed=packed)
    partners: list[dict[int, set[int]]] = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        partners.append({i: set(batch) - {i} for batch in batches for i in batch})
        width = np.array([max(lengths[0][i] for i in batch) for batch in batches])
        assert abs(np.corrcoef(width, np.arange(len(width)))[0, 1]) < 0.25  # not by length
    for one, other in itertools.combinations(partners, 2):
        kept = np.mean([len(one[i] & other[i]) / max(1, len(one[i])) for i in one])
        assert kept < (0.15 if packed else 0.6)
    other_seed = TokenBudgetBatchSampler(*lengths, 1024, packed=packed, seed=1)
    assert list(other_seed) != list(TokenBudgetBatchSampler(*lengths, 1024, packed=packed, seed=0))


@pytest.mark.parametrize(("examples", "most"), [(3000, 0.14), (30_000, 0.05), (100_000, 0.025)])
def test_little_is_padding(examples: int, most: float) -> None:
    """What docs/training.md says."""
    lengths = ragged(examples)
    tokens = sum(map(sum, lengths))
    batches = list(TokenBudgetBatchSampler(*lengths, 4096))
    assert 1 - tokens / sum(cost(batch, lengths, packed=False) for batch in batches) < most
    assert tokens / len(batches) > (0.85 if examples >= 30_000 else 0.7) * 4096  # and batches are full
    random = np.random.default_rng(0).permutation(examples)[: examples // 64 * 64].reshape(-1, 64).tolist()
    real, padded = (sum(cost(batch, lengths, packed) for batch in random) for packed in (True, False))
    assert real / padded == pytest.approx(0.3, abs=0.01)  # what the same lengths come to in random rows


def test_packed_batches_are_full_and_of_all_lengths() -> None:
    lengths = ragged(30_000)
    batches = list(TokenBudgetBatchSampler(*lengths, 4096, packed=True))
    assert sum(map(sum, lengths)) / len(batches) > 0.975 * 4096
    assert max(cost(batch, lengths, packed=True) for batch in batches) <= 4096
    means = [np.mean([lengths[0][i] for i in batch]) for batch in batches]
    assert np.std(means) < 0.1 * np.mean(lengths[0])


@pytest.mark.parametrize("packed", [False, True])
def test_hard_cases(packed: bool) -> None:
    """More than half the budget each; all of one length; one example; fewer examples than processes."""
    halves = TokenBudgetBatchSampler([30] * 41, [21] * 41, 100, packed=packed)
    assert sorted(map(len, halves)) == [1] * 41
    assert len(TokenBudgetBatchSampler([5] * 1000, [5] * 1000, 100, packed=packed)) in range(100, 104)
    assert list(TokenBudgetBatchSampler([5], [5], 10, packed=packed)) == [[0]]
    few = list(TokenBudgetBatchSampler([5, 5], [5, 5], 100, packed=packed, num_processes=5))
    assert sorted(map(tuple, few)) in ([(0,), (0,), (0,), (1,), (1,)], [(0,), (0,), (1,), (1,), (1,)])


def test_what_does_not_fit_is_left_out_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    lengths = [3, 60, 4, 55], [3, 47, 4, 50]
    sampler = TokenBudgetBatchSampler(*lengths, 100)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert sorted(itertools.chain(*sampler)) == [0, 2]
    (record,) = caplog.records
    assert record.getMessage() == (
        "2 of 4 examples are longer than tokens_per_batch=100 (the longest, number 1, has 60 source and 47 target "
        "tokens) and are left out. Shorten them or raise the budget to train on all."
    )
    assert sorted(itertools.chain(*TokenBudgetBatchSampler(*lengths, 107))) == [0, 1, 2, 3]
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1], [1, 2], 9), "1 source_lengths, but 2 target_lengths"),
        (([1], [1], 0), "tokens_per_batch=0 must be a whole number of at least 1"),
        (([1], [1], "40"), "tokens_per_batch='40' must be a whole number"),
        (([1.5], [1], 9), "must be whole numbers, not float64"),
        (([8], [2], 9), "1 of 1 examples are longer than tokens_per_batch=9 .*: raise it, or shorten them"),
        (([], [], 9), "There are no examples"),
    ],
    ids=lambda value: value[:9] if isinstance(value, str) else "",
)
def test_bad_values(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenBudgetBatchSampler(*arguments)
    with pytest.raises(ValueError, match="seed=-1 must be a whole number of at least 0"):
        TokenBudgetBatchSampler([1], [1], 9, seed=-1)


class Pairs(torch.utils.data.Dataset[int]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> int:
        return i


@pytest.mark.parametrize("workers", [0, 2])
def test_accelerate_sets_the_epoch_and_skips(workers: int) -> None:
    sampler = TokenBudgetBatchSampler(*ragged(400), 512, seed=5)
    loader = DataLoader(Pairs(400), batch_sampler=sampler, collate_fn=list, num_workers=workers)
    prepared = Accelerator(cpu=True).prepare(loader)
    assert len(prepared) == len(sampler)
    epochs = [list(prepared) for _ in range(3)]
    for epoch, found in enumerate(epochs):
        sampler.set_epoch(epoch)
        assert found == list(sampler)
    assert epochs[0] != epochs[1]
    prepared.set_epoch(2)
    assert list(skip_first_batches(prepared, 7)) == epochs[2][7:]


def test_processes_share_every_epoch_evenly() -> None:
    """As accelerate deals batches out; ``even_batches`` has nothing to add."""
    lengths = ragged(1000)
    for processes, packed, even in itertools.product((2, 3, 7), (False, True), (False, True)):
        sampler = TokenBudgetBatchSampler(*lengths, 512, packed=packed, num_processes=processes)
        sampler.set_epoch(4)
        shards = [BatchSamplerShard(sampler, processes, rank, even_batches=even) for rank in range(processes)]
        batches = [list(shard) for shard in shards]
        assert {len(own) for own in batches} == {len(shards[0])}
        assert sorted(itertools.chain(*itertools.chain(*batches))) == list(range(1000))
        tokens = [sum(cost(batch, lengths, packed) for batch in own) for own in batches]
        assert max(tokens) < 1.1 * min(tokens)  # nobody waits for another


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))

    def __len__(self) -> int:
        return 3


class OneByOne:
    """Neither a list nor a datasets.Dataset."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"input_ids": torch.zeros(i + 1), "labels": np.zeros(5 - i)}


ROWS = {"input_ids": [[1, 2, 3], [4], [5, 6], []], "labels": [[7], [8, 9, 10], [11, 12], [13]], "text": list("abcd")}
DATASETS: list[tuple[Callable[[], Any], Lengths]] = [
    (lambda: Dataset.from_dict(ROWS), ([3, 1, 2, 0], [1, 3, 2, 1])),
    (lambda: Dataset.from_dict(ROWS).select([2, 0]), ([2, 3], [2, 1])),
    (lambda: Dataset.from_dict(ROWS).with_format("torch"), ([3, 1, 2, 0], [1, 3, 2, 1])),
    (lambda: Dataset.from_dict(ROWS).with_transform(lambda r: {n: [[0, 0]] for n in ROWS}), ([2] * 4, [2] * 4)),
    (lambda: [{"input_ids": [1, 2], "labels": [3]}], ([2], [1])),
    (OneByOne, ([1, 2], [5, 4])),
]


@pytest.mark.parametrize(("dataset", "expected"), DATASETS)
def test_lengths_are_read_from_any_data_set(dataset: Callable[[], Any], expected: Lengths) -> None:
    assert read_lengths(dataset()) == expected


PADDED = {
    "input_ids": [[1, 2, 0, 0], [0, 0, 0, 3], [4, 5, 6, 7], [0] * 4],
    "attention_mask": [[1, 1, 0, 0], [0, 0, 0, 1], [1, 0, 1, 1], [0] * 4],
    "labels": [[7, 8, -100], [-100, 9, -100], [7, -100, 8], [-100] * 3],
}


def test_packed_lengths_leave_out_what_the_collator_drops() -> None:
    data = Dataset.from_dict(PADDED)
    expected = [[2, 1, 3, 0], [2, 1, 3, 0]]
    batch = DataCollatorForPackedSeq2Seq()(list(data)[:3])
    assert [batch["input_ids"].numel(), batch["labels"].numel()] == [sum(side) for side in expected]
    for dataset in (data, list(data), data.select([0, 1, 2, 3]).with_format("torch")):
        assert [*read_lengths(dataset, packed=True)] == expected
        assert [*read_lengths(dataset)] == [[4] * 4, [3] * 4]
    assert [*read_lengths(data.remove_columns("attention_mask"), packed=True)] == [[4] * 4, expected[1]]
    masks = [*PADDED["attention_mask"][:3], None]  # as concatenating with a data set without masks gives
    unmasked = Dataset.from_dict(PADDED | {"attention_mask": masks})
    for rows in (unmasked, list(unmasked)):
        assert [*read_lengths(rows, packed=True)] == [[2, 1, 3, 4], expected[1]]
    for rows in (missing := Dataset.from_dict({"input_ids": [[1], [2]], "labels": [[1], None]}), list(missing)):
        with pytest.raises(ValueError, match="labels must be a list of tokens in every row, not None"):
            read_lengths(rows)


def test_data_sets_without_lengths() -> None:
    for dataset in (Stream(), Dataset.from_dict(ROWS).to_iterable_dataset(), iter([])):
        with pytest.raises(ValueError, match=r"gives examples only one after another: make a datasets\.Dataset"):
            read_lengths(dataset)
    for rows in ([{"input_ids": [1], "target": "a"}], Dataset.from_dict({"input_ids": [[1]], "target": ["a"]})):
        with pytest.raises(ValueError, match=r"number 0 has no labels, but input_ids, target\. Tokenize first"):
            read_lengths(rows)
    classes = {"input_ids": [[1, 2], [3]], "labels": [1, 0]}
    singly = [{"input_ids": [1, 2], "labels": label} for label in (1, torch.tensor(1), np.int64(1))]
    for rows in (Dataset.from_dict(classes), *([row] for row in singly)):
        with pytest.raises(ValueError, match=r"labels must be a list of tokens in every row, not .* leave it out"):
            read_lengths(rows)
