"""The residual connection: the one place that knows norm placement and residual dropout."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from .dropout import Dropout


class Residual(nn.Module):
    """``x + dropout(f(norm(x)))`` for pre-norm, ``norm(x + dropout(f(x)))`` for post-norm.

    ::

        pre    x ──┬── norm ── f ── dropout ──(+)── y        the stream is never normalised:
                   └────────────────────────────┘            gradients reach every layer (arXiv:2002.04745)

        post   x ──┬── f ── dropout ──(+)── norm ── y        as published in 2017
                   └───────────────────┘
    """

    def __init__(self, norm: nn.Module, placement: Literal["pre", "post"], dropout: float) -> None:
        super().__init__()
        self.norm = norm
        self.placement = placement
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.placement == "pre":
            return x + self.dropout(sublayer(self.norm(x)))
        return self.norm(x + self.dropout(sublayer(x)))
