"""T5 (1.0, 1.1, FLAN, ByT5), mT5 and umT5.

Pre-norm with RMSNorm; no bias anywhere but that of relative positions, which the first layer of a stack owns in-tree
and the stack owns here; in umT5 every layer owns one. Scores are not scaled. The size of a head (``d_kv``) is free;
number of heads, feed-forward size and dropout are the same on both sides. In-tree takes distances from columns, which
comes to the same however a row is padded.

Feed-forward: ``dense_act_fn`` and ``is_gated_act`` count. In-tree derives them from ``feed_forward_proj``, where
"gated-gelu" means gelu_new, unless the file has them.

Head: configurations of transformers 5.23 always say tied, but its classes leave apart what a file holds twice with
different values; so do we, for the head and for the embeddings of either side. (A head tied to the encoder's alone is
a copy here, trained apart.) The logits of T5 1.0 are scaled by ``d_model ** -0.5``, those of 1.1 are not
(``scale_decoder_outputs``). mT5 in-tree never scales. umT5 in-tree always does, whatever its file says; earlier
versions did not where it said untied. The most probable token is the same either way, probabilities are not.

Training: ``dropout_rate`` acts on embeddings, branches, attention weights and inside the feed-forward, here as there.
In-tree it also acts on the states after the last norm; here it does not.

Half precision: in fp16 in-tree keeps ``wo``, and with it the residual stream, in fp32, and clamps infinite states. Ours
does neither. What was rounded to fp16 but for ``wo`` becomes fp32 here, so that nothing is lost.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from ..configuration.configuration_dragoman import DragomanConfig
from .families import Family

_ATTENTION = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}


def _sublayer(number: int, attention: str, ours: str) -> dict[str, str]:
    return {
        f"layer.{number}.layer_norm": f"{ours}_residual.norm",
        **{f"layer.{number}.{attention}.{theirs}": f"{ours}.{name}" for theirs, name in _ATTENTION.items()},
    }


def _feed_forward(number: int) -> dict[str, str]:
    return {
        f"layer.{number}.layer_norm": "feed_forward_residual.norm",
        f"layer.{number}.DenseReluDense.wi": "feed_forward.up_proj",
        f"layer.{number}.DenseReluDense.wo": "feed_forward.down_proj",
    }


_LAYERS = {
    "encoder": _sublayer(0, "SelfAttention", "self_attn") | _feed_forward(1),
    "decoder": _sublayer(0, "SelfAttention", "self_attn")
    | _sublayer(1, "EncDecAttention", "cross_attn")
    | _feed_forward(2),
}
_STACKS = {
    **{
        f"{side}.block.{{}}.{theirs}": f"model.{side}.layers.{{}}.{ours}"
        for side, names in _LAYERS.items()
        for theirs, ours in names.items()
    },
    "encoder.final_layer_norm": "model.encoder.norm",
    "decoder.final_layer_norm": "model.decoder.norm",
}
_BIAS = "block.{}.layer.0.SelfAttention.relative_attention_bias"


class T5Family(Family):
    fields: ClassVar[Mapping[str, str | tuple[str, ...]]] = {
        "vocab_size": "vocab_size",
        "d_model": "hidden_size",
        "num_layers": "encoder_num_hidden_layers",
        "num_decoder_layers": "decoder_num_hidden_layers",
        "num_heads": ("encoder_num_attention_heads", "decoder_num_attention_heads"),
        "d_ff": ("encoder_intermediate_size", "decoder_intermediate_size"),
        "relative_attention_num_buckets": "relative_attention_num_buckets",
        "relative_attention_max_distance": "relative_attention_max_distance",
        "dropout_rate": ("dropout", "attention_dropout", "activation_dropout"),
        "layer_norm_epsilon": "norm_eps",
        "pad_token_id": "pad_token_id",
        "eos_token_id": "eos_token_id",
    }
    constants: ClassVar[Mapping[str, Any]] = {
        "source_vocab_size": None,
        "position_encoding": "relative",
        "relative_attention_per_layer": False,
        "norm_type": "rms_norm",
        "norm_placement": "pre",
        "norm_bias": False,
        "embedding_norm": False,
        "norm_before_positions": False,
        "final_norm": True,
        "attention_bias": False,
        "feed_forward_bias": False,
        "attention_scale": 1.0,
        "logits_bias": False,
        "scale_embedding": False,
        "train_pad_embedding": True,
    }
    modules: ClassVar[Mapping[str, str]] = {
        **_STACKS,
        f"encoder.{_BIAS.format(0)}": "model.encoder.position_bias",
        f"decoder.{_BIAS.format(0)}": "model.decoder.position_bias",
    }
    source_embeddings = ("encoder.embed_tokens.weight", "shared.weight", "decoder.embed_tokens.weight")
    target_embeddings = ("decoder.embed_tokens.weight", "shared.weight", "encoder.embed_tokens.weight")
    heads = ("lm_head.weight", "shared.weight")
    ties = ((True, True), (True, False), (False, True), (False, False))
    scaled: ClassVar[tuple[bool, ...]]  # whether logits may be scaled, and may not

    def is_scaled(self, config: Any) -> bool:
        return self.scaled[0]

    def module_pairs(self, config: DragomanConfig) -> dict[str, str]:
        pairs = super().module_pairs(config)
        if config.gated_feed_forward:
            plain = {ours: theirs for ours, theirs in pairs.items() if theirs.endswith(".wi")}
            pairs |= {ours: f"{theirs}_1" for ours, theirs in plain.items()}
            pairs |= {ours.replace("up_proj", "gate_proj"): f"{theirs}_0" for ours, theirs in plain.items()}
        return pairs

    def our_fields(self, config: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        start = getattr(config, "decoder_start_token_id", None)
        return {
            "head_dim": None if config.d_kv * config.num_heads == config.d_model else config.d_kv,
            "hidden_act": config.dense_act_fn,
            "gated_feed_forward": config.is_gated_act,
            "logits_scale": config.d_model**-0.5 if self.is_scaled(config) else 1.0,
            "bos_token_id": getattr(config, "bos_token_id", None),
            "decoder_start_token_id": config.pad_token_id if start is None else start,
        }

    def problems_of(self, config: Any) -> list[str]:
        if getattr(config, "decoder_start_token_id", None) is not None:
            return []
        return [f"decoder_start_token_id is not set; published models have their pad token, {config.pad_token_id}"]

    def their_fields(self, config: DragomanConfig) -> dict[str, Any]:
        act = "gelu" if config.hidden_act == "gelu_new" and config.gated_feed_forward else config.hidden_act
        return {
            "d_kv": config.head_dim_of(config.encoder_num_attention_heads),
            "feed_forward_proj": f"gated-{act}" if config.gated_feed_forward else act,
            "dense_act_fn": config.hidden_act,
            "bos_token_id": config.bos_token_id,
            "decoder_start_token_id": config.decoder_start_token_id,
        }

    def our_problems(self, config: DragomanConfig) -> list[str]:
        scales = [config.hidden_size**-0.5 if scaled else 1.0 for scaled in self.scaled]
        if any(math.isclose(config.logits_scale, scale) for scale in scales):
            return []
        return [f"logits_scale={config.logits_scale!r}; {self.model_type} has {' or '.join(map(repr, scales))} only"]


class T5(T5Family):
    model_type = "t5"
    architecture = "T5ForConditionalGeneration"
    tokenizer = "T5Tokenizer"
    scaled = (True, False)

    def is_scaled(self, config: Any) -> bool:
        return bool(config.scale_decoder_outputs)

    def their_fields(self, config: DragomanConfig) -> dict[str, Any]:
        return super().their_fields(config) | {"scale_decoder_outputs": config.logits_scale != 1.0}


class MT5(T5Family):
    model_type = "mt5"
    architecture = "MT5ForConditionalGeneration"
    tokenizer = "T5Tokenizer"
    scaled = (False,)


class UMT5(T5Family):
    model_type = "umt5"
    architecture = "UMT5ForConditionalGeneration"
    tokenizer = "TokenizersBackend"
    constants: ClassVar[Mapping[str, Any]] = {**T5Family.constants, "relative_attention_per_layer": True}
    modules: ClassVar[Mapping[str, str]] = {
        **_STACKS,
        f"encoder.{_BIAS}": "model.encoder.layers.{}.position_bias",
        f"decoder.{_BIAS}": "model.decoder.layers.{}.position_bias",
    }
    scaled = (True,)

    def is_scaled(self, config: Any) -> bool:
        return bool(config.tie_word_embeddings)
