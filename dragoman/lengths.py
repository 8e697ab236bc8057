"""How long the examples of a data set are, on both sides."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import IterableDataset

SIDES = ("input_ids", "labels")


def read_lengths(dataset: Any) -> tuple[list[int], list[int]]:
    """The lengths of ``input_ids`` and of ``labels``, of every example.

    Of a ``datasets.Dataset`` both columns are measured without making lists of them; of any other sequence of
    mappings, every example is read once.

    Raises:
        ValueError: for a data set without a length, or examples that lack one of both, or have a class for labels.
    """
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise ValueError(
            f"tokens_per_batch needs to know how long every example is, before training, and {type(dataset).__name__} "
            "gives examples only one after another: make a datasets.Dataset or a list of it, or leave "
            "tokens_per_batch out."
        )
    lengths = list(_measure_columns(dataset) if _has_columns(dataset) else _measure_examples(dataset))
    return [source for source, _ in lengths], [target for _, target in lengths]


def _has_columns(dataset: Any) -> bool:
    stored = set(SIDES) <= set(getattr(dataset, "column_names", None) or ())
    return stored and hasattr(dataset, "with_format") and dataset.format["type"] != "custom"  # made when read


def _measure_columns(dataset: Any) -> Iterator[tuple[int, int]]:
    for table in dataset.select_columns(list(SIDES)).with_format("arrow").iter(batch_size=10_000):
        columns = [table.column(name).combine_chunks() for name in SIDES]
        for name, column in zip(SIDES, columns, strict=True):
            if not hasattr(column, "value_lengths"):
                raise _no_tokens(name, column.type)
        yield from zip(*(column.value_lengths().to_pylist() for column in columns), strict=True)


def _measure_examples(dataset: Any) -> Iterator[tuple[int, int]]:
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
        yield len(example["input_ids"]), len(example["labels"])


def _no_tokens(name: str, found: Any) -> ValueError:
    return ValueError(
        f"{name} must be a list of tokens in every row, not {found}: tokens_per_batch is for models that write; for a "
        "classifier leave it out."
    )
