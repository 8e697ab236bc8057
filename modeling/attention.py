"""Attention: ``softmax(QKᵀ · scale + mask + bias) V``, in several heads. Vaswani et al. 2017, section 3.2.

B batch, T queries, S keys, H query heads, K key/value heads, D head size, C model size.
"""

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_mask
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import maybe_autocast

from ..configuration.configuration_dragoman import DragomanConfig
from .few_keys import trains_on_few_keys
from .linear import Linear
from .packed_attention import attend_packed
from .packing import Packing
from .position_encodings import apply_rotary

TAKE_A_BIAS = ("eager", "sdpa", "flex_attention")
LayerSelection = bool | Sequence[int] | None  # of which layers to return weights: all, those listed, or none


def selected_layers(selection: LayerSelection, config: DragomanConfig) -> Collection[int]:
    """Indices of the layers to record. Raises ValueError for what is no layer of either stack."""
    layers = range(max(config.encoder_num_hidden_layers, config.decoder_num_hidden_layers))
    if selection is None or isinstance(selection, bool):
        return layers if selection else ()
    if not isinstance(selection, Sequence) or not set(selection) <= set(layers):
        raise ValueError(
            f"output_attentions takes True, False or a list of layers from 0 to {layers[-1]}, not {selection!r}."
        )
    return selection


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
    **_: Any,  # what other implementations are also told
) -> tuple[Tensor, Tensor]:
    """The reference. Query (B, H, T, D), key and value (B, K, S, D) → output (B, T, H, D), weights (B, H, T, S).

    Scores and softmax are taken in fp32 at least, as SDPA does: half-precision scores, once large, are all alike.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)  # (B, H, S, D)
    precise = torch.promote_types(query.dtype, torch.float32)
    with maybe_autocast(query.device.type, enabled=False):
        scores = query.to(precise) @ key.to(precise).transpose(2, 3) * scaling  # (B, H, T, S)
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is not None:
        scores = scores + additive(attention_mask, scores.dtype)
    weights = scores.softmax(dim=-1).to(query.dtype)
    output = F.dropout(weights, dropout) @ value  # (B, H, T, D)
    return output.transpose(1, 2), weights


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """True = attend becomes 0, False the most negative number; a mask that is a number already stays."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def dense_mask(
    mask: Any, causal: bool, queries: int, keys: int, device: torch.device, at_the_end: bool = False
) -> Tensor | None:
    """Whatever form an implementation asked its mask in, as one that the reference can add.

    ``at_the_end`` where an implementation that is given none takes the queries for the last of the keys.
    """
    if isinstance(mask, BlockMask):
        return create_mask(mask.mask_mod, mask.shape[0], 1, queries, keys, device)
    if mask is not None and mask.dim() == 4:
        return mask
    # None and (B, S) leave causality to the kernel: SDPA, which has no (B, S), aligns it top left.
    if mask is None and not causal:
        return None
    dense = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device)
    if causal and queries > 1:
        dense = dense.tril(0 if mask is None and not at_the_end else keys - queries)
    return dense if mask is None else dense & mask[:, None, None, -keys:].bool()


class Attention(nn.Module):
    """Multi-head attention over ``x`` itself, or over ``source`` where one is given (cross-attention).

    With fewer key/value heads than heads it is grouped-query attention, with one multi-query. Computed by the
    implementation that ``config._attn_implementation`` names; weights are returned on request only, then by the
    reference from the same q and k, and the output does not depend on the request.
    """

    def __init__(
        self, config: DragomanConfig, num_heads: int, num_key_value_heads: int, layer_idx: int, is_causal: bool
    ) -> None:
        super().__init__()
        self.config = config  # dispatch in transformers reads module.config
        self.layer_idx = layer_idx
        self.is_causal = is_causal
        self.head_dim = config.head_dim_of(num_heads)
        self.num_key_value_groups = num_heads // num_key_value_heads
        self.scaling = self.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        self.attention_dropout = config.attention_dropout
        size, bias = config.hidden_size, config.attention_bias
        self.q_proj = Linear(size, num_heads * self.head_dim, bias=bias)
        self.k_proj = Linear(size, num_key_value_heads * self.head_dim, bias=bias)
        self.v_proj = Linear(size, num_key_value_heads * self.head_dim, bias=bias)
        self.o_proj = Linear(num_heads * self.head_dim, size, bias=bias)

    def forward(
        self,
        x: Tensor,
        source: Tensor | None = None,
        *,
        mask: Any,
        rotary: tuple[Tensor, Tensor] | None = None,
        position_bias: Any = None,
        cache: EncoderDecoderCache | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        query = self._split_heads(self.q_proj(x))  # (B, H, T, D)
        if rotary is not None:
            query = apply_rotary(query, rotary)
        key, value = self._keys_and_values(x, source, rotary, cache)  # (B, K, S, D)
        options: dict[str, Any] = {"scaling": self.scaling}
        implementation = self.config._attn_implementation or "eager"
        if position_bias is not None and implementation not in TAKE_A_BIAS:
            raise NotImplementedError(
                f"The attention implementation {implementation!r} would drop the bias of position_encoding="
                f"{self.config.position_encoding!r}: choose one of {', '.join(TAKE_A_BIAS)}."
            )
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
        dropout = self.attention_dropout if self.training else 0.0
        if isinstance(mask, Packing):
            output = attend_packed(attend, self, query, key, value, mask, position_bias, dropout, self.scaling)
            return self.o_proj(output.flatten(2)), None  # (1, T, C)
        if position_bias is not None:
            options["position_bias"] = position_bias.to(query.dtype).expand(x.shape[0], -1, -1, -1)
        if isinstance(mask, Tensor) and mask.dim() == 4:
            mask = mask if mask.is_floating_point() else mask.bool()
            if implementation == "flex_attention":  # would add True as a number; its kernel for the CPU crashes
                attend = eager_attention
        shape = (query.shape[2], key.shape[2], query.device, "flash" in implementation)
        dense = partial(dense_mask, mask, self.is_causal, *shape)
        if implementation == "sdpa" and trains_on_few_keys(query, key, key.shape[2]):
            attend, mask = eager_attention, dense()
        output, weights = attend(self, query, key, value, mask, dropout=dropout, **options)
        if output_attentions and attend is not eager_attention:
            _, weights = eager_attention(self, query, key, value, dense(), **options)
        output = self.o_proj(output.reshape(*x.shape[:2], -1))  # (B, T, C)
        return output, weights if output_attentions else None

    def _keys_and_values(
        self, x: Tensor, source: Tensor | None, rotary: tuple[Tensor, Tensor] | None, cache: EncoderDecoderCache | None
    ) -> tuple[Tensor, Tensor]:
        if source is not None and cache is not None and cache.is_updated.get(self.layer_idx):
            layer: Any = cache.cross_attention_cache.layers[self.layer_idx]
            return _first(source.shape[1], layer.keys, layer.values)
        attended = x if source is None else source
        key, value = self._split_heads(self.k_proj(attended)), self._split_heads(self.v_proj(attended))
        if rotary is not None:
            key = apply_rotary(key, rotary)
        if cache is None:
            return key, value
        if source is None:
            return cache.self_attention_cache.update(key, value, self.layer_idx)
        cache.is_updated[self.layer_idx] = True
        return _first(source.shape[1], *cache.cross_attention_cache.update(key, value, self.layer_idx))

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, T, H·D) -> (B, H, T, D)


def _first(length: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """A static cache may have room for a longer source."""
    return key[:, :, :length], value[:, :, :length]
