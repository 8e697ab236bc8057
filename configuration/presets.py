"""Named architectures: functions that return a :class:`DragomanConfig`, deriving from one another."""

import copy
from dataclasses import fields
from typing import Any

from transformers.utils import logging

from .configuration_dragoman import DragomanConfig

logger = logging.get_logger(__name__)


def _both(name: str, value: Any) -> dict[str, Any]:
    return {f"encoder_{name}": value, f"decoder_{name}": value}


def _sizes(layers: int, hidden: int, intermediate: int, heads: int) -> dict[str, Any]:
    return {
        **_both("num_hidden_layers", layers),
        **_both("num_attention_heads", heads),
        **_both("intermediate_size", intermediate),
        "hidden_size": hidden,
    }


def transformer_base(**overrides: Any) -> DragomanConfig:
    """Vaswani et al. 2017 (arXiv:1706.03762): 6+6 layers of 512, post-norm, sinusoids, ReLU, three-way tying."""
    return DragomanConfig(**overrides)


def transformer_big(**overrides: Any) -> DragomanConfig:
    """Vaswani et al. 2017, table 3: 6+6 layers of 1024, dropout 0.3."""
    return transformer_base(**{**_sizes(6, 1024, 4096, 16), "dropout": 0.3, **overrides})


def deep_encoder(**overrides: Any) -> DragomanConfig:
    """Kasai et al. 2021 (arXiv:2006.10369): 12 encoder layers, one decoder layer, for fast decoding."""
    return transformer_base(**{"encoder_num_hidden_layers": 12, "decoder_num_hidden_layers": 1, **overrides})


def small(**overrides: Any) -> DragomanConfig:
    """3+3 layers of 256, pre-norm, rotary: trains on a CPU."""
    modern = {"norm_placement": "pre", "position_encoding": "rotary", "vocab_size": 8000}
    return DragomanConfig(**{**_sizes(3, 256, 1024, 4), **modern, **overrides})


def tiny(**overrides: Any) -> DragomanConfig:
    """2+2 layers of 64, no dropout: for tests."""
    return small(**{**_sizes(2, 64, 128, 4), "dropout": 0.0, **overrides})


def multi30k_tiny(**overrides: Any) -> DragomanConfig:
    """Wu et al. 2021 (arXiv:2105.14462), Transformer-Tiny: 4+4 layers of 128 for small data, dropout 0.3."""
    paper = {"vocab_size": 10000, "dropout": 0.3, "label_smoothing": 0.1}
    return DragomanConfig(**{**_sizes(4, 128, 256, 4), **paper, **overrides})


def modern_base(**overrides: Any) -> DragomanConfig:
    """About as many parameters as the base model, of today: RMSNorm, rotary, SwiGLU, grouped keys and values."""
    modern = {
        **_sizes(6, 512, 1408, 8),  # three matrices of 1408 cost what two of 2048 do
        **_both("num_key_value_heads", 4),
        "norm_type": "rms_norm",
        "norm_placement": "pre",
        "position_encoding": "rotary",
        "hidden_act": "silu",
        "gated_feed_forward": True,
        "feed_forward_bias": False,
    }
    return DragomanConfig(**{**modern, **overrides})


PRESETS = {
    preset.__name__: preset
    for preset in (tiny, small, multi30k_tiny, transformer_base, transformer_big, modern_base, deep_encoder)
}


def ends_a_target(tokenizer: Any) -> bool:
    """Whether labels end with the end token. A copy is asked: some set their target language by it."""
    try:
        return tokenizer.eos_token_id in copy.deepcopy(tokenizer)(text_target="a")["input_ids"]
    except KeyError:  # M2M100's, where no target language is set: they end
        return True


def fit(config_class: Any, tokenizer: Any, preset: Any, overrides: dict[str, Any]) -> Any:
    """The work behind ``from_tokenizer`` of either kind of configuration."""
    if tokenizer.pad_token_id is None or tokenizer.eos_token_id is None:
        missing = "pad_token" if tokenizer.pad_token_id is None else "eos_token"
        remedy = f"tokenizer.add_special_tokens({{{missing!r}: ...}}) gives it one"
        if missing == "eos_token" and getattr(tokenizer, "sep_token", None) is not None:
            remedy = "rows end with its sep_token, so tokenizer.eos_token = tokenizer.sep_token"
        raise ValueError(f"The tokenizer has no {missing}: {remedy}.")
    if not ends_a_target(tokenizer):
        logger.warning(
            f"This tokenizer does not put its eos_token {tokenizer.eos_token!r} at the end of a text: labels need "
            "it, or the model never learns to stop."
        )
    source = getattr(tokenizer, "source_vocab_size", len(tokenizer))
    target = getattr(tokenizer, "target_vocab_size", len(tokenizer))
    bos = tokenizer.bos_token_id
    if isinstance(preset, str) and preset not in PRESETS:
        raise ValueError(f"There is no preset {preset!r}; choose from {', '.join(PRESETS)}, or pass a DragomanConfig.")
    base = PRESETS[preset]() if isinstance(preset, str) else preset
    if getattr(base, "model_type", None) != config_class.model_type:
        raise ValueError(f"preset must be a {config_class.__name__}, not {preset!r:.80}.")
    fitted: dict[str, Any] = {
        "vocab_size": target,
        "source_vocab_size": None,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": bos,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": tokenizer.pad_token_id if bos is None else bos,
    }
    if getattr(tokenizer, "separate_vocabularies", False):
        fitted |= {"source_vocab_size": source, "share_embeddings": False}
    chosen = _chosen_fields(base)
    if "num_labels" in overrides or "id2label" in overrides:
        chosen = {name: value for name, value in chosen.items() if name not in ("id2label", "label2id")}
    config = config_class(**{**chosen, **fitted, **overrides})
    for name, size, needed in (
        ("vocab_size", config.vocab_size, target),
        ("source_vocab_size", config.source_vocab_size or config.vocab_size, source),
    ):
        if size < needed:
            raise ValueError(f"{name} {size} does not hold the tokenizer's {needed} ids: leave it out, or raise it.")
    return config


def _chosen_fields(config: Any) -> dict[str, Any]:
    """Fields as they were given: what was derived from others follows them when they are overridden."""
    derived = {**config.derived_fields(), "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}
    values = {field.name: copy.deepcopy(getattr(config, field.name)) for field in fields(config)}
    return {name: value for name, value in values.items() if value is not None and value != derived.get(name)}
