"""Ragged rows of ids, and their batches, padded on either side by any amount."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .subjects import Subject

# Source and target lengths, the end token included: no two alike, neither side the longer one throughout.
LENGTHS = ((9, 4), (5, 8), (2, 1), (7, 11), (12, 6))
MORE_SOURCE = 5  # columns of padding
LONGEST = max(source for source, _ in LENGTHS) + MORE_SOURCE

Inputs = dict[str, Any]


class Pair(NamedTuple):
    source: list[int]
    target: list[int]


@dataclass(frozen=True)
class Batch:
    """Sources (B, S), decoder inputs and labels (B, T), each with its mask."""

    source: Tensor
    source_mask: Tensor
    target: Tensor  # starts with the start token
    target_mask: Tensor
    labels: Tensor

    def inputs(self, **others: Any) -> Inputs:
        return {"input_ids": self.source, "attention_mask": self.source_mask, **others}

    def teacher_forced(self, **others: Any) -> Inputs:
        return self.inputs(decoder_input_ids=self.target, decoder_attention_mask=self.target_mask, **others)

    def supervised(self, **others: Any) -> Inputs:
        return self.inputs(labels=self.labels, **others)


def draw_pairs(subject: "Subject", lengths: Sequence[tuple[int, int]] = LENGTHS, seed: int = 1) -> list[Pair]:
    """Random ordinary tokens, each row ended by the end token where there is one."""
    generator = torch.Generator().manual_seed(seed)

    def row(length: int, vocabulary: int) -> list[int]:
        ordinary = torch.tensor([i for i in range(vocabulary) if i not in subject.special])
        ids = ordinary[torch.randint(len(ordinary), (length,), generator=generator)].tolist()
        return ids if subject.end is None else [*ids[:-1], subject.end]

    return [Pair(row(s, subject.source_vocabulary), row(t, subject.target_vocabulary)) for s, t in lengths]


def collate(
    subject: "Subject",
    pairs: Sequence[Pair],
    *,
    more_source: int = 0,
    more_target: int = 0,
    left: bool = False,
) -> Batch:
    """Pad to the longest row, and by as many more columns as are asked for, on the right or on the left."""
    width = max(len(pair.source) for pair in pairs) + more_source
    length = max(len(pair.target) for pair in pairs) + more_target

    def pad(rows: list[list[int]], columns: int, value: int) -> Tensor:
        padding = [[value] * (columns - len(row)) for row in rows]
        return torch.tensor([p + row if left else row + p for p, row in zip(padding, rows, strict=True)])

    sources = [pair.source for pair in pairs]
    targets = [pair.target for pair in pairs]
    starts = [subject.start_of(target) for target in targets]
    shifted = [[start, *target[:-1]] for start, target in zip(starts, targets, strict=True)]  # by hand, once
    return Batch(
        source=pad(sources, width, subject.pad),
        source_mask=pad([[1] * len(row) for row in sources], width, 0),
        target=pad(shifted, length, subject.pad),
        target_mask=pad([[1] * len(row) for row in shifted], length, 0),
        labels=pad(targets, length, -100),
    )


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """``−log p`` of every label that is not −100, written out. (B, T, V) and (B, T) to (N,)."""
    real = labels != -100
    scores = logits[real]  # (N, V)
    return scores.logsumexp(-1) - scores.gather(1, labels[real][:, None])[:, 0]
