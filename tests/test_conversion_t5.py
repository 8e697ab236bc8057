"""T5's weights, in and out: T5 1.0, 1.1, FLAN and ByT5 are one family in-tree, mT5 and umT5 one each."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn
from transformers import (
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from conversion_checks import check_every_key_counts, check_fine_tuning, check_permuted_heads_are_seen
from ladder import climb, go_around, randomise

CLASSES: dict[str, tuple[Any, Any]] = {
    "t5": (T5Config, T5ForConditionalGeneration),
    "mt5": (MT5Config, MT5ForConditionalGeneration),
    "umt5": (UMT5Config, UMT5ForConditionalGeneration),
}
GATED = {"feed_forward_proj": "gated-gelu"}
# T5 1.1, FLAN and ByT5; 5.23 reads from a file's "untied" that logits are not scaled
NEWER = {**GATED, "tie_word_embeddings": False, "apart": ("lm_head",)}
VARIANTS: dict[str, dict[str, Any]] = {
    "t5": {},
    "t5, gated, tied": GATED,
    "t5 1.1": NEWER,
    "t5 1.1, tied all the same": {**NEWER, "apart": ()},
    "t5, untied and scaled": {"apart": ("lm_head",)},
    "t5, gelu": {"feed_forward_proj": "gelu"},
    "t5, gated gelu_new by name": {"feed_forward_proj": "gated-gelu_new"},
    "t5, gated silu": {"feed_forward_proj": "gated-silu"},
    "t5, gated exact gelu": {**GATED, "dense_act_fn": "gelu"},
    "t5, heads fill the width": {"d_kv": 8},
    "t5, other buckets": {"relative_attention_num_buckets": 7, "relative_attention_max_distance": 5},
    "t5, other ids": {"pad_token_id": 60, "decoder_start_token_id": 58, "bos_token_id": 58, "eos_token_id": 59},
    "t5, own source embeddings": {"apart": ("encoder.embed_tokens",)},
    "t5, all embeddings apart": {"apart": ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head")},
    "mt5": {"family": "mt5", "apart": ("lm_head",)},
    "mt5, tied, relu": {"family": "mt5", "feed_forward_proj": "relu"},
    "umt5": {"family": "umt5", "apart": ("lm_head",)},
    "umt5, tied, relu": {"family": "umt5", "feed_forward_proj": "relu"},
}


def t5(family: str = "t5", apart: tuple[str, ...] = (), **options: Any) -> PreTrainedModel:
    """``apart``: which of the three tables are tensors of their own, as they are after loading a file that says so.

    In-tree ``generate`` fails with more layers in the decoder than in the encoder: it sizes the cache by the latter.
    """
    sizes = {
        "vocab_size": 61,
        "d_model": 32,
        "d_kv": 6,
        "d_ff": 40,
        "num_layers": 3,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 12,
        "layer_norm_epsilon": 1e-5,
        "decoder_start_token_id": 0,
    }
    config_class, model_class = CLASSES[family]
    model = model_class(config_class(**{**sizes, **options}))
    for name in apart:
        module = model.get_submodule(name)
        module.weight = nn.Parameter(module.weight.detach().clone())
    return randomise(model)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_ladder(variant: str, side: str) -> None:
    theirs = t5(**VARIANTS[variant])
    climb(theirs, go_around(theirs), side)


@pytest.mark.parametrize("family", CLASSES)
def test_more_layers_in_the_decoder(family: str) -> None:
    theirs = t5(family, num_layers=2, num_decoder_layers=3)
    theirs.generation_config.use_cache = False
    climb(theirs, go_around(theirs))


@pytest.mark.parametrize("variant", ["t5", "t5 1.1, tied all the same", "mt5, tied, relu", "umt5, tied, relu"])
def test_every_key_counts(variant: str, tmp_path: Path) -> None:
    check_every_key_counts(t5(**VARIANTS[variant]), tmp_path)


@pytest.mark.parametrize("variant", ["t5", "t5 1.1", "mt5", "umt5"])
def test_permuted_heads_are_seen(variant: str) -> None:
    check_permuted_heads_are_seen(t5(**VARIANTS[variant]))


@pytest.mark.parametrize("variant", ["t5", "t5 1.1", "t5, own source embeddings", "mt5", "umt5"])
def test_fine_tuning(variant: str, tmp_path: Path) -> None:
    check_fine_tuning(t5(dropout_rate=0.0, **VARIANTS[variant]), tmp_path)
