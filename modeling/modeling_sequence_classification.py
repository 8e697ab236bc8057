"""The Transformer that judges: encoder, or encoder and decoder, a pooling, and a linear head over the classes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import Seq2SeqSequenceClassifierOutput, SequenceClassifierOutput
from transformers.utils.generic import can_return_tuple

from ..configuration.configuration_dragoman import DragomanConfig
from .attention import LayerSelection
from .classification_loss import classification_loss, infer_problem_type
from .linear import Linear
from .loss import IGNORE_INDEX
from .modeling_dragoman import DragomanEncoderModel, DragomanModel, DragomanPreTrainedModel
from .padding import mask_of_padding, shift_right
from .pooling import Pooling


@dataclass
class EncoderClassifierOutput(SequenceClassifierOutput):
    """transformers' own, and how much of its state each token gave: ``pooling_weights`` (B, S)."""

    pooling_weights: Tensor | None = None


@dataclass
class EncoderDecoderClassifierOutput(Seq2SeqSequenceClassifierOutput):
    """transformers' own, and how much of its state each token gave: ``pooling_weights`` (B, S)."""

    pooling_weights: Tensor | None = None


class DragomanForSequenceClassification(DragomanPreTrainedModel):
    """A class, several, or numbers for a text: ``logits = W Σ wₛ hₛ + b``, weights by :class:`Pooling`.

    States are the encoder's, or with ``classifier_backbone="encoder_decoder"`` those of the decoder, which reads the
    source, shifted, once more (as BART's does). Loads from any Dragoman checkpoint of that vocabulary; the head is new.
    """

    _keys_to_ignore_on_load_unexpected = [r"lm_head\."]  # noqa: RUF012

    def __init__(self, config: DragomanConfig) -> None:
        super().__init__(config)
        if not config.num_labels:
            raise ValueError("A classifier needs num_labels of at least 1, or id2label with an entry for each class.")
        self.num_labels = config.num_labels
        self.has_decoder = config.classifier_backbone == "encoder_decoder"
        self.model = DragomanModel(config) if self.has_decoder else DragomanEncoderModel(config)
        self.pooling = Pooling(config.hidden_size, config.pooling, config.eos_token_id)
        self.classifier = Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        output_attentions: LayerSelection = None,
        output_hidden_states: bool | None = None,
    ) -> EncoderClassifierOutput | EncoderDecoderClassifierOutput:
        """Source (B, S) to logits (B, L), and the loss where labels are given: :func:`classification_loss`.

        ``num_items_in_batch`` is the number of labels in the whole optimisation step, which Trainer passes.
        Without ``config.problem_type``, the first labels decide it, as in transformers.
        """
        mask = self._mask(input_ids, attention_mask, inputs_embeds)
        options: dict[str, Any] = {
            "position_ids": position_ids,
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
            "return_dict": True,
        }
        if self.has_decoder:
            if input_ids is None:
                raise ValueError(
                    "classifier_backbone='encoder_decoder' reads the source on both sides: pass input_ids, not "
                    "inputs_embeds."
                )
            options |= {
                "decoder_input_ids": shift_right(input_ids.masked_fill(mask == 0, IGNORE_INDEX), self.config),
                "decoder_attention_mask": mask,
                "use_cache": False,
            }
        outputs = self.model(input_ids, mask, inputs_embeds=inputs_embeds, **options)
        pooled, weights = self.pooling(outputs.last_hidden_state, mask, input_ids)
        logits = self.classifier(pooled)  # (B, L)
        output_class = EncoderDecoderClassifierOutput if self.has_decoder else EncoderClassifierOutput
        return output_class(
            loss=None if labels is None else self._loss(logits, labels, num_items_in_batch),
            logits=logits,
            pooling_weights=weights,
            **{k: v for k, v in outputs.items() if k != "last_hidden_state"},
        )

    def _mask(self, ids: Tensor | None, mask: Tensor | None, vectors: Tensor | None) -> Tensor:
        """(B, S), 1 at tokens."""
        if mask is not None and mask.dim() != 2:
            raise ValueError(
                f"To pool the tokens of a text takes an attention_mask (B, S), got {mask.dim()} dimensions."
            )
        if mask is not None:
            return mask
        if ids is not None:
            return mask_of_padding(ids, self.config)
        if vectors is None:
            raise ValueError("A classifier needs either input_ids or inputs_embeds.")
        return torch.ones(vectors.shape[:2], dtype=torch.long, device=vectors.device)

    def _loss(self, logits: Tensor, labels: Tensor, count: Tensor | int | None) -> Tensor:
        problem_type = self.config.problem_type or infer_problem_type(self.num_labels, labels)
        self.config.problem_type = problem_type  # pipelines, and whoever loads what is saved, read it there
        smoothing = self.config.label_smoothing if self.training else 0.0
        return classification_loss(logits, labels, problem_type, count, smoothing)
