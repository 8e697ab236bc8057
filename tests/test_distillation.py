"""Learning from teachers: the steps by hand, one teacher a step, resuming, packed batches, stock models, refusals."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DataCollatorForSeq2Seq, GPT2Config, GPT2LMHeadModel

import bart_models
from dragoman import DragomanConfig, DragomanRecurrentConfig, DragomanTokenizer, DragomanTrainer
from dragoman import DragomanTrainingArguments as Arguments
from dragoman.distillation import taught
from dragoman.packing import DataCollatorForPackedSeq2Seq
from support import build, recurrent, tiny
from trainers import likelihood, rows, word_tokenizer

WEIGHT, LR, SMOOTHING = 0.3, 0.05, 0.1


@pytest.fixture(scope="module")
def tokenizer() -> DragomanTokenizer:
    return word_tokenizer()


def student(tokenizer: DragomanTokenizer, **overrides: Any) -> Any:
    given = {"dropout": 0.0, "label_smoothing": SMOOTHING, **overrides}
    return build(DragomanConfig.from_tokenizer(tokenizer, preset=tiny(**given)), seed=1)


def teachers(tokenizer: DragomanTokenizer) -> list[Any]:
    """A larger one and a recurrent one, both with dropout, which is not for teachers."""
    larger = DragomanConfig.from_tokenizer(tokenizer, preset=tiny(hidden_size=48, dropout=0.5, label_smoothing=0.2))
    older = DragomanRecurrentConfig.from_tokenizer(tokenizer, preset=recurrent(dropout=0.5))
    return [build(larger, seed=2).train(), build(older, seed=3).train()]


def bart(tokenizer: DragomanTokenizer, seed: int) -> Any:
    ids = ("pad_token_id", "eos_token_id", "decoder_start_token_id")
    config = DragomanConfig.from_tokenizer(tokenizer)
    return bart_models.tiny(
        "Bart", seed, vocab_size=len(tokenizer), dropout=0.0, **{name: getattr(config, name) for name in ids}
    )


def distil(tokenizer: DragomanTokenizer, folder: Path, model: Any, learns_from: list[Any], **arguments: Any) -> Any:
    """A run of plain gradient descent over three rows at a time, in order: most of their targets differ in length."""
    own_loss = arguments.pop("compute_loss_func", None)
    given = {
        "teacher_weight": WEIGHT,
        "per_device_train_batch_size": 3,
        "train_sampling_strategy": "sequential",
        "lr_scheduler_type": "constant",
        "learning_rate": LR,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return DragomanTrainer(
        model=model,
        args=Arguments(str(folder), **{**given, **arguments}),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        train_dataset=rows(tokenizer),
        eval_dataset=rows(tokenizer, 11),
        processing_class=tokenizer,
        teachers=learns_from,
        compute_loss_func=own_loss,
    )


def by_hand(model: Any, teacher: Any, batches: list[Any], smoothing: float) -> Tensor:
    """The loss of one step, label by label."""
    losses = []
    for batch in batches:
        log_p = model.eval()(**batch).logits.log_softmax(-1)
        with torch.no_grad():
            q = teacher.eval()(**batch).logits.softmax(-1)
        for row, labels in enumerate(batch["labels"].tolist()):
            for at, label in enumerate(labels):
                if label == -100:
                    continue
                told = -(q[row, at] * log_p[row, at]).sum()
                known = -(1 - smoothing) * log_p[row, at, label] - smoothing * log_p[row, at].mean()
                losses.append(WEIGHT * told + (1 - WEIGHT) * known)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("stock", [False, True], ids=["dragoman", "bart"])
def test_steps_are_those_by_hand(stock: bool, tokenizer: DragomanTokenizer, tmp_path: Path) -> None:
    """Two micro-batches of unlike numbers of labels a step, and the teachers in turn."""
    model = bart(tokenizer, 1) if stock else student(tokenizer)
    learns_from = [bart(tokenizer, 2), *teachers(tokenizer)[1:]] if stock else teachers(tokenizer)
    other, together = copy.deepcopy(model), 1 if stock else 2
    run = distil(tokenizer, tmp_path, model, learns_from, max_steps=3, gradient_accumulation_steps=together)
    run.train()
    data = rows(tokenizer)
    batches = [run.data_collator(copy.deepcopy(data[at : at + 3])) for at in range(0, 9 * together, 3)]
    assert any((batch["labels"] == -100).any() for batch in batches)
    losses = []
    for step in range(3):
        loss = by_hand(other, learns_from[step % 2], batches[step * together :][:together], 0.0 if stock else SMOOTHING)
        weights = [weight for weight in other.parameters() if weight.requires_grad]
        with torch.no_grad():
            for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight -= LR * gradient
        losses.append(loss.item())
    logged = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    torch.testing.assert_close(torch.tensor(logged), torch.tensor(losses), rtol=1e-4, atol=1e-4)
    for (name, one), another in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, another, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_packed_batches_teach_the_same(tokenizer: DragomanTokenizer) -> None:
    model, teacher = student(tokenizer).train(), teachers(tokenizer)[0].eval()
    found = []
    for collator in (DataCollatorForSeq2Seq(tokenizer, model=model), DataCollatorForPackedSeq2Seq(tokenizer, model)):
        model.zero_grad()
        loss = taught(model, teacher, WEIGHT, {"return_logits": True}, **collator(rows(tokenizer, 6))).loss
        loss.backward()
        found.append((loss.detach(), {name: weight.grad.clone() for name, weight in model.named_parameters()}))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_the_teacher_is_learnt(tokenizer: DragomanTokenizer, tmp_path: Path) -> None:
    """By a weight of one the labels say nothing: what is left is how far the student is from the teacher."""
    model, teacher = student(tokenizer), teachers(tokenizer)[0].eval()
    data = DataCollatorForSeq2Seq(tokenizer, model=model)(rows(tokenizer, 11))
    real = data["labels"] != -100

    def distance() -> float:
        with torch.no_grad():
            ours, theirs = (m.eval()(**data).logits[real].log_softmax(-1) for m in (model, teacher))
        return float(F.kl_div(ours, theirs, log_target=True, reduction="batchmean"))

    before, kept = distance(), copy.deepcopy(teacher.state_dict())
    how = {"teacher_weight": 1.0, "learning_rate": 5e-3, "optim": "adamw_torch", "max_steps": 40, "bf16": True}
    distil(tokenizer, tmp_path, model, [teacher], **how, tokens_per_batch=160, train_sampling_strategy="random").train()
    assert distance() < 0.2 * before
    torch.testing.assert_close(teacher.state_dict(), kept, rtol=0, atol=0)


def test_evaluation_is_by_the_labels_alone(tokenizer: DragomanTokenizer, tmp_path: Path) -> None:
    model = student(tokenizer)
    found = distil(tokenizer, tmp_path, model, teachers(tokenizer)).evaluate()["eval_loss"]
    assert found == pytest.approx(likelihood(model.eval(), tokenizer), rel=1e-5)


def test_a_resumed_run_asks_the_same_teachers(tokenizer: DragomanTokenizer, tmp_path: Path) -> None:
    whole = student(tokenizer, dropout=0.1)
    saving = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    distil(tokenizer, tmp_path, whole, teachers(tokenizer), **saving).train()
    resumed = student(tokenizer, dropout=0.1)
    run = distil(tokenizer, tmp_path, resumed, teachers(tokenizer), **saving)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_the_card_names_them(tokenizer: DragomanTokenizer, tmp_path: Path) -> None:
    run = distil(tokenizer, tmp_path, student(tokenizer), teachers(tokenizer))
    run.save_model()
    run.create_model_card()
    assert f"- teachers: 2, with a weight of {WEIGHT}\n" in (tmp_path / "README.md").read_text("utf-8")


def test_what_cannot_teach_is_refused(tokenizer: DragomanTokenizer, tmp_path: Path) -> None:
    model, (teacher, _) = student(tokenizer), teachers(tokenizer)
    for weight in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=rf"teacher_weight={weight} must be above 0, and at most 1"):
            distil(tokenizer, tmp_path, model, [teacher], teacher_weight=weight)
    with pytest.raises(ValueError, match="cannot be its own teacher"):
        distil(tokenizer, tmp_path, model, [teacher, model])
    other = build(DragomanConfig.from_tokenizer(tokenizer, preset=tiny(), vocab_size=len(tokenizer) + 3))
    with pytest.raises(ValueError, match="Models 0 and 2 of the model and its teachers differ in their vocab_size"):
        distil(tokenizer, tmp_path, model, [teacher, other])
    with pytest.raises(ValueError, match="GPT2LMHeadModel, is no encoder-decoder"):
        distil(tokenizer, tmp_path, model, [GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1))])
    with pytest.raises(ValueError, match="teachers do not go with label_smoothing_factor"):
        distil(tokenizer, tmp_path, model, [teacher], label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match="teachers do not go with compute_loss_func"):
        distil(tokenizer, tmp_path, model, [teacher], compute_loss_func=lambda *_: None)
    anew = {"train_sampling_strategy": "random"}
    with pytest.raises(TypeError, match="BartForConditionalGeneration takes no packed batches"):
        distil(tokenizer, tmp_path, model, [bart(tokenizer, 1)], tokens_per_batch=64, packing=True, **anew)
    own = DataCollatorForPackedSeq2Seq(model=model)
    with pytest.raises(TypeError, match="BartForConditionalGeneration takes no packed batches"):
        DragomanTrainer(model, Arguments(str(tmp_path), use_cpu=True), data_collator=own, teachers=[bart(tokenizer, 1)])
