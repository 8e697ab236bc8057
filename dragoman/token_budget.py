"""Batches by their number of tokens instead of their number of rows."""

import logging
from collections.abc import Iterator, Sequence
from numbers import Integral

import numpy as np
import torch.distributed
from numpy.typing import NDArray
from torch.utils.data import Sampler

logger = logging.getLogger(__name__)

Integers = NDArray[np.int64]

NEIGHBOURS = 4  # batches that one bucket gives: more of them mix better, and fill less of the budget
SLACK = 1.02  # batches over the fewest possible, so that packed ones can be dealt at random
NOISE = (0.4, 0.2, 0.1, 0.05, 0.0)  # on an example's length, as a share of it; the next where one does not fit


class TokenBudgetBatchSampler(Sampler[list[int]]):
    """A ``batch_sampler`` that fills every batch up to ``tokens_per_batch``, and never over it.

    A batch of N rows costs ``N · longest source + N · longest target``, padding included; a packed one
    ``Σ (source + target)``. Every example comes once an epoch. What comes with what, and when, is drawn anew from
    ``(seed, epoch)`` alone, so skipping the first batches of an epoch resumes it; their number is the same every epoch.

    Padded batches are made of examples of like source and like target: these are laid into buckets of neighbours
    (sort-tile-recursive; Leutenegger et al., 1997), and every epoch cuts each bucket in another direction. Packed ones
    mix all lengths: the longest first, each onto the emptiest batch (Graham, 1969), lengths blurred by some noise.

    An example that costs more than ``tokens_per_batch`` is left out, in all epochs; one warning says how many are.

    Args:
        source_lengths: in tokens, of every example.
        target_lengths: of the same examples.
        packed: batches are packed: padding costs nothing.
        pad_to_multiple_of: what the collator of padded batches rounds lengths up to.
        num_processes: that train together. Batches come in turn for each of them, as accelerate deals them out, and as
            many for each: some are halved for it, or where every batch is one example, come twice.
        seed: with the epoch, see ``set_epoch``, decides the batches. accelerate and Trainers set the epoch.

    Raises:
        ValueError: for lengths that do not fit together, what is no whole number or below 1, or a budget that no
            example fits.
    """

    def __init__(
        self,
        source_lengths: Sequence[int],
        target_lengths: Sequence[int],
        tokens_per_batch: int,
        *,
        packed: bool = False,
        pad_to_multiple_of: int = 1,
        num_processes: int = 1,
        seed: int = 0,
    ) -> None:
        if len(source_lengths) != len(target_lengths):
            raise ValueError(f"{len(source_lengths)} source_lengths, but {len(target_lengths)} target_lengths.")
        sizes = {"tokens_per_batch": tokens_per_batch, "pad_to_multiple_of": pad_to_multiple_of}
        sizes |= {"num_processes": num_processes, "seed": seed}
        for name, value in sizes.items():
            least = 0 if name == "seed" else 1
            if not isinstance(value, Integral) or value < least:
                raise ValueError(f"{name}={value!r} must be a whole number of at least {least}.")
        lengths = np.array([source_lengths, target_lengths])  # (2, examples)
        if lengths.size and lengths.dtype.kind not in "iu":
            raise ValueError(f"source_lengths and target_lengths must be whole numbers, not {lengths.dtype}.")
        lengths = lengths.astype(np.int64)
        self._lengths: Integers = -(-lengths // pad_to_multiple_of) * pad_to_multiple_of
        self.tokens_per_batch, self.packed, self.seed, self.epoch = tokens_per_batch, packed, seed, 0
        self._examples = self._those_that_fit()
        if packed:
            self._packed_count = self._count_packed(num_processes)
            count = min(self._packed_count, len(self._examples))
        else:
            self._buckets = self._make_buckets()
            self._parts = [-(-len(bucket) // self._rows(bucket)) for bucket in self._buckets]  # batches of each
            self._even_out(num_processes)
            count = sum(self._parts)
        self._count = -(-count // num_processes) * num_processes

    @property
    def sampler(self) -> "TokenBudgetBatchSampler":
        """Itself: with several processes accelerate sets the epoch on a batch sampler's ``sampler``."""
        return self

    @property
    def num_examples(self) -> int:
        """Those that an epoch has: all but the ones left out."""
        return len(self._examples)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng((self.seed, self.epoch))
        batches = self._packed_batches(random) if self.packed else self._padded_batches(random)
        for number in np.resize(random.permutation(len(batches)), self._count):  # repeats from the start, if at all
            yield batches[number].tolist()

    def _those_that_fit(self) -> Integers:
        costs = self._lengths.sum(0)
        fitting = np.flatnonzero(costs <= self.tokens_per_batch)
        left_out = len(costs) - len(fitting)
        if left_out:
            longest = int(costs.argmax())
            source, target = self._lengths[:, longest]
            said = (
                f"{left_out:,} of {len(costs):,} examples are longer than tokens_per_batch={self.tokens_per_batch:,} "
                f"(the longest, number {longest}, has {source:,} source and {target:,} target tokens)"
            )
            if len(fitting) and not (torch.distributed.is_initialized() and torch.distributed.get_rank()):
                logger.warning(f"{said} and are left out. Shorten them or raise the budget to train on all.")
        if not len(fitting):
            raise ValueError(f"{said}: raise it, or shorten them." if left_out else "There are no examples.")
        return fitting

    # ---- padded ----

    def _rows(self, bucket: Integers) -> int:
        """How many rows a batch may have, whichever examples of the bucket it takes."""
        return int(self.tokens_per_batch // max(1, self._lengths[:, bucket].max(1).sum()))

    def _make_buckets(self) -> list[Integers]:
        """Strips of like source, walked through by target, up and down; as many strips as batches in a strip."""
        source, target = self._lengths[:, self._examples]
        by_source = np.empty(len(self._examples), dtype=np.int64)
        by_source[np.lexsort((target, source))] = np.arange(len(by_source))
        strips = round(((source + target).sum() / self.tokens_per_batch) ** 0.5) or 1
        strip = by_source * strips // len(by_source)
        walk = np.lexsort((np.where(strip % 2, -target, target), strip))
        ends, first, s, t = [], 0, 0, 0
        for i, (a, b) in enumerate(zip(source[walk].tolist(), target[walk].tolist(), strict=True)):
            s, t = max(s, a), max(t, b)
            if i - first >= NEIGHBOURS * (self.tokens_per_batch // max(1, s + t)):
                ends.append(i)
                first, s, t = i, a, b
        return np.split(self._examples[walk], ends)

    def _even_out(self, num_processes: int) -> None:
        """Make their number a multiple, by cutting the bucket with the most rows a batch into one more."""
        while sum(self._parts) % num_processes:
            rows = [len(bucket) / parts for bucket, parts in zip(self._buckets, self._parts, strict=True)]
            if max(rows) <= 1:
                return
            self._parts[int(np.argmax(rows))] += 1

    def _padded_batches(self, random: np.random.Generator) -> list[Integers]:
        batches: list[Integers] = []
        for bucket, parts in zip(self._buckets, self._parts, strict=True):
            mixed, angle = random.permutation(bucket), random.uniform(0, np.pi)
            source, target = self._lengths[:, mixed]
            order = np.argsort(source * np.cos(angle) + target * np.sin(angle), kind="stable")
            batches += np.array_split(mixed[order], parts)
        return batches

    # ---- packed ----

    def _count_packed(self, num_processes: int) -> int:
        costs = np.sort(self._lengths[:, self._examples].sum(0))[::-1]
        fewest = SLACK * costs.sum() / self.tokens_per_batch
        count = num_processes * max(1, -(-int(fewest) // num_processes))
        while deal(costs, count)[1] > self.tokens_per_batch:
            count += num_processes * -(-count // (50 * num_processes))
        return int(count)

    def _packed_batches(self, random: np.random.Generator) -> list[Integers]:
        mixed = random.permutation(self._examples)
        costs = self._lengths[:, mixed].sum(0)
        for noise in NOISE:  # without any, the sums are those that _count_packed saw
            order = np.argsort(-costs * (1 + noise * random.uniform(-0.5, 0.5, len(mixed))), kind="stable")
            batch, fullest = deal(costs[order], self._packed_count)
            if fullest <= self.tokens_per_batch:
                break
        by_batch = np.argsort(batch, kind="stable")
        return np.split(mixed[order][by_batch], np.flatnonzero(np.diff(batch[by_batch])) + 1)


def deal(costs: Integers, count: int) -> tuple[Integers, int]:
    """In rounds, an example for each of ``count`` batches, the emptiest takes the first: each one's batch; the most."""
    batch, sums = np.empty(len(costs), dtype=np.int64), np.zeros(count, dtype=np.int64)
    for start in range(0, len(costs), count):
        dealt = costs[start : start + count]
        emptiest = np.argsort(sums, kind="stable")[: len(dealt)]
        batch[start : start + count] = emptiest
        sums[emptiest] += dealt
    return batch, int(sums.max())
