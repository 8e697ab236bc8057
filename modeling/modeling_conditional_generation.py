"""The Transformer that writes: encoder, decoder and a head over the target vocabulary."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.utils.generic import can_return_tuple

from ..configuration.configuration_dragoman import DragomanConfig
from .attention import LayerSelection
from .embeddings import check_ids
from .generation_dragoman import DragomanGenerationMixin
from .loss import IGNORE_INDEX, head_cross_entropy, token_cross_entropy
from .modeling_dragoman import DragomanModel, DragomanPreTrainedModel
from .padding import shift_right


class DragomanForConditionalGeneration(DragomanPreTrainedModel, DragomanGenerationMixin):
    """The Transformer with a head over the target vocabulary: ``logits = scale · (W h + b)``."""

    def __init__(self, config: DragomanConfig) -> None:
        super().__init__(config)
        self.model = DragomanModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.logits_bias)
        fix_bias(self.lm_head)
        self.loss_type = "ForMaskedLM"  # for who asks model.loss_function: labels here are not to be shifted again
        if config.tie_word_embeddings:
            owner = "encoder" if config.share_embeddings else "decoder"
            self._tied_weights_keys = {"lm_head.weight": f"model.{owner}.embed_tokens.weight"}
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head = value
        fix_bias(value)  # resizing makes it a parameter

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        return shift_right(labels, self.config)

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
    ) -> Seq2SeqLMOutput:
        """Logits (B, T, V), and the loss where labels (B, T) are given; labels alone make the decoder's input.

        ``num_items_in_batch`` is the number of target tokens in the whole optimisation step, which Trainer passes.
        Training on labels returns no logits, whose memory the loss does without; ``return_logits`` decides otherwise.
        """
        if labels is not None:
            if not isinstance(logits_to_keep, int) or logits_to_keep:
                raise ValueError("labels need the logits of every position: leave logits_to_keep out.")
            check_ids(labels.masked_fill(labels == IGNORE_INDEX, 0), self.config.vocab_size, "Label")
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
            position_ids,
            decoder_position_ids,
            use_cache,
            output_attentions,
            output_hidden_states,
            return_dict=True,
        )
        states = outputs.last_hidden_state  # (B, T, C)
        logits = None
        if return_logits or (return_logits is None and (labels is None or not self.training)):
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(states[:, kept]) * self.config.logits_scale  # (B, T, V)
        return Seq2SeqLMOutput(
            loss=None if labels is None else self._loss(states, logits, labels, num_items_in_batch),
            logits=logits,
            **{k: v for k, v in outputs.items() if k != "last_hidden_state"},
        )

    def _loss(self, states: Tensor, logits: Tensor | None, labels: Tensor, count: Tensor | int | None) -> Tensor:
        """The same whether logits were asked for: those of half precision are too coarse to take it from."""
        smoothing = self.config.label_smoothing if self.training else 0.0
        if logits is not None and logits.dtype.itemsize >= torch.float32.itemsize:
            return token_cross_entropy(logits, labels, count, smoothing)
        return head_cross_entropy(states, self.lm_head, labels, count, smoothing, self.config.logits_scale)


def fix_bias(head: nn.Module) -> None:
    """Keep the bias with the weights, but out of training: a buffer, as in the models that have one."""
    bias = getattr(head, "bias", None)
    if isinstance(bias, nn.Parameter):
        del head.bias
        head.bias = nn.Buffer(bias.detach())
