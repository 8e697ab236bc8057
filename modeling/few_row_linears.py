"""Linear layers for a few rows at a time, as decoding has them: the same product by the kernel that is good at it.

torch multiplies single-precision matrices on the CPU by MKL. Where x has a few rows it reads a large weight at a
fraction of the memory's speed; oneDNN is faster, and faster still on a weight in an order of its own.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .int8_modules import Int8Linear
from .linear import PLAIN

WORTH_ONEDNN = 2**18  # weights in a layer: below, its calls cost more than they save
WORTH_PACKING = 2**16
WORTH_JOINING = 2**20  # above, copying the weights costs more than the calls saved
Product = Callable[[Tensor], Tensor]  # (M, K) -> (M, N)


class FewRowLinear:
    """``x Wᵀ + b``, (M, K) to (M, N), of one layer, or of several that read the same x, side by side.

    What is no plain ``nn.Linear`` (wrapped, quantised by others) is called as it is, with (M, 1, K); int8 layers are
    joined, which is exact.
    """

    def __init__(self, *layers: nn.Module) -> None:
        self.layers = layers
        self.packed = False
        self.product = product_of(layers)

    def __call__(self, x: Tensor) -> Tensor:
        return self.product(x)

    def pack(self, rows: int) -> None:
        """Go on with one copy of the weights in oneDNN's order, which takes as long as ten to twenty products."""
        if not are_plain(self.layers) or not all(suits_onednn(layer.weight) for layer in self.layers):
            return
        if sum(layer.weight.numel() for layer in self.layers) >= WORTH_PACKING:
            weight, bias = joined(self.layers)
            self.product = onednn(torch.ops.mkldnn._reorder_linear_weight(weight, rows), bias)
            self.packed = True


def product_of(layers: Sequence[nn.Module]) -> Product:
    if all(type(layer) is Int8Linear for layer in layers):
        return (layers[0] if len(layers) == 1 else Int8Linear.fuse(layers)).forward  # type: ignore[arg-type]
    if not are_plain(layers):
        products = [product_of([layer]) if are_plain([layer]) else as_it_is(layer) for layer in layers]
    elif len(layers) == 1 or sum(layer.weight.numel() for layer in layers) < WORTH_JOINING:
        return product(*joined(layers))
    else:
        products = [product_of([layer]) for layer in layers]
    return products[0] if len(products) == 1 else lambda x: torch.cat([product(x) for product in products], dim=-1)


def as_it_is(layer: nn.Module) -> Product:
    def call(x: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():  # what it keeps of its own is to serve training, too
            return layer(x[:, None])[:, 0]

    return call


def are_plain(layers: Sequence[nn.Module]) -> TypeGuard[Sequence[nn.Linear]]:
    """Whether they are no more than their weight and bias."""
    return all(type(layer) in PLAIN and type(layer.weight.data) is Tensor for layer in layers)


def joined(layers: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    if len(layers) == 1:
        return layers[0].weight, layers[0].bias
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    if all(bias is None for bias in biases):
        return torch.cat(weights), None
    pairs = zip(weights, biases, strict=True)
    return torch.cat(weights), torch.cat([w.new_zeros(len(w)) if b is None else b for w, b in pairs])


def product(weight: Tensor, bias: Tensor | None) -> Product:
    if suits_onednn(weight) and weight.numel() >= WORTH_ONEDNN:
        return onednn(weight, bias)
    return partial(torch.mm, mat2=weight.T) if bias is None else partial(torch.addmm, bias, mat2=weight.T)


def suits_onednn(weight: Tensor) -> bool:
    return ONEDNN and weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.is_contiguous()


def onednn(weight: Tensor, bias: Tensor | None) -> Product:
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
