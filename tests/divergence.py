"""Where two models that should compute the same part ways."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def first_divergence(
    ours: nn.Module, theirs: nn.Module, pairs: Mapping[str, str], inputs: Mapping[str, Tensor], tolerance: float = 1e-5
) -> str | None:
    """The first module of ours, in the order of computation, whose output is not that of its counterpart.

    ``pairs`` maps our modules to theirs; ``inputs`` is one row without padding. The difference is relative, in norm.
    Outputs of unlike shape (position biases) are left to what uses them.
    """
    found, expected = (
        record(model, names, inputs) for model, names in ((ours, pairs.keys()), (theirs, pairs.values()))
    )
    for name, output in found.items():
        other = expected.get(pairs[name])
        if other is None:
            return f"{name}: {pairs[name]} was not called"
        if output.shape != other.shape:
            continue
        difference = float((output - other).norm() / other.norm().clamp(min=1e-30))
        if difference > tolerance:
            return f"{name} ({pairs[name]} there): off by {difference:.1e}"
    return None


@torch.no_grad()
def record(model: nn.Module, names: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What each module returned last, as rows of vectors, in the order of the calls."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Tensor) -> None:
            outputs[name] = output.detach().reshape(-1, output.shape[-1])

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs
