"""The two modules of an int8 model, a linear map and the embedding of tokens, which may hold the same matrix."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .embeddings import check_ids
from .int8_arithmetic import Int8Product


def frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def set_bias(layer: nn.Module, bias: Tensor | None) -> None:
    """A parameter where it was one, a buffer where it was one: the head's is not trained."""
    if hasattr(layer, "bias"):
        del layer.bias
    if bias is None or isinstance(bias, nn.Parameter):
        layer.register_parameter("bias", bias)
    else:
        layer.register_buffer("bias", bias)


class Int8Matrix(nn.Module):
    """``weight`` (N, K) int8 and ``weight_scale`` (N) fp32, which stand for ``weight · weight_scale``. Not trained."""

    weight: nn.Parameter
    weight_scale: nn.Parameter

    def __init__(self, weight: nn.Parameter, weight_scale: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight
        self.weight_scale = weight_scale  # a parameter only because transformers ties no buffers

    def dequantized(self) -> Tensor:
        """The fp32 matrix that is meant. (N, K)."""
        return self.weight * self.weight_scale[:, None]


class Int8Embedding(Int8Matrix):
    """``E[id] · scale``, as :class:`TokenEmbedding`, of the rows of an int8 matrix."""

    def __init__(
        self, weight: nn.Parameter, weight_scale: nn.Parameter, scale: float, fixed_id: int | None = None
    ) -> None:
        super().__init__(weight, weight_scale)
        self.num_embeddings, self.embedding_dim = weight.shape
        self.scale = scale
        self.fixed_id = fixed_id  # for dequantize()

    def forward(self, ids: Tensor) -> Tensor:
        check_ids(ids, self.weight.shape[0], "Token id")
        row_scale = F.embedding(ids, self.weight_scale[:, None]) * self.scale  # (B, T, 1)
        return F.embedding(ids, self.weight) * row_scale  # (B, T, C)


class Int8Linear(Int8Matrix):
    """``x Wᵀ + b`` with an int8 ``W``: (..., K) to (..., N), by :class:`Int8Product`.

    Made ready for the kernel on first use, and again after its tensors were replaced or loaded anew.

    Raises:
        RuntimeError: for an input that asks for a gradient, which rounding has none of.
    """

    bias: Tensor | None
    _ready: Int8Product | None

    def __init__(
        self, weight: nn.Parameter, weight_scale: nn.Parameter, bias: Tensor | None, lasting: bool = True
    ) -> None:
        super().__init__(weight, weight_scale)
        self.lasting = lasting  # and worth a second copy for batches, where it is large
        self.out_features, self.in_features = weight.shape
        set_bias(self, bias)

    @classmethod
    def fuse(cls, layers: "Sequence[Int8Linear]") -> "Int8Linear":
        """One layer for several that read the same input, such as q, k and v: their outputs side by side.

        Bit for bit what the layers give one by one, since every output has a scale of its own and sums are exact, in
        one call instead of several. It holds copies of their tensors: make it once, outside the model's modules, so
        that it is neither saved nor counted::

            q, k, v = Int8Linear.fuse([a.q_proj, a.k_proj, a.v_proj])(x).split(sizes, dim=-1)
        """
        weight = torch.cat([layer.weight for layer in layers])
        scale = torch.cat([layer.weight_scale for layer in layers])
        biases = [torch.zeros(layer.out_features) if layer.bias is None else layer.bias for layer in layers]
        bias = None if all(layer.bias is None for layer in layers) else frozen(torch.cat(biases))
        return cls(frozen(weight), frozen(scale), bias, lasting=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            raise RuntimeError(
                "No gradient passes through int8 weights: call it under torch.no_grad(), or train the fp32 model "
                "(model.dequantize() gives one) and quantize that."
            )
        product = self._ready or self._make_ready()
        if x.dim() == 2:
            return product(x)
        return product(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)

    def _make_ready(self) -> Int8Product:
        self._ready = Int8Product(self.weight, self.weight_scale, self.bias, self.lasting)
        return self._ready

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name != "_ready":
            self.__dict__["_ready"] = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ready": None}  # copies and pickles

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._ready = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._ready = None

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
