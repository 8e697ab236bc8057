"""Batches of like lengths, with results in the order of the input."""

from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import groupby
from typing import Any

from torch.utils.data import IterableDataset

Records = list[dict[str, Any]]


class Results(Iterator[Records]):
    """What is written, row after row; with a length where the input has one."""

    def __init__(self, rows: Iterator[Records], size: int | None) -> None:
        self._rows, self._size = rows, size

    def __next__(self) -> Records:
        return next(self._rows)

    def __len__(self) -> int:
        if self._size is None:
            raise TypeError("the input is a stream, whose length is unknown")
        return self._size


def iter_rows(inputs: Iterable[Any]) -> Iterator[Any]:
    """Of a map-style data set too, which need not end by IndexError."""
    streams = isinstance(inputs, IterableDataset)  # which inherit a __getitem__ that raises
    if isinstance(inputs, Sized) and hasattr(inputs, "__getitem__") and not streams:
        return (inputs[i] for i in range(len(inputs)))
    return iter(inputs)


def sorted_batches(encoded: Sequence[dict[str, Any]], batch_size: int) -> Iterator[list[int]]:
    """The numbers of the rows of each batch, longest first; rows with another first token go into other batches."""

    def forced(i: int) -> int:
        return encoded[i].get("forced_bos_token_id", -1)

    order = sorted(range(len(encoded)), key=lambda i: (forced(i), -len(encoded[i]["input_ids"])))
    for _, group in groupby(order, forced):
        rows = list(group)
        yield from (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
