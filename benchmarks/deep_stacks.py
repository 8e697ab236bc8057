"""Deep and narrow stacks for the copy task, as they are and with one thing taken away; and how they are trained."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from dragoman.modeling.norms import LayerNorm, RMSNorm
from dragoman.modeling.residual import Residual
from torch import Tensor, nn

from copy_task import VOCABULARY, sequences
from dragoman import DragomanForConditionalGeneration, presets

Model = DragomanForConditionalGeneration
Placement = Literal["pre", "post"]

STACKS: tuple[tuple[int, Placement], ...] = ((48, "pre"), (24, "post"))
WIDTH, BATCH, LEARNING_RATE, WARMUP = 64, 32, 1e-3, 60


def deep(layers: int, placement: Placement, **overrides: Any) -> Model:
    """A narrow stack of ``layers`` + ``layers``, otherwise that of 2017, without dropout."""
    sizes = {"num_hidden_layers": layers, "intermediate_size": 2 * WIDTH, "num_attention_heads": 4}
    both = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in sizes.items()}
    options = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "dropout": 0.0, "norm_placement": placement}
    torch.manual_seed(0)
    return Model(presets.transformer_base(**{**both, **options, **overrides})).train()


class Unconnected(Residual):
    """A residual that forgot its ``x +``."""

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        return sublayer(self.norm(x)) if self.placement == "pre" else self.norm(sublayer(x))


def remove_residual(model: Model) -> None:
    for module in model.modules():
        if isinstance(module, Residual):
            module.__class__ = Unconnected


def remove_norm(model: Model) -> None:
    for module in model.modules():
        if isinstance(getattr(module, "norm", None), LayerNorm | RMSNorm):
            module.norm = nn.Identity()


@torch.no_grad()
def undo_depth_scaling(model: Model) -> None:
    """Branch outputs with deviation 1/√fan_in instead of 1/√(fan_in · branches): the same draws, larger."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.mul_(getattr(module, "branches", 1) ** 0.5)


def remove_norm_and_undo_depth_scaling(model: Model) -> None:
    remove_norm(model)
    undo_depth_scaling(model)


VARIANTS: dict[str, Callable[[Model], None]] = {
    "as it is": lambda model: None,
    "no residual": remove_residual,
    "no norm": remove_norm,
    "no depth scaling": undo_depth_scaling,
    "neither norm nor depth scaling": remove_norm_and_undo_depth_scaling,
}


def train(model: Model, steps: int) -> list[float]:
    """The loss of every step; ended by one that is not finite. Nothing clips the gradient."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, 1.0) * (1 - step / steps)
    )
    losses: list[float] = []
    while len(losses) < steps and (not losses or math.isfinite(losses[-1])):
        ids, _ = sequences(BATCH, generator)
        loss = model(input_ids=ids, labels=ids.masked_fill(ids == 0, -100)).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses
