"""Recurrent encoder and decoder wired together, without and with a head."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers.generation.configuration_utils import GenerationMode
from transformers.modeling_outputs import Seq2SeqLMOutput, Seq2SeqModelOutput
from transformers.utils.generic import can_return_tuple

from ..configuration.configuration_dragoman_recurrent import DragomanRecurrentConfig
from .encoder_decoder_generation import EncoderDecoderGenerationMixin
from .encoder_decoder_model import EncoderDecoderPreTrainedModel
from .encoder_outputs import as_encoder_output
from .language_modeling_head import LanguageModelingHead, tuple_has_logits
from .padding import mask_of_left_padding, mask_of_padding, shift_right
from .recurrent_attention import records_attention
from .recurrent_decoder import RecurrentDecoder
from .recurrent_encoder import RecurrentEncoder, RecurrentEncoderOutput
from .recurrent_state import RecurrentState


class DragomanRecurrentPreTrainedModel(EncoderDecoderPreTrainedModel):
    """What transformers needs to know of every recurrent Dragoman model."""

    config: DragomanRecurrentConfig
    _no_split_modules = ["RecurrentEncoder", "RecurrentDecoder"]  # noqa: RUF012

    def __init__(self, config: DragomanRecurrentConfig) -> None:
        config.validate()  # it may have been changed since it was made
        super().__init__(config)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As every Dragoman model's, and the weights are read into memory."""
        loaded = super().from_pretrained(*args, **kwargs)
        # A product of few rows, as a step is, rounds by where its weights lie: in a mapped file, anywhere.
        for parameter in (loaded[0] if isinstance(loaded, tuple) else loaded).parameters():
            if parameter.device.type == "cpu":
                parameter.data = parameter.data.clone()
        return loaded


class DragomanRecurrentModel(DragomanRecurrentPreTrainedModel):
    """Encoder and decoder, without a head."""

    def __init__(self, config: DragomanRecurrentConfig) -> None:
        super().__init__(config)
        self.encoder = RecurrentEncoder(config)
        self.decoder = RecurrentDecoder(config)
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
        past_key_values: RecurrentState | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | Sequence[int] | None = None,
        output_hidden_states: bool | None = None,
    ) -> Seq2SeqModelOutput:
        """Source (B, S) and target (B, T) to states (B, T, C). Without masks, padding is read off the ids."""
        attentions = records_attention(
            self.config.output_attentions if output_attentions is None else output_attentions
        )
        hidden_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        use_cache = (self.config.use_cache and not self.training) if use_cache is None else use_cache
        if attention_mask is None and input_ids is not None:
            attention_mask = mask_of_padding(input_ids, self.config)
        if decoder_attention_mask is None and decoder_input_ids is not None and past_key_values is None:
            decoder_attention_mask = mask_of_left_padding(decoder_input_ids, self.config)
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids=input_ids,
                attention_mask=attention_mask,
                inputs_embeds=inputs_embeds,
                output_hidden_states=hidden_states,
                return_dict=True,
            )
        encoder_outputs = as_encoder_output(RecurrentEncoderOutput, encoder_outputs)
        state = self._begin(encoder_outputs) if past_key_values is None else past_key_values
        if not isinstance(state, RecurrentState):
            raise TypeError(
                f"past_key_values must be a RecurrentState, of a recurrent model, got {type(state).__name__}."
            )
        if state.hidden is None:  # an empty one, of generate()
            vars(state).update(vars(self._begin(encoder_outputs)))
        outputs = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            inputs_embeds=decoder_inputs_embeds,
            encoder_attention_mask=attention_mask,
            past_key_values=state,
            output_attentions=attentions,
            output_hidden_states=hidden_states,
            return_dict=True,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values if use_cache else None,
            decoder_hidden_states=outputs.hidden_states,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
        )

    def _begin(self, encoded: RecurrentEncoderOutput) -> RecurrentState:
        if encoded.final_hidden is None:
            raise ValueError(
                "encoder_outputs must hold the encoder's last state, final_hidden, with which the decoder begins: pass "
                "what model.get_encoder() returned."
            )
        state = RecurrentState(hidden=encoded.final_hidden, cell=encoded.final_cell)
        if self.decoder.attention is not None:
            assert encoded.last_hidden_state is not None
            state.keys = self.decoder.attention.project_keys(encoded.last_hidden_state)
            state.values = encoded.last_hidden_state
        return state


class DragomanRecurrentForConditionalGeneration(
    LanguageModelingHead, DragomanRecurrentPreTrainedModel, EncoderDecoderGenerationMixin
):
    """The recurrent model with a head over the target vocabulary: ``logits = W o + b``."""

    encoder_output_class = RecurrentEncoderOutput

    def __init__(self, config: DragomanRecurrentConfig) -> None:
        super().__init__(config)
        self.model = DragomanRecurrentModel(config)
        self.add_head()
        self.post_init()

    @tuple_has_logits
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: RecurrentState | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | Sequence[int] | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_logits: bool | None = None,
    ) -> Seq2SeqLMOutput:
        """Logits (B, T, V), and the loss where labels (B, T) are given; labels alone make the decoder's input.

        ``num_items_in_batch`` is the number of target tokens in the whole optimisation step, which Trainer passes.
        Training on labels returns no logits, whose memory the loss does without; ``return_logits`` decides otherwise.
        """
        if labels is not None:
            self.check_labels(labels, logits_to_keep)
            use_cache = False if use_cache is None else use_cache
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                decoder_input_ids = shift_right(labels, self.config)
        outputs = self.model(
            input_ids,
            attention_mask,
            decoder_input_ids,
            decoder_attention_mask,
            encoder_outputs,
            past_key_values,
            inputs_embeds,
            decoder_inputs_embeds,
            use_cache,
            output_attentions,
            output_hidden_states,
            return_dict=True,
        )
        return self.apply_head(outputs, labels, num_items_in_batch, logits_to_keep, return_logits)

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: Any, generation_mode: GenerationMode, *_: Any, **__: Any
    ) -> Any:
        # Private in transformers, which would make a cache of keys and values.
        if generation_mode == GenerationMode.ASSISTED_GENERATION or generation_config.is_assistant:
            raise NotImplementedError(
                "A recurrent state cannot take back tokens that turn out wrong: leave out assistant_model and "
                "prompt_lookup_num_tokens."
            )
        if generation_config.cache_implementation is not None:
            raise NotImplementedError(
                f"cache_implementation={generation_config.cache_implementation!r} is for keys and values that grow; a "
                "recurrent model carries a state of fixed size: leave it out."
            )
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = RecurrentState()
