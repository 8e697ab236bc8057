"""Dropout that does not wait for its random numbers."""

import torch
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """``x · keep / P(keep)`` in training (Srivastava et al., 2014).

    On the CPU torch's own spends most of its time on random numbers, one an element, and keeps a mask of the type of x.
    Here each has 16 bits of one, and the mask is of bytes. For that p is rounded down to a multiple of 2⁻¹⁶, and the
    result scaled to match.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        dropped = int(self.p * 2**16)
        if dropped in (0, 2**16):
            return super().forward(x)
        numbers = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        keep = numbers.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - 2**15
        return (x * keep).mul_(2**16 / (2**16 - dropped))
