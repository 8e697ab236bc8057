"""What is explained: one number ``F`` that a model computes from a text, the source of all attributions.

S source tokens, T target tokens, C model size, n rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from .surrogates import check_characters
from .teacher_forcing import decoder_inputs
from .word_spans import Units, WordSpan, check_offsets, offsets_of, spans_of
from .written_rows import generation_options

FIRST = ("first", "cls", "bos")  # names that configurations have for the first state
MOST_ROWS = 64
MOST_NUMBERS = 2**25  # in the attention weights of a layer and the logits of a batch


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Dropout off; cuDNN too, which takes no gradient of a recurrent layer that is not being trained."""
    modes, cudnn = [(module, module.training) for module in model.modules()], torch.backends.cudnn.enabled
    try:
        torch.backends.cudnn.enabled = False
        yield model.eval()
    finally:
        torch.backends.cudnn.enabled = cudnn
        for module, training in modes:
            module.training = training


class ExplainedOutput(ABC):
    """A text, the tokens it is made of, and ``F``; ``target`` says in words what ``F`` is about."""

    target: str
    target_length = 0  # in tokens, of a model that writes

    def __init__(self, model: Any, tokenizer: Any, text: str, units: Units) -> None:
        check_offsets(tokenizer)
        encoding = tokenizer(check_characters(text), return_tensors="pt", return_offsets_mapping=True)
        self.model, self.tokenizer, self.text = model, tokenizer, text
        self.input_ids: Tensor = encoding["input_ids"].to(model.device)  # (1, S)
        self.tokens: list[str] = encoding.tokens()
        offsets = offsets_of(encoding)
        self.words: list[WordSpan] = spans_of(text, offsets, units)
        self.is_text = torch.tensor([start < end for start, end in offsets], device=model.device)  # (S,)
        if not self.words:
            raise ValueError(f"There is nothing to explain in {text!r}: the text has no words.")

    @abstractmethod
    def outputs(self, rows: int, **inputs: Any) -> Any:
        """The model's outputs for ``rows`` sources."""

    @abstractmethod
    def value(self, outputs: Any) -> Tensor:
        """``F`` (n,) of the model's outputs."""

    @abstractmethod
    def probability(self, value: Tensor) -> Tensor:
        """``F`` as a number from 0 to 1 (n,)."""

    @abstractmethod
    def readout(self, outputs: Any) -> Tensor:
        """Where ``F`` is read off the last states: weights over the states that attention mixes (N,), sum 1."""

    def of_source(self, held: Tensor) -> Tensor:
        """The part of weights over all inputs (N,) that belongs to the source's tokens (S,)."""
        return held[: self.input_ids.shape[1]]

    def of_vectors(self, vectors: Tensor) -> Tensor:
        """``F`` (n,) of token vectors (n, S, C) in the place of the text's."""
        mask = torch.ones(vectors.shape[:2], dtype=torch.long, device=vectors.device)
        return self.value(self.outputs(len(vectors), inputs_embeds=vectors, attention_mask=mask))

    def at_once(self) -> int:
        """Sources in a batch: attention weights and logits take memory by the square of lengths and the vocabulary."""
        config, target = self.model.config, self.target_length
        heads = getattr(config, "num_attention_heads", None) or 1
        row = heads * (self.input_ids.shape[1] + target) ** 2 + target * (getattr(config, "vocab_size", None) or 0)
        return max(1, min(MOST_ROWS, MOST_NUMBERS // row))

    @torch.no_grad()
    def of_parts(self, kept: Sequence[Sequence[int]]) -> Tensor:
        """``F`` (n,) of what is left of the source when only the tokens ``kept`` stay, special ones always."""
        at_once = self.at_once()
        special = set((~self.is_text).nonzero()[:, 0].tolist())
        values = []
        for start in range(0, len(kept), at_once):
            rows = [self.input_ids[0, sorted(special | set(row))] for row in kept[start : start + at_once]]
            ids = pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.pad_token_id)
            mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
            values.append(self.value(self.outputs(len(rows), input_ids=ids, attention_mask=mask)))
        return torch.cat(values)

    @torch.no_grad()
    def vectors(self) -> Tensor:
        """The text's token vectors (1, S, C). Raises ValueError for a model to which they are not what its ids are."""
        vectors = self.model.get_input_embeddings()(self.input_ids)
        expected = self.of_parts([range(self.input_ids.shape[1])])
        # Marian, Pegasus and others scale what they look up themselves, and take vectors as they are.
        scale = getattr(self.model.get_encoder(), "embed_scale", None) or 1.0
        for found in (vectors, vectors * scale):
            if torch.allclose(self.of_vectors(found), expected, rtol=1e-3, atol=1e-3):
                return found
        raise ValueError(
            f"{type(self.model).__name__} computes something else from token vectors than from the tokens, so there is "
            "no gradient to take: use method='leave_one_out'."
        )

    def attentions(self) -> Any:
        """The model's outputs for the text, attention weights among them."""
        with torch.no_grad():
            mask = torch.ones_like(self.input_ids)
            return self.outputs(1, input_ids=self.input_ids, attention_mask=mask, output_attentions=True)


class ClassifiedOutput(ExplainedOutput):
    """The log-odds ``log p / (1 − p)`` of a class, which do not flatten where p is near 1; a regression's value."""

    def __init__(self, model: Any, tokenizer: Any, text: str, target: int | str | None, units: Units) -> None:
        super().__init__(model, tokenizer, text, units)
        names: dict[int, str] = model.config.id2label
        self.problem = model.config.problem_type or ("regression" if len(names) == 1 else "single_label_classification")
        if isinstance(target, Tensor):
            target = int(target)
        if target is None:
            with torch.no_grad():
                target = int(self.outputs(1, input_ids=self.input_ids).logits[0].argmax())
        elif isinstance(target, str):
            found = [index for index, name in names.items() if name == target]
            if not found:
                raise ValueError(f"The model has no class {target!r}, only {', '.join(map(repr, names.values()))}.")
            target = found[0]
        if target not in names:
            raise ValueError(f"The model has no class {target}, only 0 to {len(names) - 1}.")
        self.index, self.target = int(target), names[int(target)]

    def outputs(self, rows: int, **inputs: Any) -> Any:
        return self.model(**inputs, return_dict=True)

    def value(self, outputs: Any) -> Tensor:
        logits: Tensor = outputs.logits.float()  # (n, classes)
        chosen = logits[:, self.index]
        if self.problem != "single_label_classification":
            return chosen
        others = torch.arange(logits.shape[1], device=logits.device) != self.index
        return chosen - logits[:, others].logsumexp(dim=1)

    def probability(self, value: Tensor) -> Tensor:
        if self.problem == "regression":
            raise ValueError("A regression gives no probability, and faithfulness is measured in probabilities.")
        return value.sigmoid()

    def readout(self, outputs: Any) -> Tensor:
        """The model's ``pooling_weights``; or all states or the first one, as configurations say: as BERT's heads do.

        Raises ValueError where it is neither: there is a decoder, or a first state that sees itself alone.
        """
        weights = getattr(outputs, "pooling_weights", None)
        length, device = self.input_ids.shape[1], self.input_ids.device
        if weights is None:
            own, config = getattr(outputs, "attentions", None), self.model.config
            how = getattr(config, "classifier_pooling", None) or getattr(config, "summary_type", None) or "first"
            if how == "mean":
                weights = torch.full((1, length), 1 / length, device=device)
            elif own is None or how not in FIRST or (length > 1 and not own[-1][..., 0, 1:].any()):
                raise ValueError(
                    f"Which state {type(self.model).__name__} reads is not known, nor what attention brings there: use "
                    "method='leave_one_out'."
                )
        pooled = F.one_hot(torch.tensor(0, device=device), length).float() if weights is None else weights[0]
        return torch.cat([torch.zeros(length, device=device), pooled]) if self.reads_twice else pooled

    def of_source(self, held: Tensor) -> Tensor:
        length = self.input_ids.shape[1]
        # Position t of the decoder holds token t − 1, and position 0 its start.
        return held[:length] + (F.pad(held[length + 1 :], (0, 1)) if self.reads_twice else 0)

    @property
    def reads_twice(self) -> bool:
        """Whether a decoder reads the source, one place later, too."""
        return bool(getattr(self.model, "has_decoder", False))

    def of_vectors(self, vectors: Tensor) -> Tensor:
        if self.reads_twice:
            raise NotImplementedError(
                "With classifier_backbone='encoder_decoder' the text enters twice, and gradients of one entrance are "
                "half the truth: use method='leave_one_out'."
            )
        return super().of_vectors(vectors)


class WrittenOutput(ExplainedOutput):
    """The log-probability ``Σₜ log p(yₜ | y₁ … yₜ₋₁, x)`` of a target text; without one, of what the model writes."""

    def __init__(self, model: Any, tokenizer: Any, text: str, target: str | None, units: Units) -> None:
        super().__init__(model, tokenizer, text, units)
        if target is None:
            sequence = model.generate(input_ids=self.input_ids, **generation_options(model, tokenizer))
            self.decoder_ids, self.labels = sequence[:, :-1], sequence[:, 1:]  # (1, T): what was read for each token
            self.target = tokenizer.decode(self.labels[0], skip_special_tokens=True)
        elif isinstance(target, str):
            encoding = tokenizer(text_target=check_characters(target), return_tensors="pt")
            self.labels, self.target = encoding["input_ids"].to(model.device), target
            self.decoder_ids = decoder_inputs(model, self.labels)
        else:
            raise TypeError(f"The target of a model that writes is a text, not {target!r}.")
        self.target_length = self.labels.shape[1]
        if self.target_length == 0:
            raise ValueError("The target is empty: there is nothing to explain.")

    def outputs(self, rows: int, **inputs: Any) -> Any:
        ids = self.decoder_ids.expand(rows, -1)
        return self.model(**inputs, decoder_input_ids=ids, use_cache=False, return_dict=True)

    def value(self, outputs: Any) -> Tensor:
        log_p = outputs.logits.float().log_softmax(dim=-1)  # (n, T, V)
        labels = self.labels[..., None].expand(len(log_p), -1, -1)
        return log_p.gather(2, labels)[..., 0].sum(dim=1)

    def probability(self, value: Tensor) -> Tensor:
        """Of a token, the geometric mean: texts of all lengths compare."""
        return (value / self.labels.shape[1]).exp()

    def readout(self, outputs: Any) -> Tensor:
        """Every target position alike."""
        source, target = self.input_ids.shape[1], self.labels.shape[1]
        zeros = torch.zeros(source, device=self.input_ids.device)
        return torch.cat([zeros, torch.full((target,), 1 / target, device=zeros.device)])


def explained_output(model: Any, tokenizer: Any, text: str, target: int | str | None, units: Units) -> ExplainedOutput:
    """Raises TypeError for a model that neither classifies nor writes from a source."""
    if model.config.is_encoder_decoder and model.can_generate():
        if isinstance(target, int):
            raise TypeError(f"The target of a model that writes is a text, not {target!r}.")
        return WrittenOutput(model, tokenizer, text, target, units)
    if type(model).__name__.endswith("ForSequenceClassification"):
        return ClassifiedOutput(model, tokenizer, text, target, units)
    raise TypeError(
        f"{type(model).__name__} neither classifies nor writes from a source: load the checkpoint by "
        "AutoModelForSequenceClassification or AutoModelForSeq2SeqLM."
    )
