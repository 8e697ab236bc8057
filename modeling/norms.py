"""Normalisation over channels. Statistics are taken in fp32 whatever the dtype of the input.

One exception is torch's: its CPU kernel of the layer norm keeps mean and deviation for the gradient in that dtype.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LayerNorm(nn.Module):
    """``(x − mean(x)) / sqrt(var(x) + eps) · weight + bias`` over the last dimension.

    Ba et al. 2016 (arXiv:1607.06450).
    """

    def __init__(self, size: int, eps: float, bias: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x²) + eps) · weight`` over the last dimension.

    Zhang & Sennrich 2019 (arXiv:1910.07467).
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
