"""Where padding is, read off the ids; and the decoder's input, read off the labels."""

from typing import Any

import torch
from torch import Tensor

from .loss import IGNORE_INDEX
from .packing import packed_positions


def mask_of_padding(ids: Tensor, config: Any) -> Tensor:
    """1 at tokens, 0 at padding. (B, S)."""
    return (ids != config.pad_token_id).long()


def mask_of_left_padding(ids: Tensor, config: Any) -> Tensor:
    """0 at the padding before a decoder row, 1 from its start token on. (B, T).

    Padding behind a row needs no mask: causality hides it. Where the start token is the pad token, the last one
    before a row is its start.
    """
    token = ids != config.pad_token_id
    if config.decoder_start_token_id == config.pad_token_id:
        token = torch.cat([token[:, :-1] | token[:, 1:], torch.ones_like(token[:, -1:])], dim=1)
    return (token.long().cumsum(-1) > 0).long()


def shift_right(labels: Tensor, config: Any, cu_seq_lens: Tensor | None = None) -> Tensor:
    """Labels ``y₁ … yₙ`` to decoder input ``start y₁ … yₙ₋₁``, each row's start just before its first label.

    Leading −100 are left padding and stay padding, as −100 anywhere becomes. With ``cu_seq_lens``, each of the
    sequences of a packed row begins with a start of its own.
    """
    shifted = torch.full_like(labels, config.pad_token_id)
    shifted[:, 1:] = labels[:, :-1].masked_fill(labels[:, :-1] == IGNORE_INDEX, config.pad_token_id)
    if cu_seq_lens is not None:
        starts = packed_positions(cu_seq_lens, labels.shape[1]) == 0
        return shifted.masked_fill(starts, config.decoder_start_token_id)
    first = (labels != IGNORE_INDEX).long().argmax(dim=1, keepdim=True)  # 0 in a row without labels
    return shifted.scatter(1, first, config.decoder_start_token_id)


def check_target(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> None:
    """Raises ValueError unless a decoder is given one of the two."""
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError(
            "The decoder needs decoder_input_ids, decoder_inputs_embeds or labels, one of them. Where a Trainer "
            "takes the labels away (label_smoothing_factor), the collator makes the ids: "
            "DataCollatorForSeq2Seq(tokenizer, model=model); or set config.label_smoothing instead."
        )
