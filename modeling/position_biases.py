"""Where two tokens stand to each other, told to attention: one tensor ``(B, H, T, S)`` added to the scores."""

import math
from typing import Any, Self

import torch
from torch import Tensor, nn

BIASED_SCHEMES = ("alibi", "relative")  # of config.position_encoding


class AlibiBias(nn.Module):
    """``−mₕ · |p − q|``: attention fades with distance, at a fixed rate per head.

    Press et al. 2022 (arXiv:2108.12409), in both directions for the encoder.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.slopes = nn.Buffer(alibi_slopes(num_heads), persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Other dtypes round them, and ``to_empty()`` has none: they are computed anew."""
        super()._apply(fn, recurse)
        if not self.slopes.is_meta:
            self.slopes = nn.Buffer(alibi_slopes(len(self.slopes)).to(self.slopes), persistent=False)
        return self

    def forward(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        distance = (key_positions[:, None, :] - query_positions[:, :, None]).abs()  # (B, T, S)
        return -self.slopes[None, :, None, None] * distance[:, None]  # (B, H, T, S)


def alibi_slopes(num_heads: int) -> Tensor:
    """``2^(−8i/n)``, i = 1 … n; where n is no power of two, every other slope of the next power fills up."""
    n = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * i / n) for i in range(1, n + 1)]
    slopes += [2 ** (-8 * i / (2 * n)) for i in range(1, 2 * n + 1, 2)][: num_heads - n]
    return torch.tensor(slopes)


class RelativeBias(nn.Module):
    """One trained number a head and a bucket of distances: exact while near, logarithmic farther off.

    Raffel et al. 2020 (arXiv:1910.10683), section 2.1. The encoder's buckets tell left from right.
    """

    def __init__(self, num_heads: int, num_buckets: int, max_distance: int, bidirectional: bool) -> None:
        super().__init__()
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.bidirectional = bidirectional
        self.weight = nn.Parameter(torch.empty(num_buckets, num_heads))

    def forward(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        distance = key_positions[:, None, :] - query_positions[:, :, None]  # (B, T, S)
        buckets = relative_buckets(distance, self.num_buckets, self.max_distance, self.bidirectional)
        return self.weight[buckets].permute(0, 3, 1, 2)  # (B, H, T, S)


def relative_buckets(distance: Tensor, num_buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    """The bucket of each ``key − query`` distance, in [0, num_buckets)."""
    if bidirectional:
        num_buckets //= 2
        offset = (distance > 0) * num_buckets  # the upper half is for keys to the right
        distance = distance.abs()
    else:
        offset = torch.zeros_like(distance)
        distance = (-distance).clamp(min=0)
    exact = num_buckets // 2
    # float32 on purpose: published weights were trained with its rounding at bucket borders
    ratio = (distance.clamp(min=1).float() / exact).log() / math.log(max_distance / exact)
    logarithmic = (exact + (ratio * (num_buckets - exact)).long()).clamp(max=num_buckets - 1)
    return offset + torch.where(distance < exact, distance, logarithmic)
