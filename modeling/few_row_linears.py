"""Linear layers for a few rows at a time, as decoding has them: the same product by the kernel that is good at it.

torch multiplies single-precision matrices on the CPU by MKL. Where x has a few rows it reads a large weight at a
fraction of the memory's speed; oneDNN is faster, and faster still on a weight in an order of its own.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .int8_modules import Int8Linear
from .linear import PLAIN

WORTH_ONEDNN = 2**18  # weights in a layer: below, its calls cost more than they save
WORTH_PACKING = 2**16


class FewRowLinear:
    """``x Wᵀ + b`` of one layer, or of several that read the same x, whose weights stay where they are.

    What is no plain ``nn.Linear`` (wrapped, quantised, on another device) is called as it is; int8 layers are fused,
    which is exact.
    """

    def __init__(self, *layers: nn.Module) -> None:
        self.layers = layers
        self.calls: list[Callable[[Tensor], Tensor]] = [call_of(layer) for layer in layers]
        self.packed: Callable[[Tensor], Tensor] | None = None
        int8 = [layer for layer in layers if type(layer) is Int8Linear]
        if len(layers) > 1 and len(int8) == len(layers):
            self.packed = Int8Linear.fuse(int8).forward
            self.sizes = [layer.out_features for layer in int8]

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.packed is not None:
            return self.packed(x).split(self.sizes, dim=-1)
        return tuple([call(x) for call in self.calls])

    def pack(self, rows: int) -> None:
        """Go on with one copy of the weights in oneDNN's order, which takes as long as ten to twenty products."""
        weights = [layer.weight.detach() for layer in self.layers if is_plain(layer)]
        if len(weights) < len(self.layers) or sum(w.numel() for w in weights) < WORTH_PACKING:
            return
        biases = [layer.bias for layer in self.layers if isinstance(layer.bias, Tensor)]
        if biases and len(biases) < len(weights):
            return
        self.sizes = [len(weight) for weight in weights]
        weight = torch.ops.mkldnn._reorder_linear_weight(torch.cat(weights) if len(weights) > 1 else weights[0], rows)
        self.packed = onednn(weight, torch.cat(biases) if biases else None)


def call_of(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    if not is_plain(layer):
        return layer
    if layer.weight.numel() >= WORTH_ONEDNN:
        return onednn(layer.weight, layer.bias)
    return partial(F.linear, weight=layer.weight, bias=layer.bias)


def is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """A linear layer that is no more than its weight and bias, its weight a plain tensor in fp32 on the CPU."""
    return (
        ONEDNN
        and type(layer) in PLAIN
        and type(layer.weight.data) is Tensor
        and layer.weight.dtype == torch.float32
        and layer.weight.device.type == "cpu"
        and layer.weight.is_contiguous()
    )


def onednn(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    operator = torch.ops.mkldnn._linear_pointwise.default  # no public name leads to it
    return lambda x: operator(x, weight, bias, "none", [], "")


def probe() -> bool:
    """Whether this torch has the two operators, and they compute what they should."""
    if not torch.backends.mkldnn.is_available():
        return False
    x, weight, bias = torch.eye(3, 16), torch.arange(128.0).view(8, 16), torch.ones(8)
    try:
        found = [onednn(w, bias)(x) for w in (weight, torch.ops.mkldnn._reorder_linear_weight(weight, 3))]
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return all(torch.equal(y, F.linear(x, weight, bias)) for y in found)


with torch.no_grad():
    ONEDNN = probe()
