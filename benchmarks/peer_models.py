"""Models of one set of sizes, randomly initialised: transformers' own, ``nn.Transformer`` and x-transformers.

All share one matrix between source, target and head, but T5Gemma, which has two, and whose feed-forward layers have a
third matrix, a gate. None drops out attention. Called with ``input_ids``, ``attention_mask`` and ``labels``, all answer
with ``.loss``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    T5Config,
    T5ForConditionalGeneration,
    T5GemmaConfig,
    T5GemmaForConditionalGeneration,
)
from transformers.modeling_outputs import Seq2SeqLMOutput


class Sizes(NamedTuple):
    layers: int
    size: int
    feed_forward: int
    heads: int
    vocabulary: int

    def scaled(self, share: float) -> "Sizes":
        """Wider or narrower, of a size that the heads divide."""
        size = round(self.size * share / 16 / self.heads) * 16 * self.heads
        return self._replace(size=size, feed_forward=4 * size, vocabulary=round(self.vocabulary * share))

    def __str__(self) -> str:
        return f"{self.layers}+{self.layers} layers, {self.size}, {self.feed_forward}, V {self.vocabulary:,}"


SIZES = {"small": Sizes(3, 256, 1024, 4, 8_000), "base": Sizes(6, 512, 2048, 8, 32_000)}


class Ids(NamedTuple):
    pad: int  # decoders begin with it
    end: int

    def names(self) -> dict[str, Any]:
        return {"pad_token_id": self.pad, "eos_token_id": self.end, "decoder_start_token_id": self.pad}


def _like_bart(sizes: Sizes, ids: Ids, dropout: float, positions: int) -> dict[str, Any]:
    sides = {"layers": sizes.layers, "attention_heads": sizes.heads, "ffn_dim": sizes.feed_forward}
    fields: dict[str, Any] = {f"{side}_{name}": v for side in ("encoder", "decoder") for name, v in sides.items()}
    fields |= {"d_model": sizes.size, "vocab_size": sizes.vocabulary, "max_position_embeddings": positions}
    fields |= {"dropout": dropout, "attention_dropout": 0.0, "activation_dropout": 0.0, "scale_embedding": True}
    return fields | {"activation_function": "relu", "forced_eos_token_id": None, "bos_token_id": None, **ids.names()}


def marian(sizes: Sizes, ids: Ids, dropout: float = 0.0, positions: int = 256) -> Any:
    return MarianMTModel(MarianConfig(**_like_bart(sizes, ids, dropout, positions)))


def bart(sizes: Sizes, ids: Ids, dropout: float = 0.0, positions: int = 256) -> Any:
    return BartForConditionalGeneration(BartConfig(**_like_bart(sizes, ids, dropout, positions)))


def t5(sizes: Sizes, ids: Ids, dropout: float = 0.0, positions: int = 256) -> Any:
    fields: dict[str, Any] = {"num_layers": sizes.layers, "num_heads": sizes.heads, "d_kv": sizes.size // sizes.heads}
    fields |= {"d_model": sizes.size, "d_ff": sizes.feed_forward, "vocab_size": sizes.vocabulary}
    return T5ForConditionalGeneration(T5Config(**fields, **ids.names(), dropout_rate=dropout))


def t5gemma(sizes: Sizes, ids: Ids, dropout: float = 0.0, positions: int = 256) -> Any:
    """Without the capping of scores, which only eager attention can do."""
    head = sizes.size // sizes.heads
    side: dict[str, Any] = {"hidden_size": sizes.size, "intermediate_size": sizes.feed_forward, "head_dim": head}
    side |= {"num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads, "num_key_value_heads": sizes.heads}
    side |= {"query_pre_attn_scalar": head, "max_position_embeddings": positions, "attn_logit_softcapping": None}
    side |= {"final_logit_softcapping": None, "vocab_size": sizes.vocabulary}
    side |= {
        "pad_token_id": ids.pad,
        "eos_token_id": ids.end,
        "bos_token_id": ids.pad,
    }  # the labels' shift asks for bos
    config = T5GemmaConfig(
        encoder=side, decoder=dict(side), vocab_size=sizes.vocabulary, dropout_rate=dropout, **ids.names()
    )
    return T5GemmaForConditionalGeneration(config)


class TorchTransformer(nn.Module):
    """``nn.Transformer`` between learned positions and a tied head."""

    def __init__(self, sizes: Sizes, ids: Ids, dropout: float, positions: int) -> None:
        super().__init__()
        self.pad = ids.pad
        self.embed_tokens = nn.Embedding(sizes.vocabulary, sizes.size)
        self.embed_positions = nn.Embedding(positions, sizes.size)
        nn.init.normal_(self.embed_tokens.weight, std=sizes.size**-0.5)
        self.dropout = nn.Dropout(dropout)
        self.transformer = nn.Transformer(
            sizes.size, sizes.heads, sizes.layers, sizes.layers, sizes.feed_forward, dropout, batch_first=True
        )
        for module in self.transformer.modules():
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0

    def embed(self, ids: Tensor) -> Tensor:
        x = self.embed_tokens(ids) * self.embed_tokens.embedding_dim**0.5
        return self.dropout(x + self.embed_positions.weight[: ids.shape[1]])

    def encode(self, ids: Tensor, hidden: Tensor) -> Tensor:
        return self.transformer.encoder(self.embed(ids), src_key_padding_mask=hidden)

    def decode(self, ids: Tensor, memory: Tensor, hidden: Tensor) -> Tensor:
        length = ids.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool, device=ids.device).triu(1)
        options = {"tgt_mask": mask, "tgt_is_causal": True, "memory_key_padding_mask": hidden}
        return self.transformer.decoder(self.embed(ids), memory, **options)

    def head(self, states: Tensor) -> Tensor:
        return F.linear(states, self.embed_tokens.weight)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Seq2SeqLMOutput:
        hidden = attention_mask == 0
        shifted = F.pad(labels[:, :-1], (1, 0), value=self.pad)
        states = self.decode(shifted.masked_fill(shifted < 0, self.pad), self.encode(input_ids, hidden), hidden)
        return Seq2SeqLMOutput(loss=F.cross_entropy(self.head(states).flatten(0, 1), labels.flatten()))


class XTransformers(nn.Module):
    """x-transformers with flash attention, its norms after the sublayers as in the others."""

    def __init__(self, sizes: Sizes, ids: Ids, dropout: float, positions: int) -> None:
        from loguru import logger
        from x_transformers import XTransformer

        logger.disable("x_transformers")  # it advises larger heads for language models
        super().__init__()
        self.pad = ids.pad
        side: dict[str, Any] = {"num_tokens": sizes.vocabulary, "max_seq_len": positions, "depth": sizes.layers}
        side |= {"heads": sizes.heads, "attn_dim_head": sizes.size // sizes.heads, "attn_flash": True}
        side |= {"ff_mult": sizes.feed_forward / sizes.size, "pre_norm": False, "emb_dropout": dropout}
        side |= {"attn_sublayer_dropout": dropout, "ff_sublayer_dropout": dropout}
        sides = {f"{prefix}_{name}": value for prefix in ("enc", "dec") for name, value in side.items()}
        self.model = XTransformer(dim=sizes.size, pad_value=ids.pad, tie_token_emb=True, **sides)
        net = self.model.decoder.net
        nn.init.normal_(net.token_emb.emb.weight, std=sizes.size**-0.5)
        net.to_logits.weight = net.token_emb.emb.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Seq2SeqLMOutput:
        target = F.pad(labels, (1, 0), value=self.pad)
        return Seq2SeqLMOutput(loss=self.model(input_ids, target, mask=attention_mask.bool()))


def torch_transformer(sizes: Sizes, ids: Ids, dropout: float = 0.0, positions: int = 256) -> Any:
    return TorchTransformer(sizes, ids, dropout, positions)


def x_transformers(sizes: Sizes, ids: Ids, dropout: float = 0.0, positions: int = 256) -> Any:
    return XTransformers(sizes, ids, dropout, positions)


MODELS: dict[str, Callable[..., Any]] = {
    "Marian": marian,
    "BART": bart,
    "T5": t5,
    "T5Gemma": t5gemma,
    "nn.Transformer": torch_transformer,
    "x-transformers": x_transformers,
}
