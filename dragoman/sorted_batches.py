"""Batches of like lengths, with results in the order of the input."""

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from itertools import groupby
from typing import Any

import torch
from torch.utils.data import IterableDataset

from .ensemble import EnsembleLogitsProcessor

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


def for_inputs(options: dict[str, Any], option: Callable[[str, Any], Any], numbers: list[int]) -> dict[str, Any]:
    """Arguments of generate() for the inputs of these numbers, which stand in another order than they came in.

    ``prefix_allowed_tokens_fn`` is asked for an input by its number, and a list of ``decoder_start_token_id`` has one
    for each. One row of ``decoder_input_ids`` is for all. ``option`` knows also what stands in a generation config.

    Raises:
        ValueError: for arguments with a row an input, or start tokens for fewer inputs than there are.
    """
    if (allowed := options.get("prefix_allowed_tokens_fn")) is not None:
        # generate() asks for every row it samples, and otherwise for every source
        samples = option("num_return_sequences", 1) if option("num_beams", 1) == 1 else 1
        options = {**options, "prefix_allowed_tokens_fn": lambda row, ids: allowed(numbers[row // samples], ids)}
    starts = torch.as_tensor(option("decoder_start_token_id", 0))
    if starts.dim():
        if max(numbers) >= len(starts):
            raise ValueError(
                f"decoder_start_token_id has {len(starts)} tokens, one for each input, and there are more."
            )
        options = {**options, "decoder_start_token_id": starts[numbers].tolist()}
    for name in ("decoder_input_ids", "decoder_attention_mask", "decoder_inputs_embeds", "encoder_outputs"):
        if (value := options.get(name)) is None:
            continue
        if name == "encoder_outputs" or len(value) > 1:
            raise ValueError(
                f"{name} has a row for each input, and the pipeline batches inputs by length, in another order: pass "
                "one row for all of them, or call model.generate()."
            )
        options = {**options, name: value.expand(len(numbers), *value.shape[1:])}
    if any(isinstance(processor, EnsembleLogitsProcessor) for processor in options.get("logits_processor") or ()):
        raise ValueError("An EnsembleLogitsProcessor belongs to one batch as it is: call models[0].generate() with it.")
    return options


def sorted_batches(encoded: Sequence[dict[str, Any]], batch_size: int) -> Iterator[list[int]]:
    """The numbers of the rows of each batch, longest first; rows with another first token go into other batches.

    Alone they go as they came, which is how a streamer shows them, and a seed draws for them.
    """
    if batch_size == 1:
        yield from ([i] for i in range(len(encoded)))
        return

    def forced(i: int) -> int:
        return encoded[i].get("forced_bos_token_id", -1)

    order = sorted(range(len(encoded)), key=lambda i: (forced(i), -len(encoded[i]["input_ids"])))
    for _, group in groupby(order, forced):
        rows = list(group)
        yield from (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
