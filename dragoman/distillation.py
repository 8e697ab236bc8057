"""Learning from teachers: what other models would write, and how surely, beside the labels."""

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.trainer_utils import unwrap_peft_model

from .ensemble import check_alike
from .modeling.loss import IGNORE_INDEX, mean_over_labels
from .packing import check_takes_packed


class Teachers:
    """Models that another learns from, one at every step, in turn.

    With several the expected gradient is that of the mean of their probabilities, which is what
    ``EnsembleLogitsProcessor`` writes by, at the cost of one.

    Raises:
        TypeError: for models without a packed path, where batches are ``packed``.
        ValueError: for models of another vocabulary, or beside what computes the loss in another way.
    """

    def __init__(
        self, models: Sequence[PreTrainedModel], student: Any, args: Any, has_own_loss: bool, packed: bool
    ) -> None:
        check_alike([student, *models], "model and its teachers")
        if any(model is student for model in models):
            raise ValueError("The model cannot be its own teacher: load the checkpoint a second time.")
        for name, given in (
            ("compute_loss_func", has_own_loss),
            ("label_smoothing_factor", args.label_smoothing_factor),
            ("several GPUs in one process", args.n_gpu > 1),
        ):
            if given:
                raise ValueError(
                    f"teachers do not go with {name}: the loss is the model's own (smoothed by label_smoothing in its "
                    "configuration), on one device a process (accelerate launch, torchrun)."
                )
        for model in models if packed else ():
            check_takes_packed(model)
        self.models = [model.to(args.device).eval() for model in models]
        self.weight: float = getattr(args, "teacher_weight", 0.5)
        self.options = {"return_logits": True} if may_return_logits(student) else {}

    def beside(self, student: nn.Module, step: int) -> Any:
        """The student, to be called as a model, with a loss that its teacher of this step has its share in."""
        return functools.partial(taught, student, self.models[step % len(self.models)], self.weight, self.options)


def may_return_logits(model: Any) -> bool:
    """Whether a model asks whether to: a stock one always does."""
    return "return_logits" in inspect.signature(unwrap_peft_model(model).forward).parameters


def taught(student: nn.Module, teacher: nn.Module, weight: float, options: dict[str, Any], **inputs: Any) -> Any:
    """What the student returns, with ``(1 − w) · loss + w · Σ −q(token) log p(token) / N`` for its loss.

    The sum is over the vocabulary at each label that is not −100, of the student's probabilities p and the teacher's q;
    N is the number of labels of the step (Hinton et al. 2015, arXiv:1503.02531; by words: Kim & Rush 2016,
    arXiv:1606.07947). Logits of both are whole, (B, T, V).
    """
    outputs = student(**inputs, **options, return_dict=True)
    count = inputs.pop("num_items_in_batch", None)
    with torch.no_grad():
        logits = teacher(**inputs, return_dict=True).logits.flatten(0, 1)  # (N, V)
    wide = torch.promote_types(logits.dtype, torch.float32)
    told = logits.softmax(-1, dtype=wide)
    losses = F.cross_entropy(outputs.logits.flatten(0, 1).to(wide), told, reduction="none")
    labels = inputs["labels"].flatten()
    total = losses.masked_fill(labels == IGNORE_INDEX, 0.0).sum()
    outputs.loss = (1 - weight) * outputs.loss + weight * mean_over_labels(total, labels, count)
    return outputs
