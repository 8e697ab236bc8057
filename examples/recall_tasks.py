"""Tasks that ask for memory alone: say again, after n steps, what was read. Each is a pure function of its seed.

::

    recall-k   A C B   d a a c b ...     →  A C B        k marked symbols, then n others to be passed over
    copy       d a a c                   →  d a a c      all n symbols
    reverse    d a a c                   →  c a a d

There are 16 symbols, each in a plain and a marked form. Source and target end with the end token. Rows of a batch are
of one length, so that nothing is padded; a batch is a whole item of the dataset, as ``whole_batch`` hands it on.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

SYMBOLS, FIRST, END = 16, 3, 2  # ids 0 to 2 are padding, start and end
VOCABULARY = FIRST + 2 * SYMBOLS  # the plain symbols, then the marked ones
CHANCE = 100 / SYMBOLS  # percent of tokens right for a model that knows the task and remembers nothing
TASKS = ("recall-1", "recall-8", "copy", "reverse")
SHORTEST = 4  # steps

Batch = dict[str, Tensor]


def make_batch(task: str, steps: int, rows: int, generator: torch.Generator) -> Batch:
    """``rows`` examples of ``task`` over ``steps`` symbols: ``input_ids`` (B, S) and ``labels`` (B, T).

    Raises:
        ValueError: for an unknown task.
    """
    if task not in TASKS:
        raise ValueError(f"There is no task {task!r}; choose from {', '.join(TASKS)}.")
    source = torch.randint(FIRST, FIRST + SYMBOLS, (rows, steps), generator=generator)
    target = source.flip(1) if task == "reverse" else source
    if task.startswith("recall-"):
        marked = int(task.removeprefix("recall-"))
        target = torch.randint(FIRST + SYMBOLS, VOCABULARY, (rows, marked), generator=generator)
        source = torch.cat([target, source], dim=1)
    end = torch.full((rows, 1), END)
    return {"input_ids": torch.cat([source, end], dim=1), "labels": torch.cat([target, end], dim=1)}


class BatchStream(Dataset[Batch]):
    """Batches of ``task`` without end. Lengths from ``SHORTEST`` to ``longest``, each doubling of them as frequent as
    any other: the short ones teach what to look for, and the long ones to find it there. All batches cost about as
    much: ``tokens`` of source and target, ends aside, in one row at least. Every stretch of the stream is like any
    other, so that a run sees the same mix whenever the clock stops it.
    """

    def __init__(self, task: str, longest: int, tokens: int, seed: int, count: int = 1_000_000) -> None:
        self.task, self.longest, self.tokens, self.seed, self.count = task, longest, tokens, seed, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < self.count:
            raise IndexError(index)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        share = float(torch.rand((), generator=generator))
        steps = round(SHORTEST * math.exp(share * math.log(self.longest / SHORTEST)))
        return make_batch(self.task, steps, self.rows(steps), generator)

    def rows(self, steps: int) -> int:
        row = 2 * steps if self.task in ("copy", "reverse") else steps + 2 * int(self.task.removeprefix("recall-"))
        return max(1, self.tokens // row)


def whole_batch(items: list[Batch]) -> dict[str, Any]:
    """The collator of a ``BatchStream``: an item is a batch already. Raises ValueError for more than one."""
    (batch,) = items
    return dict(batch)
