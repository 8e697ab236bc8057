"""A head over the target vocabulary, and the loss that it is trained by, for whatever made the states."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import Seq2SeqLMOutput

from .embeddings import check_ids
from .linear import Linear
from .loss import IGNORE_INDEX, head_cross_entropy, token_cross_entropy
from .padding import shift_right


def tuple_has_logits(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Around ``forward``: in a tuple (``return_dict=False``) logits have their place, in training too."""

    @functools.wraps(forward)
    def wrapper(self: Any, *args: Any, return_dict: bool | None = None, **kwargs: Any) -> Any:
        return_dict = self.config.return_dict if return_dict is None else return_dict
        if not return_dict and kwargs.get("return_logits") is None:
            kwargs["return_logits"] = True
        return forward(self, *args, return_dict=return_dict, **kwargs)

    return wrapper


class LossAlone(Seq2SeqLMOutput):
    """Without logits. Raises IndexError for what would be another field in their place."""

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, int | slice) and key not in (0, slice(1), slice(0, 1)):
            raise IndexError(
                f"outputs[{key}]: training on labels returns no logits, and what follows the loss is something else. "
                "Pass return_logits=True."
            )
        return super().__getitem__(key)


class LanguageModelingHead(PreTrainedModel):
    """``logits = scale · (W h + b)``. To mix in before a model that has ``encoder`` and ``decoder`` in ``model``."""

    lm_head: nn.Module

    def add_head(self) -> None:
        """Tied to an input embedding where the configuration says so."""
        config = self.config
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=config.logits_bias)
        fix_bias(self.lm_head)
        self.loss_type = "ForMaskedLM"  # for who asks model.loss_function: labels here are not to be shifted again
        if config.tie_word_embeddings:
            owner = "encoder" if config.share_embeddings else "decoder"
            self._tied_weights_keys = {"lm_head.weight": f"model.{owner}.embed_tokens.weight"}

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value
        fix_bias(value)  # resizing makes it a parameter

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        return shift_right(labels, self.config)

    def check_labels(self, labels: Tensor, logits_to_keep: int | Tensor) -> None:
        """Raises ValueError for labels and some logits only, IndexError for a label outside the vocabulary."""
        if not isinstance(logits_to_keep, int) or logits_to_keep:
            raise ValueError("labels need the logits of every position: leave logits_to_keep out.")
        check_ids(labels.masked_fill(labels == IGNORE_INDEX, 0), self.config.vocab_size, "Label")

    def apply_head(
        self,
        outputs: Any,
        labels: Tensor | None,
        num_items_in_batch: Tensor | int | None,
        logits_to_keep: int | Tensor,
        return_logits: bool | None,
    ) -> Seq2SeqLMOutput:
        """Training on labels returns no logits, whose memory the loss does without; ``return_logits`` decides."""
        states = outputs.last_hidden_state  # (B, T, C)
        logits = None
        if return_logits or (return_logits is None and (labels is None or not self.training)):
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(states[:, kept]) * self.logits_scale  # (B, T, V)
        kind = Seq2SeqLMOutput if labels is None or logits is not None else LossAlone
        return kind(
            loss=None if labels is None else self._loss(states, logits, labels, num_items_in_batch),
            logits=logits,
            **{k: v for k, v in outputs.items() if k != "last_hidden_state"},
        )

    @property
    def logits_scale(self) -> float:
        return getattr(self.config, "logits_scale", 1.0)

    def _loss(self, states: Tensor, logits: Tensor | None, labels: Tensor, count: Tensor | int | None) -> Tensor:
        """The same whether logits were asked for: those of half precision are too coarse to take it from."""
        smoothing = self.config.label_smoothing if self.training else 0.0
        if logits is not None and logits.dtype.itemsize >= torch.float32.itemsize:
            return token_cross_entropy(logits, labels, count, smoothing)
        return head_cross_entropy(states, self.lm_head, labels, count, smoothing, self.logits_scale)


def fix_bias(head: nn.Module) -> None:
    """Keep the bias with the weights, but out of training: a buffer, as in the models that have one."""
    bias = getattr(head, "bias", None)
    if isinstance(bias, nn.Parameter):
        del head.bias
        head.bias = nn.Buffer(bias.detach())
