"""Cross-attention to one short source while decoding, its projections multiplied out.

What a token asks of the source depends on it through one matrix, and what it gets through another:

    softmax(x W_q Kᵀ · scale) V W_o = softmax(x A) Z,    A = W_q Kᵀ · scale (C, H·S),    Z = V W_o (H·S, C)

Both are computed once a text. While the source has no more tokens than a head has channels, they are smaller than the
``W_q`` and ``W_o`` that every step would otherwise read.
"""

import torch
from torch import Tensor

from .attention import Attention
from .few_row_linears import are_plain


class SourceAttention:
    """Rows (N, C) that attend to the same source, to what it adds to them (N, C). H heads, S tokens, D head size."""

    def __init__(self, attention: Attention, keys: Tensor, values: Tensor, mask: Tensor | None) -> None:
        """``keys`` and ``values`` (1, K, S, D); ``mask`` (1, 1, 1, S), to be added to the scores, or None."""
        heads = (keys.shape[1] * attention.num_key_value_groups, attention.head_dim)  # H, D
        keys, values = (x[0].repeat_interleave(attention.num_key_value_groups, dim=0) for x in (keys, values))
        query = attention.q_proj.weight.reshape(*heads, -1)  # (H, D, C)
        output = attention.o_proj.weight.T.reshape(*heads, -1)  # (H, D, C)
        self.shape = keys.shape[:2]  # H, S
        self.asked = (keys @ query * attention.scaling).flatten(0, 1).T.contiguous()  # A
        self.given = (values @ output).flatten(0, 1)  # Z
        scores = self.asked.new_zeros(self.shape)
        if mask is not None:
            if (mask == -torch.inf).all():  # nothing to see, and nothing to get, as from torch
                self.given = torch.zeros_like(self.given)
            else:
                scores = scores + mask[0, 0]
        if attention.q_proj.bias is not None:
            scores = scores + (keys @ attention.q_proj.bias.view(*heads, 1))[..., 0] * attention.scaling
        self.scores = scores.flatten()  # of whatever asks
        self.bias = attention.o_proj.bias

    def __call__(self, x: Tensor) -> Tensor:
        scores = torch.addmm(self.scores, x, self.asked)  # (N, H·S)
        weights = scores.unflatten(1, self.shape).softmax(dim=-1).flatten(1)
        return weights @ self.given if self.bias is None else torch.addmm(self.bias, weights, self.given)


def suits(attention: Attention, keys: Tensor) -> bool:
    """Whether there is one source, short, in single precision at least, and no layer but plain ones to multiply out."""
    sources, _, length, size = keys.shape
    plain = are_plain((attention.q_proj, attention.o_proj))
    return sources == 1 and length <= size and keys.dtype.itemsize >= 4 and plain
