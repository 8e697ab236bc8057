"""The recurrent decoder: a state that remembers what was written, and asks the source if it may.

::

    none             hₜ = RNN(eₜ, hₜ₋₁)                                  oₜ = hₜ
    dot, general,    hₜ = RNN(eₜ, hₜ₋₁)      cₜ = attend(hₜ, source)     oₜ = tanh(W [cₜ, hₜ])
    concat
    … input feeding  hₜ = RNN([eₜ, oₜ₋₁], hₜ₋₁)
    additive         cₜ = attend(hₜ₋₁, source)   hₜ = RNN([eₜ, cₜ], hₜ₋₁)   oₜ = tanh(W [cₜ, hₜ])

The first two know every input before they begin, so a known target is one call of the fused kernel.
"""

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.modeling_utils import ModuleUtilsMixin
from transformers.utils.generic import can_return_tuple

from ..configuration.configuration_dragoman_recurrent import DragomanRecurrentConfig
from .dropout import Dropout
from .embeddings import TokenEmbedding
from .padding import check_target
from .recurrent_attention import RecurrentAttention
from .recurrent_layers import RecurrentLayers
from .recurrent_state import RecurrentState


class RecurrentDecoder(ModuleUtilsMixin, nn.Module):
    """Target ids (B, T), or vectors (B, T, C), and a source to states (B, T, C)."""

    main_input_name = "input_ids"

    def __init__(self, config: DragomanRecurrentConfig) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.embed_tokens: nn.Module = TokenEmbedding(config.vocab_size, size, scale=1.0)
        self.dropout = Dropout(config.dropout)
        input_size = size if config.runs_at_once else 2 * size
        self.layers = RecurrentLayers(config.cell, input_size, size, config.num_hidden_layers, False, config.dropout)
        self.attention: RecurrentAttention | None = None
        self.combine: nn.Linear | None = None
        if config.attention != "none":
            self.attention = RecurrentAttention(size, config.attention)
            self.combine = nn.Linear(2 * size, size, bias=False)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: RecurrentState | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """``past_key_values`` holds the state to begin in, and what of the source there is to attend to.

        ``hidden_states`` are two, however many the layers: what the first one reads, and what is returned.
        """
        check_target(input_ids, inputs_embeds)
        if past_key_values is None or past_key_values.hidden is None:
            raise ValueError("The decoder needs past_key_values with the state in which the encoder ended.")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # (B, T, C)
        x = self.dropout(x)
        mask = None if attention_mask is None else self._mask_of(x.shape[1], past_key_values.length, attention_mask)
        if mask is not None and bool(mask.all()):
            mask = None  # so that no step has to look
        run = self._run_at_once if self.config.runs_at_once else self._run_stepwise
        states, weights = run(x, mask, encoder_attention_mask, past_key_values)
        past_key_values.length += x.shape[1]
        returned = self.dropout(states)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=returned,
            past_key_values=past_key_values,  # type: ignore[arg-type]
            hidden_states=(x, returned) if output_hidden_states else None,
            cross_attentions=(weights[:, None],) if output_attentions and weights is not None else None,  # (B, 1, T, S)
        )

    @staticmethod
    def _mask_of(columns: int, seen: int, mask: Tensor) -> Tensor:
        """The part for the ``columns`` that come, of a mask for these alone or for the ``seen`` ones before, too."""
        width = mask.shape[1]
        if width != columns and width < seen + columns:
            raise ValueError(
                f"decoder_attention_mask has {width} columns, but there are {columns} target tokens"
                + (f" after {seen} in past_key_values." if seen else ".")
            )
        return mask if width == columns else mask[:, seen : seen + columns]

    def _run_at_once(
        self, x: Tensor, mask: Tensor | None, source_mask: Tensor | None, state: RecurrentState
    ) -> tuple[Tensor, Tensor | None]:
        states, (state.hidden, state.cell) = self.layers(x, mask, (state.hidden, state.cell))  # (B, T, C)
        if self.attention is None:
            return states, None
        context, weights = self.attention(states, state.keys, state.values, source_mask)
        return self._attentional(context, states), weights

    def _run_stepwise(
        self, x: Tensor, mask: Tensor | None, source_mask: Tensor | None, state: RecurrentState
    ) -> tuple[Tensor, Tensor]:
        assert self.attention is not None
        asks_first = self.config.attention == "additive"
        if state.attentional is None:
            state.attentional = torch.zeros_like(x[:, 0])
        outputs, contexts, attended = [], [], []
        for t in range(x.shape[1]):
            step = slice(t, t + 1)
            fed = state.attentional[:, None]  # (B, 1, C)
            if asks_first:
                assert state.hidden is not None
                fed, weights = self.attention(state.hidden[:, -1:], state.keys, state.values, source_mask)
            here = None if mask is None else mask[:, step]
            states, (hidden, cell) = self.layers(torch.cat([x[:, step], fed], dim=-1), here, (state.hidden, state.cell))
            state.hidden, state.cell = hidden, cell
            if asks_first:
                contexts.append(fed)
                outputs.append(states)
            else:
                context, weights = self.attention(states, state.keys, state.values, source_mask)
                output = self._attentional(context, states)
                kept = output if here is None else torch.where(here[..., None].ne(0), output, fed)
                state.attentional = kept[:, 0]
                outputs.append(output)
            attended.append(weights)
        all_outputs = torch.cat(outputs, dim=1)
        if asks_first:  # no step waits for what it gives
            all_outputs = self._attentional(torch.cat(contexts, dim=1), all_outputs)
        return all_outputs, torch.cat(attended, dim=1)

    def _attentional(self, context: Tensor, states: Tensor) -> Tensor:
        """``tanh(W [c, h])``: Luong et al. 2015, equation 5."""
        assert self.combine is not None
        return self.combine(torch.cat([context, states], dim=-1)).tanh()
