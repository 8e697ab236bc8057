"""The linear layer, computed by the kernel that is good at it.

torch multiplies single-precision matrices on the CPU by MKL. oneDNN, which it also has, was up to twice as fast,
forwards and backwards, where ``benchmarks/linear_products.py`` measured it (docs/performance.md).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WORTH = 2**23  # multiplications: fewer take no longer than asking


class Linear(nn.Linear):
    """``x Wᵀ + b``. In fp32 on the CPU large products are oneDNN's; the rest is ``nn.Linear``'s own."""

    def forward(self, x: Tensor) -> Tensor:
        if not is_worth_onednn(x, self.weight):
            return super().forward(x)
        if torch.is_grad_enabled():
            return _Product.apply(x, self.weight, self.bias)
        return onednn_product(x, self.weight, self.bias)


PLAIN = (nn.Linear, Linear)  # no more than their weight and bias say


def is_worth_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        x.numel() * len(weight) >= WORTH
        and HAS_ONEDNN
        and x.device.type == "cpu" == weight.device.type
        and x.dtype == torch.float32 == weight.dtype
        and type(x.data) is Tensor is type(weight.data)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()  # which chooses for itself
    )


def onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x Wᵀ + b``, x (..., K), weight (N, K), without a gradient."""
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")  # no public name leads to it


class _Product(torch.autograd.Function):
    """Gradients ``g W`` of x, ``gᵀ x`` of W and ``Σ g`` of b."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return onednn_product(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        g = gradient.reshape(-1, gradient.shape[-1])  # (M, N)
        # A gradient that will itself be differentiated is left to what torch can differentiate.
        multiply = F.linear if torch.is_grad_enabled() else onednn_product
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = multiply(g, weight.T).view(x.shape)
        if ctx.needs_input_grad[1]:
            of_weight = multiply(g.T, x.reshape(-1, x.shape[-1]).T)
        if ctx.needs_input_grad[2]:
            of_bias = g.sum(0)
        return of_x, of_weight, of_bias


def probe() -> bool:
    """Whether this torch has the operator, and it computes what it should."""
    if not torch.backends.mkldnn.is_available():
        return False
    x, weight, bias = torch.eye(3, 16), torch.arange(128.0).view(8, 16), torch.ones(8)
    try:
        return torch.equal(onednn_product(x, weight, bias), F.linear(x, weight, bias))
    except (AttributeError, NotImplementedError, RuntimeError):
        return False


with torch.no_grad():
    HAS_ONEDNN = probe()
