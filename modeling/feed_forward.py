"""The position-wise network, plain or gated."""

from torch import Tensor, nn
from transformers.activations import ACT2FN

from .dropout import Dropout
from .linear import Linear


class FeedForward(nn.Module):
    """``down(act(up(x)))``, or ``down(act(gate(x)) · up(x))`` when gated. Maps (B, T, C) to (B, T, C).

    Vaswani et al. 2017, section 3.3; gates: Shazeer 2020 (arXiv:2002.05202).
    """

    def __init__(self, size: int, intermediate_size: int, act: str, gated: bool, bias: bool, dropout: float) -> None:
        super().__init__()
        self.gate_proj = Linear(size, intermediate_size, bias=bias) if gated else None
        self.up_proj = Linear(size, intermediate_size, bias=bias)
        self.down_proj = Linear(intermediate_size, size, bias=bias)
        self.act = ACT2FN[act]
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up_proj(x)  # (B, T, F)
        hidden = self.act(hidden) if self.gate_proj is None else self.act(self.gate_proj(x)) * hidden
        return self.down_proj(self.dropout(hidden))
