"""Muon for the matrices of the layers, AdamW for all other weights, as one optimizer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer
from transformers import PreTrainedModel


def layer_matrices(model: nn.Module) -> list[Tensor]:
    """The weights that train in linear layers, but for heads, which write logits, and what is tied to an embedding."""
    modules = list(model.modules())
    models = [module for module in modules if isinstance(module, PreTrainedModel)]
    inner = {part for each in models for part in each.base_model.modules()}
    heads = [part for each in models for part in each.modules() if part not in inner]
    heads += [each.get_output_embeddings() for each in models]  # T5's is inner, too
    tables = [module for module in modules if isinstance(module, nn.Embedding)]
    left_out = {id(getattr(module, "weight", None)) for module in (*heads, *tables)}
    weights = {id(m.weight): m.weight for m in modules if isinstance(m, nn.Linear) and m.weight.requires_grad}
    return [weight for key, weight in weights.items() if key not in left_out]


class MuonAdamW(Optimizer):
    """Muon (Jordan et al. 2024) where weights are matrices between hidden states, AdamW where they are not.

    A matrix ``W`` (m, n) of gradient ``G`` is turned by all its singular directions alike, however small the gradient
    along them is::

        B ← μ B + (1 − μ) G
        W ← (1 − lr λ) W − lr · 0.2 √max(m, n) · UVᵀ      where  U S Vᵀ = μ B + (1 − μ) G

    with ``UVᵀ`` by five Newton-Schulz steps in bfloat16, which leave singular values between about .7 and 1.2. The
    factor gives the update the root mean square of AdamW's (Liu et al. 2025, "Muon is Scalable for LLM Training"), so
    that a learning rate and a weight decay ``λ`` found for AdamW do for both. Embeddings, the matrix that writes the
    logits, biases and norms are AdamW's; what has one dimension is not decayed.

    Raises:
        ValueError: where no linear layer of the model trains.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        matrices = layer_matrices(model)
        if not matrices:
            raise ValueError(
                f"Muon is for the matrices of linear layers, and no such layer of this {type(model).__name__} trains "
                "(in FSDP's first version they are flat): use AdamW."
            )
        by_muon = {id(weight) for weight in matrices}
        others = [p for p in model.parameters() if p.requires_grad and id(p) not in by_muon]
        groups = [
            {"params": [p for p in others if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
        ]
        muon = Muon(matrices, lr, weight_decay, momentum, adjust_lr_fn="match_rms_adamw")
        adamw = AdamW(groups, lr, betas, eps, fused=True)
        self.parts = (muon, adamw)
        both = [{**group, "muon": part is muon} for part in self.parts for group in part.param_groups]
        super().__init__(both, {"lr": lr})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if "muon" not in param_group:
            raise ValueError("MuonAdamW divides the weights of a model itself: let them train, and make it anew.")
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if any("muon" not in group for group in state_dict["param_groups"]):
            raise ValueError(
                "The state of the optimizer that is to be loaded is not MuonAdamW's: resume with the one that the "
                "checkpoint was trained with (muon=False), or begin a new training from its weights."
            )
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:  # groups and states are here, where schedules and checkpoints look for them
            part.param_groups = [group for group in self.param_groups if group["muon"] == isinstance(part, Muon)]
            part.state = self.state
            part.step()
        return loss

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "parts": self.parts}
