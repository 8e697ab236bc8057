"""What several test files share: models that cannot pass by being uniform, ragged batches, a distance."""

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM

from dragoman import DragomanConfig, DragomanRecurrentConfig, presets

ROOT = Path(__file__).resolve().parent.parent

SCHEMES = ("sinusoidal", "learned", "rotary", "alibi", "relative", "none")
OPTIONS: dict[str, tuple[Any, ...]] = {
    "position_encoding": SCHEMES,
    "norm_type": ("layer_norm", "rms_norm"),
    "norm_placement": ("pre", "post"),
    "gated_feed_forward": (False, True),
    "key_value_heads": (4, 2, 1),
    "tie_word_embeddings": (True, False),
    # one vocabulary shared by both inputs, one vocabulary not shared, two vocabularies
    "vocabularies": ("shared", "own", "two"),
}


def tiny(**overrides: Any) -> DragomanConfig:
    """A small configuration whose sides differ in everything that may differ."""
    sizes = {
        "vocab_size": 37,
        "hidden_size": 32,
        "encoder_num_hidden_layers": 3,
        "decoder_num_hidden_layers": 2,
        "encoder_intermediate_size": 40,
        "decoder_intermediate_size": 48,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 12,
        "max_position_embeddings": 64,
    }
    return presets.tiny(**{**sizes, **overrides})


def recurrent(**overrides: Any) -> DragomanRecurrentConfig:
    """A small configuration of the recurrent model, without dropout."""
    sizes = {"vocab_size": 37, "hidden_size": 32, "num_hidden_layers": 2, "dropout": 0.0}
    return DragomanRecurrentConfig(**{**sizes, **overrides})


def configured(options: dict[str, Any], **overrides: Any) -> DragomanConfig:
    """A configuration from one row of the option matrix."""
    fields = dict(options)
    heads = fields.pop("key_value_heads")
    fields |= {"encoder_num_key_value_heads": heads, "decoder_num_key_value_heads": heads}
    vocabularies = fields.pop("vocabularies")
    fields["share_embeddings"] = vocabularies == "shared"
    if vocabularies == "two":
        fields["source_vocab_size"] = 29
    return tiny(**fields, **overrides)


def pairwise(options: dict[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Rows that together hold every pair of values of any two options (greedy, deterministic)."""
    names = list(options)
    rows = [dict(zip(names, values, strict=True)) for values in itertools.product(*options.values())]

    def pairs(row: dict[str, Any]) -> set[tuple[Any, ...]]:
        return {(a, row[a], b, row[b]) for a, b in itertools.combinations(names, 2)}

    missing = set().union(*map(pairs, rows))
    chosen = []
    while missing:
        best = max(rows, key=lambda row: len(pairs(row) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


def describe(options: dict[str, Any]) -> str:
    return "-".join(str(value) for value in options.values())


def build(config: Any, seed: int = 0, auto: Any = AutoModelForSeq2SeqLM, **kwargs: Any) -> Any:
    """A model with random weights large enough that no attention is uniform, in eval mode.

    Norms, biases and tables that start as constants are drawn too.
    """
    torch.manual_seed(seed)
    model = auto.from_config(config, **kwargs)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if isinstance(config, DragomanRecurrentConfig):  # where no norm makes states this large
                parameter.normal_(std=0.6)
            elif parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif "position_bias" in name:
                parameter.copy_(torch.randn_like(parameter))
            elif "q_proj" in name or "k_proj" in name:
                parameter.mul_(2.0)
        if config.logits_bias and auto is AutoModelForSeq2SeqLM:
            model.lm_head.bias.normal_(std=0.3)
    return model.eval()


def batch(
    config: Any, seed: int = 1, sizes: tuple[tuple[int, int], ...] = ((9, 4), (5, 7), (1, 1), (7, 6))
) -> dict[str, Tensor]:
    """A right-padded batch, source and target lengths all different."""
    generator = torch.Generator().manual_seed(seed)

    def row(length: int, size: int) -> Tensor:
        return torch.randint(3, size, (length,), generator=generator)

    def pad(rows: list[Tensor], value: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    source_vocab = config.source_vocab_size or config.vocab_size
    source = [row(length, source_vocab) for length, _ in sizes]
    target = [row(length, config.vocab_size) for _, length in sizes]
    return {
        "input_ids": pad(source, config.pad_token_id),
        "attention_mask": pad([torch.ones_like(ids) for ids in source], 0),
        "labels": pad(target, -100),
    }


def relative_error(a: Tensor, b: Tensor) -> float:
    """``‖a − b‖ / ‖b‖``."""
    return float((a.detach() - b.detach()).norm() / b.detach().norm().clamp(min=1e-30))


def gradients(model: torch.nn.Module, **inputs: Any) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    model(**inputs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def data_folder(name: str) -> Path:
    """A folder of real data, or a skip that says why."""
    root = os.environ.get("DRAGOMAN_DATA")
    if not root:
        pytest.skip("DRAGOMAN_DATA is not set: it names the folder with local copies of public data sets")
    folder = Path(root) / name
    if not folder.exists():
        pytest.skip(f"{name} is not in the folder that DRAGOMAN_DATA names")
    return folder
