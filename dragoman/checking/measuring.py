"""What lines ask of a model: logits at real positions, a loss with its gradient."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .batches import Batch, cross_entropy
from .subjects import Subject


@torch.no_grad()
def real_logits(model: Any, batch: Batch, real: Tensor | None = None, **changes: Any) -> Tensor:
    """Logits at the real target positions, row after row, (N, V). ``changes`` replace or add to the inputs."""
    logits: Tensor = model(**{**batch.teacher_forced(use_cache=False), **changes}).logits
    return logits[(batch.target_mask if real is None else real).bool()]


def loss_and_gradient(subject: Subject, model: Any, batch: Batch | Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The loss, and the gradient of every parameter as one vector. The mean by hand where the subject has none."""
    model.zero_grad(set_to_none=True)
    if not isinstance(batch, Batch):
        loss = model(**batch).loss
    elif subject.forward_only:
        loss = cross_entropy(model(**batch.teacher_forced()).logits, batch.labels).mean()
    else:
        loss = model(**batch.supervised()).loss
    loss.backward()
    gradient = flat_gradient(model)
    model.zero_grad(set_to_none=True)
    return loss.detach(), gradient


def flat_gradient(model: torch.nn.Module) -> Tensor:
    """The gradient of every parameter, as one vector, 0 where there is none; a tied parameter counts once."""
    gradients = (torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters())
    return torch.cat([gradient.detach().flatten() for gradient in gradients])
