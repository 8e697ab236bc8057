"""The decoder: self-attention over what was written, cross-attention over the source, feed-forward."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.modeling_utils import ModuleUtilsMixin
from transformers.utils.generic import can_return_tuple

from ..configuration.configuration_dragoman import DragomanConfig
from .attention import Attention, LayerSelection, selected_layers
from .building import (
    build_feed_forward,
    build_input_embedding,
    build_norm,
    build_position_bias,
    build_residual,
    build_rotary,
    build_token_embedding,
)
from .initialization import mark_branch_outputs
from .packing import bias_of, pack, packed_positions
from .padding import check_target
from .position_biases import BIASED_SCHEMES
from .position_encodings import positions_of, refuse_to_guess


class DecoderLayer(GradientCheckpointingLayer):
    """``x → x + self_attn(x) → x + cross_attn(x, source) → x + feed_forward(x)``."""

    def __init__(self, config: DragomanConfig, layer_idx: int) -> None:
        super().__init__()
        heads = config.decoder_num_attention_heads
        groups = config.decoder_num_key_value_heads or heads
        self.self_attn = Attention(config, heads, groups, layer_idx, is_causal=True)
        self.self_attn_residual = build_residual(config)
        self.cross_attn = Attention(config, heads, groups, layer_idx, is_causal=False)
        self.cross_attn_residual = build_residual(config)
        self.feed_forward = build_feed_forward(config, config.decoder_intermediate_size)
        self.feed_forward_residual = build_residual(config)
        self.position_bias = build_position_bias(config, heads, bidirectional=False, per_layer=True)
        outputs = (self.self_attn.o_proj, self.cross_attn.o_proj, self.feed_forward.down_proj)
        mark_branch_outputs(outputs, branches=3 * config.decoder_num_hidden_layers)

    def forward(
        self,
        x: Tensor,
        source: Tensor,
        mask: Any,
        source_mask: Any,
        positions: tuple[Tensor, Tensor],  # of queries and keys
        rotary: tuple[Tensor, Tensor] | None = None,
        position_bias: Any = None,
        output_attentions: bool = False,
        past_key_values: EncoderDecoderCache | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        weights = cross_weights = None
        if self.position_bias is not None:
            position_bias = bias_of(self.position_bias, *positions, mask)

        def attend(x: Tensor) -> Tensor:
            nonlocal weights
            y, weights = self.self_attn(
                x,
                mask=mask,
                rotary=rotary,
                position_bias=position_bias,
                cache=past_key_values,
                output_attentions=output_attentions,
            )
            return y

        def attend_to_source(x: Tensor) -> Tensor:
            nonlocal cross_weights
            y, cross_weights = self.cross_attn(
                x, source, mask=source_mask, cache=past_key_values, output_attentions=output_attentions
            )
            return y

        x = self.self_attn_residual(x, attend)
        x = self.cross_attn_residual(x, attend_to_source)
        # Not the module itself: hooks of an offloaded layer move every argument that can be moved.
        x = self.feed_forward_residual(x, lambda y: self.feed_forward(y))
        return x, weights, cross_weights


class Decoder(ModuleUtilsMixin, nn.Module):
    """Target ids (B, T), or vectors (B, T, C), and encoder states (B, S, C) to states (B, T, C)."""

    main_input_name = "input_ids"

    def __init__(self, config: DragomanConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = build_token_embedding(config, "decoder")
        self.embedding = build_input_embedding(config, "decoder")
        self.rotary = build_rotary(config, "decoder")
        heads = config.decoder_num_attention_heads
        self.position_bias = build_position_bias(config, heads, bidirectional=False, per_layer=False)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.decoder_num_hidden_layers))
        self.norm = build_norm(config) if config.final_norm else None
        self.gradient_checkpointing = False

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        use_cache: bool | None = None,
        output_attentions: LayerSelection = None,
        output_hidden_states: bool | None = None,
        cu_seq_lens: Tensor | None = None,
        encoder_cu_seq_lens: Tensor | None = None,
        max_seq_len: int | None = None,
        encoder_max_seq_len: int | None = None,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        check_target(input_ids, inputs_embeds)
        if encoder_hidden_states is None:
            raise ValueError("The decoder needs encoder_hidden_states to attend to.")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # (B, T, C)
        if cu_seq_lens is not None and encoder_cu_seq_lens is not None:
            cache = None
            others = {"decoder_attention_mask": attention_mask, "past_key_values": past_key_values}
            others |= {"output_attentions": output_attentions or None, "use_cache": use_cache}
            mask: Any = pack(x, cu_seq_lens, cu_seq_lens, longest=(max_seq_len, max_seq_len), **others)
            source_mask: Any = pack(x, cu_seq_lens, encoder_cu_seq_lens, longest=(max_seq_len, encoder_max_seq_len))
            queries = packed_positions(cu_seq_lens, x.shape[1]) if position_ids is None else position_ids
            keys, columns = queries, mask.longest[0]
        else:
            cache = self._cache(past_key_values, use_cache)
            queries, keys = self._positions(attention_mask, position_ids, cache, x)
            own = None if cache is None else cache.self_attention_cache
            mask = create_causal_mask(self.config, x, attention_mask, own, position_ids=None)
            source_mask = create_bidirectional_mask(
                self.config, x, encoder_attention_mask, encoder_hidden_states=encoder_hidden_states
            )
            columns = keys.shape[1]
        x = self.embedding(x, queries, columns, "target")
        rotary = None if self.rotary is None else self.rotary(queries, x.dtype)
        position_bias = bias_of(self.position_bias, queries, keys, mask)

        recorded = selected_layers(output_attentions, self.config)
        states, attentions, cross_attentions = [x], [], []
        for i, layer in enumerate(self.layers):
            x, weights, cross_weights = layer(
                x,
                encoder_hidden_states,
                mask,
                source_mask,
                (queries, keys),
                rotary,
                position_bias,
                i in recorded,
                past_key_values=cache,
            )
            if output_hidden_states:
                states.append(x)
            attentions.append(weights)
            cross_attentions.append(cross_weights)
        if self.norm is not None:
            x = states[-1] = self.norm(x)  # the last state recorded is the one returned
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=x,
            past_key_values=cache,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
            cross_attentions=tuple(cross_attentions) if output_attentions else None,
        )

    def _cache(self, cache: Cache | None, use_cache: bool | None) -> EncoderDecoderCache | None:
        use_cache = self.config.use_cache and not self.training if use_cache is None else use_cache
        if cache is not None and not isinstance(cache, EncoderDecoderCache):
            raise TypeError(f"past_key_values must be an EncoderDecoderCache, got {type(cache).__name__}.")
        if self.gradient_checkpointing and self.training:
            if cache is not None:
                raise ValueError(
                    "Gradient checkpointing runs layers twice and cannot fill a cache: call model.eval() first."
                )
            return None
        if cache is None and use_cache:
            return EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache(config=self.config))
        return cache

    def _positions(
        self,
        attention_mask: Any,
        position_ids: Tensor | None,
        cache: EncoderDecoderCache | None,
        x: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Positions of the queries (B, T) and of all keys, those of the cache included (B, S)."""
        length = x.shape[1]
        if position_ids is not None and cache is None:
            return position_ids, position_ids
        past = 0 if cache is None else cache.get_seq_length()  # a tensor in a static cache
        total = length if cache is None else cache.self_attention_cache.get_mask_sizes(length, 0)[0]
        known = attention_mask.shape[-1] if isinstance(attention_mask, Tensor) else total
        if isinstance(past, int) and known < past + length:
            raise ValueError(
                f"decoder_attention_mask has {known} columns, and the cache holds {past} tokens before these {length}: "
                f"pass a mask of all {past + length}."
            )
        keys = positions_of(attention_mask if isinstance(attention_mask, Tensor) else None, total, x.device)
        keys = F.pad(keys, (0, total - keys.shape[1]))  # a static cache has room that the mask does not know
        columns = torch.arange(length, device=x.device) + past
        if position_ids is None:
            refuse_to_guess(attention_mask)
            return keys[:, columns], keys
        if self.config.position_encoding in BIASED_SCHEMES and (isinstance(past, Tensor) or past > 0):
            raise ValueError(
                f"With position_encoding={self.config.position_encoding!r}, decoder_position_ids cannot continue a "
                "cache, which does not keep the positions of its keys: pass decoder_attention_mask instead."
            )
        rows = max(len(keys), len(position_ids))
        given = position_ids.to(keys.dtype).expand(rows, -1)
        return position_ids, keys.expand(rows, -1).index_copy(1, columns, given)
