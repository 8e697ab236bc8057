"""The loss of a classifier: the mean over the labels of a whole optimisation step.

B examples, L outputs (classes, or numbers to predict).
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from .loss import IGNORE_INDEX, mean_over_labels

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
SINGLE: ProblemType = "single_label_classification"
MULTI: ProblemType = "multi_label_classification"
REGRESSION: ProblemType = "regression"


def infer_problem_type(num_labels: int, labels: Tensor) -> ProblemType:
    """As transformers: one output is a number to predict; of several, an integer names one, floats weigh all."""
    if num_labels == 1:
        return REGRESSION
    return MULTI if labels.is_floating_point() else SINGLE


def classification_loss(
    logits: Tensor,
    labels: Tensor,
    problem_type: str,
    num_items_in_batch: Tensor | int | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """``Σ loss(label) / N`` over labels that are not −100, in fp32 at least. Logits (B, L).

    ===========================  ============================  =======================================
    problem type                 labels                        loss(label)
    ===========================  ============================  =======================================
    single_label_classification  (B), integers in [0, L)       ``−log softmax(logits)[label]``
    multi_label_classification   (B, L), 0, 1 or between       ``−y log σ(logit) − (1−y) log σ(−logit)``
    regression                   (B, L), or (B) where L is 1   ``(logit − y)²``
    ===========================  ============================  =======================================

    ``N`` is ``num_items_in_batch``, the labels of all micro-batches of the step as Trainer counts them, so that their
    losses add up to that of the unsplit batch; without it, the labels here. Smoothing, of single labels only, leaves
    1−ε on the label and spreads ε evenly over the classes (Szegedy et al. 2016, arXiv:1512.00567).

    Raises:
        ValueError: for labels of another shape or type. IndexError: for a class outside [0, L).
    """
    check_labels(logits, labels, problem_type)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    labels = labels.to(logits.device)
    if problem_type == SINGLE:
        labels = labels.flatten().long()
        total = F.cross_entropy(
            logits, labels, ignore_index=IGNORE_INDEX, label_smoothing=label_smoothing, reduction="sum"
        )
    else:
        labels = labels.to(logits.dtype).view_as(logits)
        known = labels != IGNORE_INDEX
        measure = F.binary_cross_entropy_with_logits if problem_type == MULTI else F.mse_loss
        losses = measure(logits, labels.masked_fill(~known, 0.0), reduction="none")
        total = losses.masked_fill(~known, 0.0).sum()
    return mean_over_labels(total, labels, num_items_in_batch)


def check_labels(logits: Tensor, labels: Tensor, problem_type: str) -> None:
    """Shapes and types; the values of classes on the CPU only, for elsewhere the look would make every step wait."""
    (rows, outputs), found = logits.shape, tuple(labels.shape)
    if problem_type != SINGLE:
        if found != (rows, outputs) and not (outputs == 1 and found == (rows,)):
            raise ValueError(
                f"problem_type={problem_type!r} needs labels of shape {(rows, outputs)}, one a row and output; got "
                f"{found}."
            )
        return
    if labels.is_floating_point() or found not in ((rows,), (rows, 1)):
        raise ValueError(
            f"problem_type={problem_type!r} needs one integer a row, shape {(rows,)}; got {labels.dtype} of shape "
            f"{found}. For several labels a row set problem_type={MULTI!r}, for numbers to predict {REGRESSION!r}."
        )
    if labels.device.type != "cpu" or labels.numel() == 0 or torch.compiler.is_compiling():
        return
    lowest, highest = (int(bound) for bound in labels.masked_fill(labels == IGNORE_INDEX, 0).aminmax())
    if lowest < 0 or highest >= outputs:
        raise IndexError(
            f"Label {lowest if lowest < 0 else highest} is outside the {outputs} classes, 0 to {outputs - 1}: does "
            "num_labels (or id2label) of the configuration count them all?"
        )
