"""Architectures at test size: every size is made small, every other option stays what it is."""

import difflib
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from ..configuration.configuration_dragoman import DragomanConfig
from ..configuration.presets import PRESETS

VOCABULARY = 48
HIDDEN, HEADS, HEAD_DIM = 32, 4, 8
ENCODER_LAYERS, DECODER_LAYERS = 3, 2  # not as many, so that mixing up the sides shows
POSITIONS = 64

Fields = dict[str, Any]
Overrides = Mapping[str, Any]


def shrink_preset(name: str, overrides: Overrides) -> DragomanConfig:
    """A preset of ours at test size; ``overrides`` come last."""
    full = PRESETS[name]()
    sizes: Fields = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "head_dim": full.head_dim and HEAD_DIM,
        "max_position_embeddings": POSITIONS,
        "encoder_num_hidden_layers": min(full.encoder_num_hidden_layers, ENCODER_LAYERS),
        "decoder_num_hidden_layers": min(full.decoder_num_hidden_layers, DECODER_LAYERS),
    }
    for side, intermediate in (("encoder", 40), ("decoder", 48)):
        heads, groups = (getattr(full, f"{side}_num_{kind}_heads") for kind in ("attention", "key_value"))
        sizes[f"{side}_num_attention_heads"] = HEADS
        sizes[f"{side}_num_key_value_heads"] = max(1, HEADS * groups // heads)
        sizes[f"{side}_intermediate_size"] = intermediate
    if "position_encoding" in overrides and "rope_parameters" not in overrides:
        sizes["rope_parameters"] = None
    return PRESETS[name](**{**sizes, **overrides})


def shrink_config(config_class: type[PreTrainedConfig], overrides: Overrides) -> PreTrainedConfig:
    """The default configuration of an architecture of transformers at test size.

    Raises:
        ValueError: for an override that is not a field of it.
    """
    default = config_class()
    for name in overrides:
        if not hasattr(default, name):
            near = difflib.get_close_matches(name, default.to_dict(), n=1, cutoff=0.6)
            raise ValueError(
                f"{config_class.__name__} has no field {name!r}." + (f" Did you mean {near[0]}?" if near else "")
            )
    fields = small_fields(default.to_dict(), decoder=False)
    if "d_kv" in fields and getattr(default, "decoder_start_token_id", None) is None:
        fields["decoder_start_token_id"] = fields["pad_token_id"]  # T5's convention, which its class leaves to the user
    return config_class(**{**fields, **overrides})


def without_dropout(config: PreTrainedConfig) -> PreTrainedConfig:
    for name, value in config.to_dict().items():
        if is_dropout(name) and isinstance(value, int | float):
            setattr(config, name, 0.0)
        elif isinstance(getattr(config, name, None), PreTrainedConfig):
            without_dropout(getattr(config, name))
    return config


def is_dropout(name: str) -> bool:
    return any(part in name for part in ("dropout", "layerdrop", "pdrop", "jitter"))  # GPT-2's, and routers'


def small_fields(full: Fields, decoder: bool) -> Fields:
    """Those of the fields that are to change, with their new values."""
    vocabulary = max((v for k, v in full.items() if k.endswith("vocab_size") and isinstance(v, int)), default=0)
    layers = DECODER_LAYERS if decoder else ENCODER_LAYERS
    small: Fields = {}
    for name, value in full.items():
        if isinstance(value, dict) and "model_type" in value:
            small[name] = small_fields(value, name == "decoder")
        elif name == "layer_types":
            small[name] = value[:layers]
        elif isinstance(value, int) and not isinstance(value, bool):
            if name.endswith("_token_id"):
                small[name] = value if value < VOCABULARY or vocabulary == 0 else VOCABULARY - 1
            elif (size := small_size(name, value, layers, full)) is not None:
                small[name] = size
    return small


def small_size(name: str, value: int, layers: int, full: Fields) -> int | None:
    if name.endswith("vocab_size"):
        return VOCABULARY
    if name in ("d_model", "hidden_size", "cross_attention_hidden_size"):
        return HIDDEN
    if name in ("decoder_layers", "num_decoder_layers", "decoder_num_hidden_layers"):
        return DECODER_LAYERS
    if name in ("encoder_layers", "num_layers", "num_hidden_layers", "encoder_num_hidden_layers"):
        return layers
    if name.endswith("key_value_heads"):
        return HEADS if value == full.get(name.replace("key_value", "attention")) else HEADS // 2
    if name.endswith("heads"):
        return HEADS
    if name in ("d_kv", "head_dim", "query_pre_attn_scalar"):
        return HEAD_DIM
    if name.endswith(("ffn_dim", "d_ff", "intermediate_size")):
        return 48
    if name.endswith("position_embeddings"):
        return min(value, POSITIONS)
    if name in ("num_experts", "expert_capacity", "attention_window"):
        return min(value, 8)
    return None
