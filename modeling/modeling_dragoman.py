"""Encoder and decoder wired together, and the encoder alone: the models without a head."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqModelOutput
from transformers.utils.generic import can_return_tuple

from ..configuration.configuration_dragoman import DragomanConfig
from .attention import TAKE_A_BIAS, LayerSelection
from .decoder import Decoder
from .encoder import Encoder
from .encoder_decoder_model import EncoderDecoderPreTrainedModel
from .encoder_outputs import as_encoder_output
from .int8_loading import register_int8
from .int8_models import Int8Capable
from .padding import mask_of_left_padding, mask_of_padding
from .position_biases import BIASED_SCHEMES
from .position_encodings import seen_keys

register_int8()


class DragomanPreTrainedModel(Int8Capable, EncoderDecoderPreTrainedModel):
    """What transformers needs to know of every Dragoman model."""

    config: DragomanConfig
    supports_gradient_checkpointing = True
    _no_split_modules = ["EncoderLayer", "DecoderLayer"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True

    def __init__(self, config: DragomanConfig) -> None:
        config.validate()  # it may have been changed since it was made
        implementation = config._attn_implementation or ""
        if config.position_encoding in BIASED_SCHEMES and "flash" in implementation:
            raise ValueError(
                f"position_encoding={config.position_encoding!r} adds a bias to the scores, which {implementation} "
                f"cannot take: choose one of {', '.join(TAKE_A_BIAS)}, or position_encoding='rotary'."
            )
        super().__init__(config)

    @property
    def _supports_flash_attn(self) -> bool:  # type: ignore[override]
        """Flash attention takes no bias: it would drop one without a word."""
        return self.config.position_encoding not in BIASED_SCHEMES


class DragomanModel(DragomanPreTrainedModel):
    """Encoder and decoder, without a head."""

    def __init__(self, config: DragomanConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        if config.share_embeddings:
            self._tied_weights_keys = {"decoder.embed_tokens.weight": "encoder.embed_tokens.weight"}
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        decoder_position_ids: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: LayerSelection = None,
        output_hidden_states: bool | None = None,
        cu_seq_lens: Tensor | None = None,
        decoder_cu_seq_lens: Tensor | None = None,
        max_seq_len: int | None = None,
        decoder_max_seq_len: int | None = None,
    ) -> Seq2SeqModelOutput:
        """Source (B, S) and target (B, T) to states (B, T, C). Without masks, padding is read off the ids.

        Continuing a cache that began with padding needs ``decoder_attention_mask`` over all tokens so far. With
        ``cu_seq_lens`` and ``decoder_cu_seq_lens`` (N + 1), B is 1, and source and target are N sequences each, one
        after another; ``max_seq_len`` and ``decoder_max_seq_len``, which none of them is longer than, spare a compiled
        graph the look at their lengths.
        """
        if (cu_seq_lens is None) != (decoder_cu_seq_lens is None):
            raise ValueError("Packed source and target have lengths each: pass cu_seq_lens and decoder_cu_seq_lens.")
        attentions = self.config.output_attentions if output_attentions is None else output_attentions
        hidden_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        packed = cu_seq_lens is not None
        if attention_mask is None and input_ids is not None and not packed:
            attention_mask = mask_of_padding(input_ids, self.config)
        begins = past_key_values is None
        if isinstance(past_key_values, EncoderDecoderCache) and not torch.compiler.is_compiling():
            begins = not past_key_values.get_seq_length()
        if decoder_attention_mask is None and decoder_input_ids is not None and begins and not packed:
            decoder_attention_mask = mask_of_left_padding(decoder_input_ids, self.config)
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                output_attentions=attentions,
                output_hidden_states=hidden_states,
                cu_seq_lens=cu_seq_lens,
                max_seq_len=max_seq_len,
                return_dict=True,
            )
        encoder_outputs = as_encoder_output(BaseModelOutput, encoder_outputs)
        if attention_mask is not None and attention_mask.dim() == 4:  # of source to source, (B, 1, S, S)
            rows, columns = attention_mask.shape[2:]
            if rows in (1, columns):
                seen = seen_keys(attention_mask).any(2)[:, 0]
                attention_mask = seen.expand(len(encoder_outputs.last_hidden_state), -1)
        decoder_outputs = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            position_ids=decoder_position_ids,
            inputs_embeds=decoder_inputs_embeds,
            encoder_hidden_states=encoder_outputs.last_hidden_state,
            encoder_attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_attentions=attentions,
            output_hidden_states=hidden_states,
            cu_seq_lens=decoder_cu_seq_lens,
            encoder_cu_seq_lens=cu_seq_lens,
            max_seq_len=decoder_max_seq_len,
            encoder_max_seq_len=max_seq_len,
            return_dict=True,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=decoder_outputs.last_hidden_state,
            past_key_values=decoder_outputs.past_key_values,
            decoder_hidden_states=decoder_outputs.hidden_states,
            decoder_attentions=decoder_outputs.attentions,
            cross_attentions=decoder_outputs.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
        )


class DragomanEncoderModel(DragomanPreTrainedModel):
    """The encoder alone: source (B, S) to states (B, S, C). Loads from any Dragoman checkpoint."""

    _keys_to_ignore_on_load_unexpected = [r"decoder\.", r"lm_head\."]  # noqa: RUF012

    def __init__(self, config: DragomanConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.post_init()

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
        attentions = self.config.output_attentions if output_attentions is None else output_attentions
        hidden_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        arguments = (input_ids, attention_mask, position_ids, inputs_embeds, attentions, hidden_states)
        return self.encoder(*arguments, cu_seq_lens, max_seq_len, return_dict=True)
