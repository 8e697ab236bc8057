"""Attention before the Transformer: ``context = Σ αᵢ hᵢ``, weights ``α = softmax(score(query, key))``.

B batch, T queries, S keys, C channels.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from transformers.utils.generic import maybe_autocast

Score = Callable[[Tensor, Tensor], Tensor]  # (B, T, C), (B, S, C) → (B, T, S)


def records_attention(selection: bool | Sequence[int] | None) -> bool:
    """Whether to return weights. Raises ValueError for a layer that there is not: a decoder attends once."""
    if selection is None or isinstance(selection, bool):
        return bool(selection)
    if not isinstance(selection, Sequence) or not set(selection) <= {0}:
        raise ValueError(f"output_attentions takes True, False or [0], not {selection!r}: a decoder attends once.")
    return len(selection) > 0


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, score: Score) -> tuple[Tensor, Tensor]:
    """``softmax(score(query, keys)) values``: context (B, T, C) and weights (B, T, S).

    Where ``mask`` (B, S) is 0 so are the weights; in a row of nothing else they are even.
    """
    scores = score(query, keys)  # (B, T, S)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if mask is not None:
        scores = scores.masked_fill(mask[:, None] == 0, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1).to(values.dtype)
    return weights @ values, weights


def dot_score(query: Tensor, keys: Tensor) -> Tensor:
    """``qᵀk``, in fp32 at least: half-precision scores, once large, are all alike."""
    precise = torch.promote_types(query.dtype, torch.float32)
    with maybe_autocast(query.device.type, enabled=False):
        return query.to(precise) @ keys.to(precise).transpose(1, 2)


def additive_score(query: Tensor, keys: Tensor, weigh: Callable[[Tensor], Tensor]) -> Tensor:
    """``vᵀ tanh(q + k)``, q and k projected already; ``weigh`` is ``vᵀ ·``, (…, C) to (…, 1)."""
    return weigh((query[:, :, None] + keys[:, None]).tanh())[..., 0]  # (B, T, S, C) to (B, T, S)


class RecurrentAttention(nn.Module):
    """The four scores of Bahdanau et al. 2015 and Luong et al. 2015 over projected queries and keys.

    ==================  =====================
    dot                 ``qᵀk``
    general             ``qᵀ W k``
    additive, concat    ``vᵀ tanh(U q + W k)``
    ==================  =====================

    ``additive`` and ``concat`` are one score; they differ in the state that asks (:mod:`recurrent_decoder`).
    """

    def __init__(self, size: int, kind: Literal["additive", "dot", "general", "concat"]) -> None:
        super().__init__()
        is_additive = kind in ("additive", "concat")
        self.k_proj = nn.Linear(size, size, bias=False) if kind != "dot" else None
        self.q_proj = nn.Linear(size, size, bias=False) if is_additive else None
        self.score_vector = nn.Linear(size, 1, bias=False) if is_additive else None

    def project_keys(self, states: Tensor) -> Tensor:
        """Encoder states (B, S, C) to keys, once a source."""
        return states if self.k_proj is None else self.k_proj(states)

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Decoder states (B, T, C) to contexts (B, T, C) and weights (B, T, S)."""
        if self.q_proj is None or self.score_vector is None:
            return attend(query, keys, values, mask, dot_score)
        weigh = self.score_vector  # as a module, whose weight an adapter may change
        return attend(self.q_proj(query), keys, values, mask, lambda q, k: additive_score(q, k, weigh))
