"""What ``DragomanTrainer`` can be told besides all that ``Seq2SeqTrainingArguments`` knows."""

import os
from dataclasses import dataclass, field
from typing import Any

from transformers import Seq2SeqTrainingArguments


@dataclass
class DragomanTrainingArguments(Seq2SeqTrainingArguments):
    """``Seq2SeqTrainingArguments`` for ``DragomanTrainer``: by numbers of tokens, by the clock, by Muon, from teachers.

    Args:
        tokens_per_batch (`int`, *optional*):
            Train on batches of at most so many tokens, source and target and padding, instead of
            ``per_device_train_batch_size`` rows: on each device, in each of the ``gradient_accumulation_steps``.
            Evaluation and prediction keep ``per_device_eval_batch_size`` and the order of the data. ``torch_compile``
            then makes graphs for all shapes (``ACCELERATE_DYNAMO_USE_DYNAMIC``, where that is not set).
        packing (`bool`, *optional*, defaults to `False`):
            Pack these batches instead of padding them. Needs ``tokens_per_batch``.
        max_minutes (`float`, *optional*):
            End training then, if not before, with a checkpoint: ``trainer.train(resume_from_checkpoint=True)`` goes on
            for as long again, exactly as if it had not stopped.
        schedule_by_clock (`bool`, *optional*, defaults to `False`):
            Let the learning rate reach its end with ``max_minutes`` instead, for a run that is to end there; see
            `WallClock`. Needs ``max_minutes``.
        muon (`bool`, *optional*, defaults to `False`):
            Train the matrices of the layers by Muon, and all else by AdamW; see `MuonAdamW`. ``learning_rate``,
            ``weight_decay`` and what ``adam_`` begins with mean what they do for AdamW.
        teacher_weight (`float`, *optional*, defaults to 0.5):
            Of what the ``teachers`` of the trainer say in the loss, beside the labels: above 0, at most 1.

    Raises:
        ValueError: for a value out of range, or one that contradicts another.
    """

    tokens_per_batch: int | None = field(
        default=None,
        metadata={"help": "Train on so many source and target tokens a device and batch, instead of rows."},
    )
    packing: bool = field(default=False, metadata={"help": "Pack the batches of --tokens_per_batch, without padding."})

    max_minutes: float | None = field(
        default=None, metadata={"help": "End training after so many minutes, with a checkpoint to resume from."}
    )
    schedule_by_clock: bool = field(
        default=False, metadata={"help": "Let the learning rate reach its end with --max_minutes."}
    )
    muon: bool = field(default=False, metadata={"help": "Train the matrices of the layers by Muon, the rest by AdamW."})
    teacher_weight: float = field(default=0.5, metadata={"help": "The share of the teachers in the loss."})

    def __post_init__(self) -> None:
        super().__post_init__()
        optim: Any = self.optim
        if self.muon and optim.value not in ("adamw_torch", "adamw_torch_fused"):
            raise ValueError(f"muon=True leaves the other weights to torch's AdamW, and optim={optim.value!r} is none.")
        if not 0 < self.teacher_weight <= 1:
            raise ValueError(f"teacher_weight={self.teacher_weight!r} must be above 0, and at most 1.")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ValueError(f"max_minutes={self.max_minutes!r} must be above 0, or None.")
        if self.schedule_by_clock and self.max_minutes is None:
            raise ValueError("schedule_by_clock=True needs max_minutes: say how long to train.")
        if self.max_minutes is not None and not self.schedule_by_clock:
            if self.save_only_model:
                raise ValueError(
                    f"max_minutes={self.max_minutes} resumes from the checkpoint that it ends with, and "
                    "save_only_model=True would leave the optimizer and the schedule out of it: leave it at False."
                )
            for name, given, keeps_best in (
                ("save_strategy", "best", self.save_strategy == "best"),
                ("save_total_limit", 1, self.save_total_limit == 1 and self.metric_for_best_model),
            ):
                if keeps_best:
                    raise ValueError(
                        f"max_minutes={self.max_minutes} resumes from the checkpoint that it ends with, and "
                        f"{name}={given!r} would keep the best one alone: save by steps or epochs, with a "
                        "save_total_limit of at least 2, which keeps the best and the last."
                    )
        budget = self.tokens_per_batch
        if budget is None:
            if self.packing:
                raise ValueError("packing=True needs tokens_per_batch: say how many tokens to pack, such as 4096.")
            return
        if not isinstance(budget, int) or budget < 1:
            raise ValueError(f"tokens_per_batch={budget!r} must be a whole number above 0, such as 4096, or None.")
        dealing: Any = self.accelerator_config
        for name, given, needed in (
            ("train_sampling_strategy", str(self.train_sampling_strategy), "random"),
            ("auto_find_batch_size", self.auto_find_batch_size, False),
            ("accelerator_config.split_batches", dealing.split_batches, False),
            ("accelerator_config.dispatch_batches", bool(dealing.dispatch_batches), False),
        ):
            if given != needed:
                raise ValueError(
                    f"tokens_per_batch={budget} makes the batches, of like lengths and whole for each process: "
                    f"{name}={given!r} does not go with it; leave it at {needed!r}."
                )
        if self.torch_compile:  # no argument leads to it; the stock ones hand on the backend in this way
            os.environ.setdefault("ACCELERATE_DYNAMO_USE_DYNAMIC", "true")
