"""The encoder: a stack of self-attention and feed-forward layers that sees the whole source."""

from typing import Any

from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
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
from .padding import mask_of_padding
from .position_encodings import positions_of


class EncoderLayer(GradientCheckpointingLayer):
    """``x → x + self_attn(x) → x + feed_forward(x)``, norms where :class:`Residual` puts them."""

    def __init__(self, config: DragomanConfig, layer_idx: int) -> None:
        super().__init__()
        heads = config.encoder_num_attention_heads
        groups = config.encoder_num_key_value_heads or heads
        self.self_attn = Attention(config, heads, groups, layer_idx, is_causal=False)
        self.self_attn_residual = build_residual(config)
        self.feed_forward = build_feed_forward(config, config.encoder_intermediate_size)
        self.feed_forward_residual = build_residual(config)
        self.position_bias = build_position_bias(config, heads, bidirectional=True, per_layer=True)
        outputs = (self.self_attn.o_proj, self.feed_forward.down_proj)
        mark_branch_outputs(outputs, branches=2 * config.encoder_num_hidden_layers)

    def forward(
        self,
        x: Tensor,
        mask: Any,
        positions: Tensor,
        rotary: tuple[Tensor, Tensor] | None = None,
        position_bias: Any = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        weights = None
        if self.position_bias is not None:
            position_bias = bias_of(self.position_bias, positions, positions, mask)

        def attend(x: Tensor) -> Tensor:
            nonlocal weights
            y, weights = self.self_attn(
                x, mask=mask, rotary=rotary, position_bias=position_bias, output_attentions=output_attentions
            )
            return y

        x = self.self_attn_residual(x, attend)
        # Not the module itself: hooks of an offloaded layer move every argument that can be moved.
        x = self.feed_forward_residual(x, lambda y: self.feed_forward(y))
        return x, weights


class Encoder(ModuleUtilsMixin, nn.Module):
    """Source ids (B, S), or vectors (B, S, C), to states (B, S, C)."""

    main_input_name = "input_ids"

    def __init__(self, config: DragomanConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens: nn.Module = build_token_embedding(config, "encoder")
        self.embedding = build_input_embedding(config, "encoder")
        self.rotary = build_rotary(config, "encoder")
        heads = config.encoder_num_attention_heads
        self.position_bias = build_position_bias(config, heads, bidirectional=True, per_layer=False)
        self.layers = nn.ModuleList(EncoderLayer(config, i) for i in range(config.encoder_num_hidden_layers))
        self.norm = build_norm(config) if config.final_norm else None

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: LayerSelection = None,
        output_hidden_states: bool | None = None,
        cu_seq_lens: Tensor | None = None,
        max_seq_len: int | None = None,
    ) -> BaseModelOutput:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("The encoder needs either input_ids or inputs_embeds.")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # (B, S, C)
        packed = cu_seq_lens is not None
        if attention_mask is None and input_ids is not None and not packed:
            attention_mask = mask_of_padding(input_ids, self.config)
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 4:
            raise ValueError(
                "A 4-D attention_mask does not tell where a token stands: pass position_ids (B, S) with it."
            )
        if cu_seq_lens is not None:
            others = {"attention_mask": attention_mask, "output_attentions": output_attentions or None}
            mask: Any = pack(x, cu_seq_lens, cu_seq_lens, longest=(max_seq_len, max_seq_len), **others)
            positions, columns = packed_positions(cu_seq_lens, x.shape[1]), mask.longest[0]
        else:
            mask = create_bidirectional_mask(self.config, x, attention_mask)
            positions, columns = positions_of(attention_mask, x.shape[1], x.device), x.shape[1]
        positions = positions if position_ids is None else position_ids
        x = self.embedding(x, positions, columns, "source")
        rotary = None if self.rotary is None else self.rotary(positions, x.dtype)
        position_bias = bias_of(self.position_bias, positions, positions, mask)

        recorded = selected_layers(output_attentions, self.config)
        states, attentions = [x], []
        for i, layer in enumerate(self.layers):
            x, weights = layer(x, mask, positions, rotary, position_bias, i in recorded)
            if output_hidden_states:
                states.append(x)
            attentions.append(weights)
        if self.norm is not None:
            x = states[-1] = self.norm(x)  # the last state recorded is the one returned
        return BaseModelOutput(
            last_hidden_state=x,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )
