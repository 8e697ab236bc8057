"""What holds for the weights of every family: nothing is lost unseen, and training goes the same way."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, Seq2SeqTrainer, Seq2SeqTrainingArguments

from dragoman.conversion import ConversionError, convert_from, convert_to
from dragoman.conversion.registry import family_of
from dragoman.conversion.tensors import FolderTensors, tensors_of
from ladder import TOLERANCE, WITHOUT_GRADIENT, climb, ragged
from support import relative_error


def check_every_key_counts(theirs: PreTrainedModel, folder: Path) -> None:
    """Without any one tensor, in either direction, an error names it; so it does for one too many."""
    family = family_of(theirs.config.model_type)
    theirs.save_pretrained(folder)
    stored = dict(FolderTensors(folder))
    for name in stored.keys() - {*family.tables}:
        rest = {key: tensor for key, tensor in stored.items() if key != name}
        if name in family.parameters:  # their class does without it, too
            assert not family.read(theirs.config, rest)[0].logits_bias
            continue
        with pytest.raises(ConversionError) as error:
            family.read(theirs.config, rest)
        aliases = (family.source_embeddings, family.target_embeddings, family.heads)  # an error names the first
        assert any(other in str(error.value) for other in [name, *(names[0] for names in aliases if name in names)])
    ours = convert_from(folder)
    state = tensors_of(ours)
    for name in state:
        if name not in ours.all_tied_weights_keys and name != "lm_head.bias":
            rest = {key: tensor for key, tensor in state.items() if tensor is not state[name]}
            with pytest.raises(ConversionError):
                family.write(ours.config, rest)
    special = {*family.source_embeddings, *family.target_embeddings, *family.heads, *family.parameters, *family.tables}
    some = sorted(stored.keys() - special)[-2:]
    wrong = {key: tensor for key, tensor in stored.items() if key not in some} | {"model.extra.weight": torch.ones(2)}
    with pytest.raises(ConversionError) as error:
        family.read(theirs.config, wrong)
    for name in (*some, "model.extra.weight"):
        assert name in str(error.value)


def check_permuted_heads_are_seen(theirs: PreTrainedModel) -> None:
    """The ladder goes red, and names the module."""
    for name in ("model.encoder.layers.0.self_attn", "model.decoder.layers.1.cross_attn"):
        ours = convert_from(theirs)
        attention = ours.get_submodule(name)
        with torch.no_grad():
            attention.q_proj.weight.copy_(attention.q_proj.weight.roll(attention.head_dim, dims=0))
        with pytest.raises(AssertionError, match=f"first module: {name}.q_proj"):
            climb(theirs, ours)


def check_fine_tuning(theirs: PreTrainedModel, folder: Path) -> None:
    """Two steps of the stock Trainer, each of two unequal micro-batches, then back: as theirs with an exact loss."""
    family = theirs.config.model_type
    convert_from(theirs).save_pretrained(folder / "ours")
    ours = AutoModelForSeq2SeqLM.from_pretrained(folder / "ours")
    inputs = ragged(theirs)
    rows = [{name: values[i] for name, values in inputs.items()} for i in range(4)] * 2
    original = copy.deepcopy(theirs)
    _train(ours, rows, folder / "a")
    _train(original, rows, folder / "b", compute_loss_func=_exact_loss)
    trained = convert_to(ours, family)
    before, expected = theirs.state_dict(), original.state_dict()
    for name, tensor in trained.state_dict().items():
        if name in family_of(family).tables:
            continue
        if name in dict(original.named_parameters()) and not name.endswith(WITHOUT_GRADIENT):
            assert not torch.equal(expected[name], before[name]), f"{name} was not trained"
        assert relative_error(tensor, expected[name]) < TOLERANCE, name


def _exact_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    total = F.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    return total / num_items_in_batch


def _train(model: PreTrainedModel, rows: list[dict[str, Any]], folder: Path, **options: Any) -> None:
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=2,
        learning_rate=1e-2,
        optim="sgd",  # Adam divides by the size of a gradient, and makes of rounding near 0 a step
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        logging_steps=10,
    )
    Seq2SeqTrainer(model, arguments, train_dataset=rows, **options).train()
