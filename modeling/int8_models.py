"""Int8 models: how one is made and unmade, and what one refuses to do."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import nn
from transformers import PreTrainedModel

from .embeddings import TokenEmbedding
from .int8_arithmetic import quantize_rows
from .int8_modules import Int8Embedding, Int8Linear, Int8Matrix, frozen, set_bias
from .linear import PLAIN, Linear

Matrices = dict[int, tuple[nn.Parameter, nn.Parameter]]  # by the id of what they were made of: what is tied stays tied


class Int8Capable(PreTrainedModel):
    """Every matrix of the model can become int8: projections, head, token vectors. All else stays fp32.

    An int8 model does not train, change dtype or device, or resize: each raises, before anything has changed.
    """

    def become_int8(self) -> None:
        """In place. On the meta device the matrices are empty, to be loaded."""
        matrices: Matrices = {}
        _replace(self, lambda module: _quantized(module, matrices))
        self._tie_scales(True)
        self.requires_grad_(False)

    def become_fp32(self) -> None:
        """In place, and the way back: the matrices that the int8 ones stand for."""
        matrices: dict[int, nn.Parameter] = {}
        _replace(self, lambda module: _dequantized(module, matrices))
        self._tie_scales(False)
        self.requires_grad_(True)

    @property
    def is_int8(self) -> bool:
        return any(isinstance(module, Int8Matrix) for module in self.modules())

    def train(self, mode: bool = True) -> Self:
        if mode and self.is_int8:
            raise RuntimeError("An int8 model cannot be trained: train the fp32 model, then dragoman.quantize(model).")
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        if self.is_int8:
            after = fn(torch.zeros(1))
            if after.dtype != torch.float32 or after.device.type not in ("cpu", "meta"):
                raise RuntimeError(
                    f"An int8 model stays in float32 on the CPU, and cannot go to {after.dtype} on {after.device}: "
                    "model.dequantize() gives one that can be moved and cast."
                )
        return super()._apply(fn, recurse)

    def _get_resized_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        # Private in transformers, and what every resize goes through.
        if self.is_int8:
            raise RuntimeError("An int8 vocabulary cannot be resized: resize the fp32 model, then quantize that.")
        return super()._get_resized_embeddings(*args, **kwargs)

    def _tie_scales(self, tied: bool) -> None:
        """Where a weight is another one, its scale is the other one's."""
        models = [module for module in self.modules() if isinstance(module, PreTrainedModel)]
        for model in models:
            keys: dict[str, str] = model._tied_weights_keys or {}
            keys = {key: owner for key, owner in keys.items() if key.endswith(".weight")}
            scales = {f"{key}_scale": f"{owner}_scale" for key, owner in keys.items()}
            model._tied_weights_keys = {**keys, **scales} if tied else keys
        for model in models:
            model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)


def _replace(model: nn.Module, replacement: Callable[[nn.Module], nn.Module | None]) -> None:
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            new = replacement(module)
            if new is not None:
                setattr(parent, name, new.train(module.training))


def _quantized(module: nn.Module, matrices: Matrices) -> nn.Module | None:
    if type(module) not in (*PLAIN, TokenEmbedding):
        return None
    weight: Any = module.weight
    if id(weight) not in matrices:
        if weight.is_meta:
            q, scale = torch.empty_like(weight, dtype=torch.int8), weight.new_empty(len(weight))
        else:
            q, scale = quantize_rows(weight)
        matrices[id(weight)] = frozen(q), frozen(scale)
    if isinstance(module, TokenEmbedding):
        return Int8Embedding(*matrices[id(weight)], module.scale, module.fixed_id)
    bias: Any = module.bias
    return Int8Linear(*matrices[id(weight)], bias)


def _dequantized(module: nn.Module, matrices: dict[int, nn.Parameter]) -> nn.Module | None:
    if not isinstance(module, Int8Matrix):
        return None
    weight = matrices.setdefault(id(module.weight), nn.Parameter(module.dequantized()))
    rows, columns = weight.shape
    new: nn.Module
    with torch.device("meta"):  # nothing is drawn
        if isinstance(module, Int8Embedding):
            new = TokenEmbedding(rows, columns, module.scale, module.fixed_id)
        else:
            new = Linear(columns, rows, bias=False)
            set_bias(new, module.bias if isinstance(module, Int8Linear) else None)
    new.weight = weight
    return new
