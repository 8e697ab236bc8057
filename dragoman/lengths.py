"""How long the examples of a data set are, on both sides."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

from .modeling.loss import IGNORE_INDEX
from .packing import source_tokens, target_tokens

SIDES = ("input_ids", "labels")
MASK = "attention_mask"


def read_lengths(dataset: Any, packed: bool = False) -> tuple[list[int], list[int]]:
    """The lengths of ``input_ids`` and of ``labels``, of every example.

    For packed batches without the padding that rows already have, which their collator drops. Of a
    ``datasets.Dataset`` both columns are measured without making lists of them; of any other sequence of mappings,
    every example is read once.

    Raises:
        ValueError: for a data set without a length, or examples that lack one of both, or have a class for labels.
    """
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise ValueError(
            f"tokens_per_batch needs to know how long every example is, before training, and {type(dataset).__name__} "
            "gives examples only one after another: make a datasets.Dataset or a list of it, or leave "
            "tokens_per_batch out."
        )
    measure = _measure_columns if _has_columns(dataset) else _measure_examples
    lengths = list(measure(dataset, packed))
    return [source for source, _ in lengths], [target for _, target in lengths]


def _has_columns(dataset: Any) -> bool:
    stored = set(SIDES) <= set(getattr(dataset, "column_names", None) or ())
    return stored and hasattr(dataset, "with_format") and dataset.format["type"] != "custom"  # made when read


def _measure_columns(dataset: Any, packed: bool) -> Iterator[tuple[int, int]]:
    names = [*SIDES, MASK] if packed and MASK in dataset.column_names else [*SIDES]
    for table in dataset.select_columns(names).with_format("arrow").iter(batch_size=1_000):
        columns = [table.column(name).combine_chunks() for name in names]
        for name, column in zip(names, columns, strict=True):
            if not hasattr(column, "value_lengths"):
                raise _no_tokens(name, column.type)
            if column.null_count and name != MASK:
                raise _no_tokens(name, None)
        sources, targets = (column.value_lengths().to_numpy() for column in columns[:2])
        if packed:
            real = _is_real(columns[1], IGNORE_INDEX)
            before, after = real.argmax(1), real[:, ::-1].argmax(1)  # the padding at both ends
            targets = np.where(real.any(1), real.shape[1] - before - after, 0)
        if len(columns) > 2:
            unmasked = columns[2].is_null().to_numpy(zero_copy_only=False)
            sources = np.where(unmasked, sources, _is_real(columns[2], 0).sum(1))
        yield from zip(sources.tolist(), targets.tolist(), strict=True)


def _is_real(column: Any, padding: int) -> NDArray[np.bool_]:
    """(rows, longest): which of a row's values there are, and are no padding."""
    lengths = column.value_lengths().fill_null(0).to_numpy()
    real: NDArray[np.bool_] = np.arange(max(1, lengths.max())) < lengths[:, None]
    real[real] = column.flatten().to_numpy(zero_copy_only=False) != padding
    return real


def _measure_examples(dataset: Any, packed: bool) -> Iterator[tuple[int, int]]:
    for i in range(len(dataset)):
        example = dataset[i]
        missing = [name for name in SIDES if name not in example]
        if missing:
            raise ValueError(
                f"tokens_per_batch needs input_ids and labels in every example: number {i} has no {missing[0]}, but "
                f"{', '.join(map(str, example))}. Tokenize first: tokenizer(source, text_target=target)."
            )
        for name in SIDES:
            if not hasattr(example[name], "__len__") or getattr(example[name], "shape", None) == ():
                raise _no_tokens(name, repr(example[name]))
        if packed:
            yield len(source_tokens(example)), len(target_tokens(example))
        else:
            yield len(example["input_ids"]), len(example["labels"])


def _no_tokens(name: str, found: Any) -> ValueError:
    return ValueError(
        f"{name} must be a list of tokens in every row, not {found}: tokens_per_batch is for models that write; for a "
        "classifier leave it out."
    )
