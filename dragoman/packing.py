"""Batches without padding: the rows of a batch laid one after another."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .modeling.loss import IGNORE_INDEX
from .modeling.padding import shift_right

MULTIPLE = 8  # that longest sequences are rounded up to: fewer shapes, and none that a compiler treats as a case apart


def check_takes_packed(model: Any) -> None:
    """Raises TypeError for a model without a packed path, which would read all rows as one, or not read them."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # of an adapter
    if "decoder_cu_seq_lens" not in inspect.signature(inner.forward).parameters:
        raise TypeError(
            f"{type(inner).__name__} takes no packed batches (decoder_cu_seq_lens): leave packing out, and collate for "
            "it with transformers.DataCollatorForSeq2Seq."
        )


@dataclass
class DataCollatorForPackedSeq2Seq:
    """Rows with ``input_ids`` and ``labels`` to one row each of sources and of targets, for ``model(**batch)``.

    Called as transformers' ``DataCollatorForSeq2Seq`` is, whose batch has the same loss and gradients; no tokenizer is
    needed, since nothing is padded. What ``attention_mask`` and −100 at the ends of labels mark as padding is dropped.
    Rows are put in order of length: attention takes neighbours of equal lengths at once.

    Returns ``input_ids`` (1, S), ``labels`` (1, T) with S and T tokens in all, and of N rows ``cu_seq_lens`` and
    ``decoder_cu_seq_lens`` (N + 1): source i is tokens ``cu_seq_lens[i]`` to ``cu_seq_lens[i + 1]``. No source is
    longer than ``max_seq_len``, no target than ``decoder_max_seq_len``, two numbers. With a model also
    ``decoder_input_ids``, which a Trainer with ``label_smoothing_factor`` needs.

    Raises:
        TypeError: at once, for a model without a packed path.
        ValueError: for a row without source tokens or without labels, or with a class for labels.
    """

    tokenizer: Any = None
    model: Any = None

    def __post_init__(self) -> None:
        if self.model is not None:
            check_takes_packed(self.model)

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        for i, feature in enumerate(features):
            sides = [feature.get(name) for name in ("input_ids", "labels")]
            if any(side is None or torch.as_tensor(side).dim() != 1 for side in sides):
                raise ValueError(
                    f"Row {i} of the batch must have lists of tokens as input_ids and labels; it has "
                    f"{', '.join(feature)}. Tokenize first: tokenizer(source, text_target=target)."
                )
        rows = [(source_tokens(feature), target_tokens(feature)) for feature in features]
        for i, (source, target) in enumerate(rows):
            if len(source) == 0 or len(target) == 0:
                raise ValueError(
                    f"Row {i} of the batch has no {'labels' if len(source) else 'source tokens'}: leave such rows out "
                    "of the data, or end every sequence with the end token."
                )
        sources, targets = zip(*sorted(rows, key=lambda row: (len(row[0]), len(row[1]))), strict=True)
        batch: dict[str, Any] = {
            "input_ids": torch.cat(sources)[None],
            "cu_seq_lens": _ends(sources),
            "max_seq_len": _longest(sources),
            "labels": torch.cat(targets)[None],
            "decoder_cu_seq_lens": _ends(targets),
            "decoder_max_seq_len": _longest(targets),
        }
        if self.model is not None:
            shifted = shift_right(batch["labels"], self.model.config, batch["decoder_cu_seq_lens"])
            batch["decoder_input_ids"] = shifted
        return batch


def source_tokens(feature: Mapping[str, Any]) -> Tensor:
    ids = torch.as_tensor(feature["input_ids"], dtype=torch.long)
    mask = feature.get("attention_mask")
    return ids if mask is None else ids[torch.as_tensor(mask).bool()]


def target_tokens(feature: Mapping[str, Any]) -> Tensor:
    labels = torch.as_tensor(feature["labels"], dtype=torch.long)
    real = (labels != IGNORE_INDEX).nonzero()
    return labels[int(real.min()) : int(real.max()) + 1] if len(real) else labels[:0]


def _ends(rows: Sequence[Tensor]) -> Tensor:
    return torch.tensor([0, *(len(row) for row in rows)]).cumsum(0).int()


def _longest(rows: Sequence[Tensor]) -> int:
    return -(-max(len(row) for row in rows) // MULTIPLE) * MULTIPLE
