"""Lines 1 and 12: the loss of a step and of an evaluation do not depend on how the rows are split."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import (
    DataCollatorForSeq2Seq,
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)

from ..trainer import DragomanTrainer
from .batches import Pair, collate, cross_entropy, draw_pairs
from .measuring import flat_gradient
from .processes import two_processes
from .subjects import Subject
from .tokenizers import PaddingTokenizer
from .verdicts import MATTERS, Evidence, relative_error

SPLITS = ((16, 1), (4, 4), (2, 8))  # rows a micro-batch, micro-batches a step
SMOOTHING = 0.1
EVALUATION_ROWS = 11  # no batch size above 1 divides it
EVALUATION_BATCHES = (1, 2, 3, 4, 8, 16)
T = TypeVar("T", bound=Seq2SeqTrainer)
Step = tuple[float, Tensor]  # loss and gradient


class StepTrainer(Seq2SeqTrainer):
    """The stock Trainer, watched: ``step_loss`` is what its training steps return, added up."""

    step_loss = 0.0

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        self.step_loss += float(loss.double())
        return loss


class GradientProbe(TrainerCallback):
    """Keeps the gradient that the optimizer is about to use."""

    gradient: Tensor

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.gradient = flat_gradient(model).clone()


def training_pairs(subject: Subject) -> list[Pair]:
    """Sixteen rows whose target lengths differ within a micro-batch and between micro-batches."""
    return draw_pairs(subject, [(2 + (5 * i) % 9, 1 + (i * i + i // 4) % 10) for i in range(16)], seed=4)


def evaluation_pairs(subject: Subject) -> list[Pair]:
    return draw_pairs(subject, [(2 + (5 * i) % 9, 1 + (i * i) % 10) for i in range(EVALUATION_ROWS)], seed=5)


def as_rows(pairs: list[Pair]) -> Any:
    """A list, which is all that a Trainer needs of a data set."""
    return [{"input_ids": p.source, "attention_mask": [1] * len(p.source), "labels": p.target} for p in pairs]


@contextmanager
def quiet_trainer(kind: type[T], subject: Subject, model: Any, **arguments: Any) -> Iterator[T]:
    """A Trainer on the CPU that writes nothing, with the rows of both lines."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Seq2SeqTrainingArguments(
            output_dir=folder,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
            dataloader_pin_memory=False,
            **arguments,
        )
        settings.mixed_precision = "no"  # whatever ACCELERATE_MIXED_PRECISION says: lines are judged in fp32
        trainer = kind(
            model=model,
            args=settings,
            data_collator=DataCollatorForSeq2Seq(PaddingTokenizer.of(subject), model=model),
            train_dataset=as_rows(training_pairs(subject)),
            eval_dataset=as_rows(evaluation_pairs(subject)),
        )
        trainer.remove_callback(PrinterCallback)
        yield trainer


def take_step(subject: Subject, rows: int, accumulation: int, trainers: float = 0.0, ours: float = 0.0) -> Step:
    """Loss and gradient of one optimisation step, smoothed by the Trainer or by our configuration."""
    model = subject.build(None)
    if subject.ours:
        model.config.label_smoothing = ours
    probe = GradientProbe()
    arguments = {
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": accumulation,
        "train_sampling_strategy": "sequential",
        "label_smoothing_factor": trainers,
        "max_grad_norm": 0.0,
        "max_steps": 1,
    }
    with quiet_trainer(StepTrainer, subject, model, **arguments) as trainer:
        trainer.add_callback(probe)
        trainer.train()
        losses = trainer.accelerator.gather(torch.tensor([trainer.step_loss], dtype=torch.float64))
    return float(losses.mean()), probe.gradient


def smoothings(subject: Subject) -> dict[str, dict[str, float]]:
    """Ways to train: plain, smoothed by the Trainer, smoothed by our configuration."""
    ways = {"plain": {}, "label_smoothing_factor": {"trainers": SMOOTHING}}
    return ways | ({"config.label_smoothing": {"ours": SMOOTHING}} if subject.ours else {})


def has_two_processes(subject: Subject, evidence: Evidence) -> bool:
    """Whether another process can build the subject. Else the note says that it cannot."""
    without = "2 processes (another one does not know its class)"
    if subject.overrides is None and without not in evidence.omitted:
        evidence.omitted.append(without)
    return subject.overrides is not None


def check_accumulation(subject: Subject, evidence: Evidence) -> None:
    """One step of sixteen rows: as one batch, as micro-batches, on two processes; with and without smoothing."""
    whole: dict[str, Step] = {}
    for way, smoothing in smoothings(subject).items():
        with evidence.part(way):
            steps = {f"{rows}x{count}": take_step(subject, rows, count, **smoothing) for rows, count in SPLITS}
            whole[way] = steps.pop("16x1")
            if has_two_processes(subject, evidence):
                steps["2 processes of 2x4"] = two_processes(subject).step(way)
            for split, step in steps.items():
                compare_steps(evidence, f"{split} {way}", step, whole[way])
            ratios = {split: step[0] / whole[way][0] for split, step in steps.items()}
            if any(abs(ratio - 1) > MATTERS for ratio in ratios.values()):
                listed = ", ".join(f"{ratio:.2f} in {split}" for split, ratio in ratios.items())
                evidence.remarks.append(f"{way} loss over that of 16x1: {listed}")
    trainers, ours = whole.get("label_smoothing_factor"), whole.get("config.label_smoothing")
    if trainers and ours:
        compare_steps(evidence, "label_smoothing_factor and config.label_smoothing", ours, trainers)
    if trainers:
        evidence.matters("label smoothing", trainers[1], whole["plain"][1])
    evidence.matters("weighing micro-batches alike", gradient_of_means(subject), whole["plain"][1])


def compare_steps(evidence: Evidence, what: str, found: Step, expected: Step) -> None:
    evidence.compare(f"{what} loss", torch.tensor(found[0]), torch.tensor(expected[0]), "step")
    evidence.compare(f"{what} gradient", found[1], expected[1], "step")


def gradient_of_means(subject: Subject, rows: int = 2) -> Tensor:
    """By hand, the gradient of the mean of the means of micro-batches: what a step must not use."""
    model, pairs = subject.build(None), training_pairs(subject)
    for i in range(0, len(pairs), rows):
        batch = collate(subject, pairs[i : i + rows])
        loss = cross_entropy(model(**batch.teacher_forced()).logits, batch.labels).mean()
        (loss * rows / len(pairs)).backward()
    return flat_gradient(model)


@torch.no_grad()
def mean_loss(subject: Subject, pairs: list[Pair]) -> Tensor:
    """The mean over all target tokens, by hand, a row at a time."""
    model = subject.build(None)
    batches = [collate(subject, [pair]) for pair in pairs]
    return torch.cat([cross_entropy(model(**b.teacher_forced()).logits, b.labels) for b in batches]).mean()


def evaluate(subject: Subject, rows: int, kind: type[Seq2SeqTrainer]) -> float:
    """``eval_loss`` as a Trainer reports it."""
    with quiet_trainer(kind, subject, subject.build(None), per_device_eval_batch_size=rows) as trainer:
        return float(trainer.evaluate()["eval_loss"])


def evaluating_trainer(subject: Subject) -> type[Seq2SeqTrainer]:
    return DragomanTrainer if subject.ours else Seq2SeqTrainer


def check_evaluation(subject: Subject, evidence: Evidence) -> None:
    """``eval_loss`` is the mean over all target tokens, for every batch size and on two processes."""
    kind, pairs = evaluating_trainer(subject), evaluation_pairs(subject)
    expected = mean_loss(subject, pairs).double()
    losses = {f"batches of {rows}": evaluate(subject, rows, kind) for rows in EVALUATION_BATCHES}
    if has_two_processes(subject, evidence):
        losses |= two_processes(subject).eval_losses()
    for what, loss in losses.items():
        evidence.compare(what, torch.tensor(loss, dtype=torch.double), expected, "eval_loss")
    naive = []  # the mean of the means of batches
    for rows in EVALUATION_BATCHES[:4]:
        means = [mean_loss(subject, pairs[i : i + rows]) for i in range(0, len(pairs), rows)]
        naive.append(torch.stack(means).mean())
    evidence.matters("weighing batches alike", torch.stack(naive), expected.expand(len(naive)))
    if kind is not Seq2SeqTrainer:
        stock = [torch.tensor(evaluate(subject, rows, Seq2SeqTrainer)) for rows in EVALUATION_BATCHES]
        worst = max(relative_error(loss, expected) for loss in stock)
        evidence.remarks.append(f"with the stock Seq2SeqTrainer {worst:.1e}")
