"""The Transformer that writes: encoder, decoder and a head over the target vocabulary."""

from typing import Any

from torch import Tensor
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.utils.generic import can_return_tuple

from ..configuration.configuration_dragoman import DragomanConfig
from .attention import LayerSelection
from .generation_dragoman import DragomanGenerationMixin
from .language_modeling_head import LanguageModelingHead, tuple_has_logits
from .modeling_dragoman import DragomanModel, DragomanPreTrainedModel
from .padding import shift_right


class DragomanForConditionalGeneration(LanguageModelingHead, DragomanPreTrainedModel, DragomanGenerationMixin):
    """The Transformer with a head over the target vocabulary: ``logits = scale · (W h + b)``."""

    def __init__(self, config: DragomanConfig) -> None:
        super().__init__(config)
        self.model = DragomanModel(config)
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
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        decoder_position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        use_cache: bool | None = None,
        output_attentions: LayerSelection = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_logits: bool | None = None,
        cu_seq_lens: Tensor | None = None,
        decoder_cu_seq_lens: Tensor | None = None,
        max_seq_len: int | None = None,
        decoder_max_seq_len: int | None = None,
    ) -> Seq2SeqLMOutput:
        """Logits (B, T, V), and the loss where labels (B, T) are given; labels alone make the decoder's input.

        ``num_items_in_batch`` is the number of target tokens in the whole optimisation step, which Trainer passes.
        Training on labels returns no logits, whose memory the loss does without; ``return_logits`` decides otherwise.
        What ``DataCollatorForPackedSeq2Seq`` makes besides ids and labels: :class:`DragomanModel`.
        """
        if labels is not None:
            self.check_labels(labels, logits_to_keep)
            use_cache = False if use_cache is None else use_cache
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                decoder_input_ids = shift_right(labels, self.config, decoder_cu_seq_lens)
        outputs = self.model(
            input_ids,
            attention_mask,
            decoder_input_ids,
            decoder_attention_mask,
            encoder_outputs,
            past_key_values,
            inputs_embeds,
            decoder_inputs_embeds,
            position_ids,
            decoder_position_ids,
            use_cache,
            output_attentions,
            output_hidden_states,
            cu_seq_lens,
            decoder_cu_seq_lens,
            max_seq_len,
            decoder_max_seq_len,
            return_dict=True,
        )
        return self.apply_head(outputs, labels, num_items_in_batch, logits_to_keep, return_logits)
