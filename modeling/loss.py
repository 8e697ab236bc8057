"""The one loss of the project: the mean over the real target tokens of a whole optimisation step."""

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE_INDEX = -100


def token_cross_entropy(
    logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """``Σ −log p(label) / N`` over labels that are not −100, in fp32 at least. Logits (B, T, V), labels (B, T).

    ``N`` is ``num_items_in_batch``, the target tokens of all micro-batches of the step, so that their losses add up
    to that of the unsplit batch; without it, the target tokens here. Smoothing ε leaves 1−ε on the label and spreads
    ε evenly over the vocabulary (Szegedy et al. 2016, arXiv:1512.00567).
    """
    labels = labels.to(logits.device).flatten()
    logits = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))  # (B·T, V)
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, label_smoothing=label_smoothing, reduction="sum")
    count = (labels != IGNORE_INDEX).sum() if num_items_in_batch is None else num_items_in_batch
    return total / torch.as_tensor(count, device=total.device).clamp(min=1)  # nothing to learn: 0, not NaN
