"""Several models that write one text: token by token, the mean of their probabilities."""

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel

from .modeling.padding import mask_of_padding

ALIKE = ("vocab_size", "source_vocab_size", "pad_token_id", "eos_token_id", "decoder_start_token_id")


class EnsembleLogitsProcessor(LogitsProcessor):
    """``log (Σᵢ pᵢ / n)`` over n encoder-decoders, in the place of the scores of the first, which generates:

        together = EnsembleLogitsProcessor(models, input_ids, attention_mask)
        models[0].generate(input_ids, attention_mask=attention_mask, logits_processor=LogitsProcessorList([together]))

    It is for this one batch. Any models of ``AutoModelForSeq2SeqLM`` that were trained with one tokenizer will do. Of
    the others each encodes the source once, here, and reads what is written anew at every step, without a cache, so
    that the order of the beams is no concern; their cost grows with the square of the length. ``decoder_input_ids`` to
    go on from must have no padding.

    Greedy search and sampling hand over raw logits and beam search log-probabilities, so the softmax is taken of
    either. What generate()'s own processors have forbidden before (a score of −inf) is forbidden to all, and each
    model's probabilities are those among what remains: beams then rank as with ``renormalize_logits=True``. Other
    changes of theirs, such as a repetition penalty, count for the first model alone. Sampling's come after the mean.

    Raises:
        ValueError: for models that differ in vocabulary size or special tokens, or rows that cannot be this batch's.
    """

    def __init__(
        self, models: Sequence[PreTrainedModel], input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> None:
        check_alike(models)
        if attention_mask is None:
            attention_mask = mask_of_padding(input_ids, models[0].config)
        self._others = [Reader(model, input_ids, attention_mask) for model in models[1:]]
        self._batch = len(input_ids)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        copies, rest = divmod(len(scores), self._batch)
        if rest or not copies:
            raise ValueError(
                f"An ensemble over {self._batch} sources cannot go on with {len(scores)} rows: make one anew."
            )
        forbidden = scores == -math.inf
        logs = [scores.log_softmax(-1)]
        for read in self._others:
            logits = read(input_ids, copies).to(scores)
            logs.append(logits.masked_fill(forbidden, -math.inf).log_softmax(-1))
        mean = torch.stack(logs).logsumexp(0) - math.log(len(logs))
        return mean.masked_fill(forbidden, -math.inf)  # nan where a beam has nothing left


class Reader:
    """A model, and the source as it encoded it."""

    @torch.no_grad()
    def __init__(self, model: Any, input_ids: Tensor, attention_mask: Tensor) -> None:
        self.model, self.mask = model, attention_mask.to(model.device)
        self.encoded = model.get_encoder()(input_ids.to(model.device), attention_mask=self.mask, return_dict=True)
        keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.options = {"use_cache": False, "return_dict": True} | ({"logits_to_keep": 1} if keeps else {})

    @torch.no_grad()
    def __call__(self, prefix: Tensor, copies: int) -> Tensor:
        """Logits of the next token (B * copies, V) after a prefix (B * copies, T)."""
        states = {name: x.repeat_interleave(copies, 0) for name, x in self.encoded.items() if isinstance(x, Tensor)}
        prefix = prefix.to(self.model.device)
        return self.model(
            encoder_outputs=type(self.encoded)(**states),
            attention_mask=self.mask.repeat_interleave(copies, 0),
            decoder_input_ids=prefix,
            decoder_attention_mask=torch.ones_like(prefix),  # a pad token that a model wrote is a token
            **self.options,
        ).logits[:, -1]


def check_alike(models: Sequence[PreTrainedModel], together: str = "ensemble") -> None:
    if not models:
        raise ValueError("An ensemble needs models: the list is empty.")
    for number, model in enumerate(models):
        if not model.config.is_encoder_decoder:
            raise ValueError(f"Model {number} of the {together}, {type(model).__name__}, is no encoder-decoder.")
        for name in ALIKE:
            ours, theirs = (getattr(each.config, name, None) for each in (models[0], model))
            if ours != theirs:
                raise ValueError(
                    f"Models 0 and {number} of the {together} differ in their {name} ({ours} and {theirs}): they must "
                    "have one vocabulary."
                )
