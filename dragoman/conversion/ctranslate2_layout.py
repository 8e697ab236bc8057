"""Which parameters of Dragoman stand in which variables of CTranslate2: one map, read in both directions."""

from collections.abc import Iterator

from ..configuration.configuration_dragoman import DragomanConfig

# Scope in a layer of the engine: the modules whose rows it holds, one after the other.
_ENCODER_LAYER = {
    "self_attention/layer_norm": ("self_attn_residual.norm",),
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.o_proj",),
    "ffn/layer_norm": ("feed_forward_residual.norm",),
    "ffn/linear_1": ("feed_forward.down_proj",),
}
_DECODER_LAYER = {
    **_ENCODER_LAYER,
    "attention/layer_norm": ("cross_attn_residual.norm",),
    "attention/linear_0": ("cross_attn.q_proj",),
    "attention/linear_1": ("cross_attn.k_proj", "cross_attn.v_proj"),
    "attention/linear_2": ("cross_attn.o_proj",),
}
_PLAIN = {"ffn/linear_0": ("feed_forward.up_proj",)}
_GATED = {"ffn/linear_0": ("feed_forward.gate_proj",), "ffn/linear_0_noact": ("feed_forward.up_proj",)}

RELATIVE_BIAS = "self_attention/relative_attention_bias"
ENCODINGS = "position_encodings/encodings"


def parameter_map(config: DragomanConfig) -> dict[str, tuple[str, ...]]:
    """Variable of the engine: the parameters that it holds, their rows one after the other.

    Learned positions are in; tables that Dragoman computes are not. A bias of a LayerNorm is in, whether or not the
    model has one: the engine takes a norm without one for RMSNorm.
    """
    return dict(_entries(config))


def _entries(config: DragomanConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    sides = (
        ("encoder", "encoder/embeddings_0", config.encoder_num_hidden_layers, _ENCODER_LAYER),
        ("decoder", "decoder/embeddings", config.decoder_num_hidden_layers, _DECODER_LAYER),
    )
    for side, embeddings, layers, table in sides:
        stack = f"model.{side}"
        yield f"{embeddings}/weight", (f"{stack}.embed_tokens.weight",)
        if config.position_encoding == "learned":
            yield f"{side}/{ENCODINGS}", (f"{stack}.embedding.positions.weight",)
        if config.embedding_norm:
            yield from _norm(config, f"{side}/layernorm_embedding", f"{stack}.embedding.norm")
        if config.final_norm:
            yield from _norm(config, f"{side}/layer_norm", f"{stack}.norm")
        for i in range(layers):
            for scope, modules in {**table, **(_GATED if config.gated_feed_forward else _PLAIN)}.items():
                names = tuple(f"{stack}.layers.{i}.{module}" for module in modules)
                if scope.endswith("norm"):
                    yield from _norm(config, f"{side}/layer_{i}/{scope}", names[0])
                else:
                    bias = config.feed_forward_bias if scope.startswith("ffn") else config.attention_bias
                    yield from _linear(f"{side}/layer_{i}/{scope}", names, bias)
            if config.position_encoding == "relative":  # the engine takes the same in every layer for one of the stack
                owner = f"{stack}.layers.{i}" if config.relative_attention_per_layer else stack
                yield f"{side}/layer_{i}/{RELATIVE_BIAS}", (f"{owner}.position_bias.weight",)
    yield from _linear("decoder/projection", ("lm_head",), config.logits_bias)


def _linear(scope: str, modules: tuple[str, ...], bias: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
    for leaf in ("weight", "bias") if bias else ("weight",):
        yield f"{scope}/{leaf}", tuple(f"{module}.{leaf}" for module in modules)


def _norm(config: DragomanConfig, scope: str, module: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield f"{scope}/gamma", (f"{module}.weight",)
    if config.norm_type == "layer_norm":
        yield f"{scope}/beta", (f"{module}.bias",)
