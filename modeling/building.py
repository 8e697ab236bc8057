"""From a configuration to parts: the only place that hands its fields to their keywords."""

from typing import Literal

from torch import nn

from ..configuration.configuration_dragoman import DragomanConfig
from .embeddings import InputEmbedding, TokenEmbedding
from .feed_forward import FeedForward
from .norms import LayerNorm, RMSNorm
from .position_biases import AlibiBias, RelativeBias
from .position_encodings import RotaryEmbedding
from .residual import Residual


def build_token_embedding(config: DragomanConfig, vocab_size: int) -> TokenEmbedding:
    scale = config.hidden_size**0.5 if config.scale_embedding else 1.0
    fixed_id = None if config.train_pad_embedding else config.pad_token_id
    return TokenEmbedding(vocab_size, config.hidden_size, scale, fixed_id)


def build_norm(config: DragomanConfig) -> nn.Module:
    if config.norm_type == "rms_norm":
        return RMSNorm(config.hidden_size, config.norm_eps)
    return LayerNorm(config.hidden_size, config.norm_eps, bool(config.norm_bias))


def build_input_embedding(config: DragomanConfig, side: Literal["encoder", "decoder"]) -> InputEmbedding:
    norm = build_norm(config) if config.embedding_norm else None
    return InputEmbedding(config, norm, norm_first=config.norm_before_positions and side == "decoder")


def build_residual(config: DragomanConfig) -> Residual:
    return Residual(build_norm(config), config.norm_placement, config.dropout)


def build_feed_forward(config: DragomanConfig, intermediate_size: int) -> FeedForward:
    return FeedForward(
        config.hidden_size,
        intermediate_size,
        config.hidden_act,
        gated=config.gated_feed_forward,
        bias=config.feed_forward_bias,
        dropout=config.activation_dropout,
    )


def build_rotary(config: DragomanConfig, side: Literal["encoder", "decoder"]) -> RotaryEmbedding | None:
    if config.position_encoding != "rotary":
        return None
    view = config.get_text_config(**{side: True})  # a copy whose num_attention_heads is that of the side
    view.head_dim = config.head_dim_of(view.num_attention_heads)
    return RotaryEmbedding(view)


def build_position_bias(
    config: DragomanConfig, num_heads: int, bidirectional: bool, per_layer: bool
) -> AlibiBias | RelativeBias | None:
    """The bias that a layer (``per_layer``) or a whole stack owns, if it owns one."""
    if per_layer != config.relative_attention_per_layer:
        return None
    if config.position_encoding == "alibi":
        return AlibiBias(num_heads)
    if config.position_encoding == "relative":
        buckets, distance = config.relative_attention_num_buckets, config.relative_attention_max_distance
        return RelativeBias(num_heads, buckets, distance, bidirectional)
    return None
