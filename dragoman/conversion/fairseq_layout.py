"""The layout that families out of fairseq have in common: names of modules, and of configuration fields."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from .families import Family

_ATTENTION = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "out_proj": "o_proj"}
_LAYER = {
    **{f"self_attn.{theirs}": f"self_attn.{ours}" for theirs, ours in _ATTENTION.items()},
    "self_attn_layer_norm": "self_attn_residual.norm",
    "fc1": "feed_forward.up_proj",
    "fc2": "feed_forward.down_proj",
    "final_layer_norm": "feed_forward_residual.norm",
}
_CROSS_ATTENTION = {
    **{f"encoder_attn.{theirs}": f"cross_attn.{ours}" for theirs, ours in _ATTENTION.items()},
    "encoder_attn_layer_norm": "cross_attn_residual.norm",
}
LAYERS = {
    **{f"model.encoder.layers.{{}}.{a}": f"model.encoder.layers.{{}}.{b}" for a, b in _LAYER.items()},
    **{
        f"model.decoder.layers.{{}}.{a}": f"model.decoder.layers.{{}}.{b}"
        for a, b in (_LAYER | _CROSS_ATTENTION).items()
    },
}


def both_stacks(theirs: str, ours: str) -> dict[str, str]:
    """A pair of module names for each of encoder and decoder."""
    return {f"model.{side}.{theirs}": f"model.{side}.{ours}" for side in ("encoder", "decoder")}


class FairseqFamily(Family):
    """Biases everywhere, a plain feed-forward, LayerNorm with eps 1e-5, one vocabulary, ``final_logits_bias``.

    ``final_logits_bias`` is not trained in-tree; where it is zero ours does without.
    """

    fields: ClassVar[Mapping[str, str]] = {
        "vocab_size": "vocab_size",
        "d_model": "hidden_size",
        "encoder_layers": "encoder_num_hidden_layers",
        "decoder_layers": "decoder_num_hidden_layers",
        "encoder_attention_heads": "encoder_num_attention_heads",
        "decoder_attention_heads": "decoder_num_attention_heads",
        "encoder_ffn_dim": "encoder_intermediate_size",
        "decoder_ffn_dim": "decoder_intermediate_size",
        "activation_function": "hidden_act",
        "max_position_embeddings": "max_position_embeddings",
        "scale_embedding": "scale_embedding",
        "dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "activation_dropout": "activation_dropout",
        "pad_token_id": "pad_token_id",
        "bos_token_id": "bos_token_id",
        "eos_token_id": "eos_token_id",
        "decoder_start_token_id": "decoder_start_token_id",
    }
    constants: ClassVar[Mapping[str, Any]] = {
        "source_vocab_size": None,
        "head_dim": None,
        "gated_feed_forward": False,
        "norm_type": "layer_norm",
        "norm_bias": True,
        "norm_eps": 1e-5,
        "norm_before_positions": False,
        "attention_bias": True,
        "feed_forward_bias": True,
        "attention_scale": None,
        "logits_scale": 1.0,
        "train_pad_embedding": True,
    }
    modules: ClassVar[Mapping[str, str]] = LAYERS
    parameters: ClassVar[Mapping[str, str]] = {"final_logits_bias": "lm_head.bias"}
    source_embeddings = ("model.encoder.embed_tokens.weight", "model.shared.weight")
    target_embeddings = ("model.decoder.embed_tokens.weight", "model.shared.weight")
    heads = ("lm_head.weight",)

    def our_fields(self, config: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        bias = tensors.get("final_logits_bias")
        return {"logits_bias": bias is not None and bool(bias.any())}
