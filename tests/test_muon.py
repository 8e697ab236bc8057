"""Muon and AdamW as one optimizer: which weights are whose, what a step does, schedules, saving and resuming."""

import copy
import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    Seq2SeqTrainer,
    T5Config,
    T5ForConditionalGeneration,
    default_data_collator,
)

from dragoman import DragomanForSequenceClassification, DragomanTrainer, DragomanTrainingArguments, MuonAdamW
from dragoman.muon import layer_matrices
from support import batch, build, tiny

LR, DECAY = 1e-2, 0.1


def matrix_names(model: nn.Module) -> set[str]:
    chosen = {id(weight) for weight in layer_matrices(model)}
    return {name for name, weight in model.named_parameters() if id(weight) in chosen}


def in_layers(model: nn.Module) -> set[str]:
    return {name for name, weight in model.named_parameters() if ".layers." in name and weight.ndim == 2}


def bart() -> BartForConditionalGeneration:
    config = BartConfig(
        vocab_size=20,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
    )
    return BartForConditionalGeneration(config)


def step(model: nn.Module, *optimizers: torch.optim.Optimizer, seed: int = 0) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad()
    model(**batch(model.config, seed=seed)).loss.backward()
    for optimizer in optimizers:
        optimizer.step()


def groups(optimizer: MuonAdamW) -> dict[int, dict[str, Any]]:
    return {id(weight): group for group in optimizer.param_groups for weight in group["params"]}


@pytest.mark.parametrize(
    "overrides",
    [{}, {"tie_word_embeddings": False, "position_encoding": "relative"}, {"position_encoding": "learned"}],
    ids=["tied", "untied", "learned"],
)
def test_matrices_of_the_layers_are_muons_and_the_rest_is_adamws(overrides: dict[str, Any]) -> None:
    model = build(tiny(**overrides))
    assert matrix_names(model) == in_layers(model)
    whose = groups(MuonAdamW(model, weight_decay=DECAY))
    assert set(whose) == {id(weight) for weight in model.parameters()}
    for name, weight in model.named_parameters():
        group = whose[id(weight)]
        assert group["muon"] == (name in in_layers(model)), name
        assert group["weight_decay"] == (DECAY if weight.ndim > 1 else 0.0), name


def test_a_stock_model_is_divided_alike() -> None:
    model = bart()
    assert matrix_names(model) == in_layers(model)


@pytest.mark.parametrize("backbone", ["encoder", "encoder_decoder"])
def test_heads_are_adamws(backbone: str) -> None:
    """A classifier's, and what LoRA lays beside the output layer; a stock T5's is within what else are its layers."""
    classifier = DragomanForSequenceClassification(tiny(classifier_backbone=backbone))
    assert matrix_names(classifier) == in_layers(classifier)
    model = peft.get_peft_model(
        build(tiny(tie_word_embeddings=False)), peft.LoraConfig(target_modules=["q_proj", "lm_head"], r=2)
    )
    names = {name for name, weight in model.named_parameters() if "lora" in name and ".layers." in name}
    assert names
    assert matrix_names(model) == names
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "num_layers": 1, "vocab_size": 20}
    config = T5Config(**sizes)
    config.tie_word_embeddings = False  # which its constructor does not take
    stock = T5ForConditionalGeneration(config)
    assert stock.lm_head.weight is not stock.shared.weight
    assert {name.rpartition(".")[0].split(".")[-1] for name in matrix_names(stock)} == {*"qkvo", "wi", "wo"}


def test_weights_that_it_was_not_told_of_are_refused() -> None:
    """As gradual unfreezing by hand adds them."""
    optimizer = MuonAdamW(build(tiny()))
    before = len(optimizer.param_groups)
    with pytest.raises(ValueError, match="divides the weights of a model itself"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(4, 4))]})
    assert len(optimizer.param_groups) == before


def test_what_does_not_train_is_left_out() -> None:
    model = build(tiny())
    frozen = model.model.encoder.layers[0].requires_grad_(False)
    whose = groups(MuonAdamW(model))
    assert not set(whose) & {id(weight) for weight in frozen.parameters()}
    model.requires_grad_(False).get_input_embeddings().requires_grad_(True)
    with pytest.raises(ValueError, match="no such layer of this DragomanForConditionalGeneration trains"):
        MuonAdamW(model)


def test_a_step_turns_a_matrix_alike_along_all_its_directions() -> None:
    """Against the singular vectors in float64, which Newton-Schulz does without."""
    model = build(tiny())
    before = {name: weight.detach().double() for name, weight in model.named_parameters()}
    step(model, MuonAdamW(model, LR, weight_decay=DECAY))
    for name in in_layers(model):
        weight = model.get_parameter(name)
        assert weight.grad is not None
        m, n = weight.shape
        u, s, v = torch.linalg.svd(weight.grad.double(), full_matrices=False)
        change = (1 - LR * DECAY) * before[name] - weight.detach().double()
        along = u.T @ (change / (0.2 * LR * math.sqrt(max(m, n)))) @ v.T
        told = int((s > 0.03 * s[0]).sum())  # Newton-Schulz in bfloat16 does not tell what is smaller from nothing
        assert told > 4
        torch.testing.assert_close(along[:told, :told], torch.eye(told, dtype=torch.double), atol=0.4, rtol=0)


def test_steps_are_those_of_the_two_optimizers_side_by_side() -> None:
    ours, theirs = build(tiny(dropout=0.0)).train(), build(tiny(dropout=0.0)).train()
    optimizer = MuonAdamW(ours, LR, DECAY, betas=(0.8, 0.9), eps=1e-6)
    named = dict(theirs.named_parameters())
    matrices = [named.pop(name) for name in sorted(in_layers(theirs))]
    flat = [weight for weight in named.values() if weight.ndim < 2]
    tables = [weight for weight in named.values() if weight.ndim > 1]
    muon = Muon(matrices, LR, DECAY, adjust_lr_fn="match_rms_adamw")
    adamw = AdamW([{"params": tables}, {"params": flat, "weight_decay": 0.0}], LR, (0.8, 0.9), 1e-6, DECAY, fused=True)
    for seed in range(4):
        for group in [group for each in (optimizer, muon, adamw) for group in each.param_groups]:
            group["lr"] = LR / (1 + seed)  # as a schedule does
        step(ours, optimizer, seed=seed)
        step(theirs, muon, adamw, seed=seed)
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("way", ["state", "copy"])
def test_what_is_saved_goes_on(way: str) -> None:
    whole = build(tiny(dropout=0.0)).train()
    optimizer = MuonAdamW(whole, LR, DECAY)
    for seed in range(3):
        step(whole, optimizer, seed=seed)
    if way == "copy":
        broken, other = copy.deepcopy((whole, optimizer))
    else:
        broken = copy.deepcopy(whole)
        other = MuonAdamW(broken, 1.0)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in range(3, 6):
        step(whole, optimizer, seed=seed)
        step(broken, other, seed=seed)
    for one, another in zip(whole.parameters(), broken.parameters(), strict=True):
        torch.testing.assert_close(one, another, rtol=0, atol=0)


def test_a_closure_is_called_with_gradients() -> None:
    model = build(tiny())
    optimizer = MuonAdamW(model)

    def closure() -> Tensor:
        loss: Tensor = model(**batch(model.config)).loss
        loss.backward()
        return loss

    before = model.model.encoder.layers[0].feed_forward.up_proj.weight.clone()
    loss = optimizer.step(closure)
    assert loss is not None
    assert loss.requires_grad
    assert not torch.equal(before, model.model.encoder.layers[0].feed_forward.up_proj.weight)


def trainer(folder: Path, trainer_class: Any = DragomanTrainer, **arguments: Any) -> Any:
    model = build(tiny(dropout=0.0))
    data = [batch(model.config, seed=seed) for seed in range(2)]
    given = {
        "learning_rate": LR,
        "weight_decay": DECAY,
        "adam_beta2": 0.9,
        "adam_epsilon": 1e-6,
        "lr_scheduler_type": "linear",
        "per_device_train_batch_size": 2,
        "num_train_epochs": 2,
        "save_steps": 3,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return trainer_class(
        model=model,
        args=DragomanTrainingArguments(str(folder), **{**given, **arguments}),
        data_collator=default_data_collator,
        train_dataset=[{name: one[name][row] for name in one} for one in data for row in range(4)],
    )


def weights(run: Any) -> dict[str, Tensor]:
    return dict(run.model.named_parameters())


def test_the_trainer_takes_it_and_goes_on_with_it_exactly(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", muon=True)
    whole.train()
    optimizer = whole.optimizer.optimizer
    assert isinstance(optimizer, MuonAdamW)
    assert {group["lr"] for group in optimizer.param_groups} == {0.0}, "the schedule leads all groups"
    for group in optimizer.param_groups:
        assert group["muon"] or (group["betas"], group["eps"]) == ((0.9, 0.9), 1e-6)
        assert group["weight_decay"] == (DECAY if group["params"][0].ndim > 1 else 0.0)
    resumed = trainer(tmp_path / "whole", muon=True)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert whole.state.global_step == resumed.state.global_step == 8
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)


def test_the_state_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, save_steps=8).train()
    with pytest.raises(ValueError, match=r"is not MuonAdamW's: resume with the one .* \(muon=False\)"):
        trainer(tmp_path, muon=True, num_train_epochs=3).train(resume_from_checkpoint=True)


def test_a_stock_trainer_takes_it_by_hand(tmp_path: Path) -> None:
    ours, stock = trainer(tmp_path / "ours", muon=True), trainer(tmp_path / "stock", Seq2SeqTrainer)
    stock.optimizer = MuonAdamW(stock.model, LR, DECAY, betas=(0.9, 0.9), eps=1e-6)
    plain = trainer(tmp_path / "plain")
    for run in (ours, stock, plain):
        run.train()
    torch.testing.assert_close(weights(stock), weights(ours), rtol=0, atol=0)
    assert isinstance(plain.optimizer.optimizer, AdamW)
    by_hand = trainer(tmp_path / "by_hand", muon=True)
    by_hand.optimizer = given = AdamW(by_hand.model.parameters())
    assert by_hand.create_optimizer() is given


@pytest.mark.parametrize("by_hand", [False, True])
def test_the_card_names_it(by_hand: bool, tmp_path: Path) -> None:
    """And not what args.optim says."""
    run = trainer(tmp_path, muon=not by_hand)
    if by_hand:
        run.optimizer = MuonAdamW(run.model, LR, DECAY, betas=(0.9, 0.9), eps=1e-6)
    run.train()
    run.save_model()
    run.create_model_card()
    line = next(x for x in (tmp_path / "README.md").read_text("utf-8").splitlines() if x.startswith("- optimizer"))
    assert line == "- optimizer: MuonAdamW, its AdamW with betas=(0.9, 0.9) and epsilon=1e-06"


def test_another_optimizer_is_refused_beside_it(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"muon=True leaves the other weights to torch's AdamW, and optim='adafactor' is none"
    ):
        DragomanTrainingArguments(str(tmp_path), muon=True, optim="adafactor", use_cpu=True)
