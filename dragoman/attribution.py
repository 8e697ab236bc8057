"""Which words made the model say that: scores for the words of a text, by several methods."""

from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, NamedTuple
from warnings import warn

import torch
from torch import Tensor

from .attention_rollout import flow, mixtures, rollout
from .explained_output import ExplainedOutput, evaluating, explained_output
from .word_spans import Units

TOLERANCE = 0.02  # of what integrated gradients should add up to
STEPS, POWER = (32, 128, 512), 4


class ScoredWord(NamedTuple):
    """``text[start:end]``; the score is the sum of its tokens' scores."""

    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Attribution:
    """Scores of tokens (S,), special ones among them, and of words; above 0 speaks for the target.

    Scores of attention methods are never below 0: they do not tell for from against. They are parts of 1, but for
    attention_flow's, whose ways overlap: their sum may be more.
    """

    text: str
    target: str
    method: str
    tokens: tuple[str, ...]
    scores: Tensor
    words: tuple[ScoredWord, ...]
    value: float  # log-odds of the class, log-probability of the text written
    explained: ExplainedOutput = field(repr=False, compare=False)

    def ranked(self) -> list[ScoredWord]:
        """The words, highest score first."""
        return sorted(self.words, key=lambda word: -word.score)


def attribute(
    model: Any,
    tokenizer: Any,
    text: str,
    target: int | str | None = None,
    method: str = "leave_one_out",
    units: Units = "words",
) -> Attribution:
    """What each word of ``text`` adds to ``F``: the log-odds of a class, or the log-probability of a target text.

    ``target`` is a class, by name or number, or the text that a model writes; without it, what the model answers.
    ``units="tokens"`` scores what the tokenizer cut: letters, where it reads letters.

    ====================  ==========================================================  ==============================
    leave_one_out         ``F(x) − F(x without the word)``                            Li et al. 2016, 1612.08220
    integrated_gradients  ``(e − e₀) ∫ ∂F/∂e``, on the way from e₀; sum F(x) − F(e₀)  Sundararajan et al. 2017
    gradient_x_input      ``e · ∂F/∂e``                                               Shrikumar et al. 2017
    attention_rollout     attention through all layers                                Abnar & Zuidema 2020
    attention_flow        the same as a maximum flow; slow                            Abnar & Zuidema 2020
    attention             weights of the pooling, or of cross-attention, as they are
    ====================  ==========================================================  ==============================

    e are token vectors; e₀ has zeros in the place of the text's, and its special tokens. Integrated gradients are
    captum's (``pip install "dragoman[explain]"``). How the methods compare: docs/explanation.md.

    Raises:
        ValueError: for an unknown method or class, a text without words, a model without the attentions needed.
        TypeError: for a model that neither classifies nor writes, or a tokenizer without offsets.
        NotImplementedError, RuntimeError: for gradients of a classifier of both sides, of an int8 model.
        ImportError: for integrated gradients without captum.
    """
    if method not in METHODS:
        near = get_close_matches(method, METHODS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"Unknown method {method!r}: {hint}Choose one of {', '.join(METHODS)}.")
    with evaluating(model), torch.inference_mode(False), torch.enable_grad():  # whoever asks may have turned them off
        explained = explained_output(model, tokenizer, text, target, units)
        scores = METHODS[method](explained).double().cpu()
        value = float(explained.of_parts([range(len(explained.tokens))])[0])
    words = [ScoredWord(w.text, w.start, w.end, float(scores[list(w.tokens)].sum())) for w in explained.words]
    return Attribution(text, explained.target, method, tuple(explained.tokens), scores, tuple(words), value, explained)


def leave_one_out(explained: ExplainedOutput) -> Tensor:
    """``F(x) − F(x without the word)``, shared by the tokens of the word."""
    everything = range(len(explained.tokens))
    without = [sorted(set(everything) - set(word.tokens)) for word in explained.words]
    values = explained.of_parts([everything, *without]).double()
    scores = torch.zeros(len(explained.tokens), dtype=torch.float64)
    for word, value in zip(explained.words, values[1:], strict=True):
        scores[list(word.tokens)] = ((values[0] - value) / len(word.tokens)).cpu()
    return scores


def gradient_x_input(explained: ExplainedOutput) -> Tensor:
    """``e · ∂F/∂e`` (S,)."""
    vectors = explained.vectors().requires_grad_()
    (gradient,) = torch.autograd.grad(explained.of_vectors(vectors).sum(), vectors)
    return (vectors.detach() * gradient).sum(dim=-1)[0]


def integrated_gradients(explained: ExplainedOutput) -> Tensor:
    """captum's, with as many steps as it takes for the scores to add up; a warning where they do not."""
    try:
        from captum.attr import IntegratedGradients
    except ImportError as error:
        raise ImportError(
            'Integrated gradients are computed by captum: python -m pip install "dragoman[explain]"; or choose '
            "method='leave_one_out', which needs nothing."
        ) from error
    vectors = explained.vectors()  # (1, S, C)
    baseline = torch.where(explained.is_text[:, None], 0.0, vectors)
    with torch.no_grad():
        difference = float((explained.of_vectors(vectors) - explained.of_vectors(baseline))[0])
    # Norms make the way from 0 steep at its beginning: points lie closer there, at e₀ + uᵖ (e − e₀).
    shares = torch.ones(vectors.shape[:2], dtype=vectors.dtype, device=vectors.device)  # (1, S), u of every token
    method = IntegratedGradients(
        lambda u: explained.of_vectors(baseline + u[..., None] ** POWER * (vectors - baseline))
    )
    at_once = explained.at_once()
    for steps in STEPS:
        found = method.attribute(shares, torch.zeros_like(shares), n_steps=steps, internal_batch_size=at_once)
        scores: Tensor = found[0]
        missing = abs(float(scores.sum()) - difference)
        if missing <= TOLERANCE * max(abs(difference), 1.0):
            return scores
    warn(
        f"Integrated gradients miss {missing:.2g} of {difference:.2g} after {STEPS[-1]} steps: trust the order of the "
        "large scores only, or use method='leave_one_out'.",
        stacklevel=3,
    )
    return scores


def attention(explained: ExplainedOutput) -> Tensor:
    """As it is, heads and layers averaged: the pooling's weights over the source, or cross-attention's."""
    outputs = explained.attentions()
    weights = getattr(outputs, "cross_attentions", None)
    if getattr(outputs, "pooling_weights", None) is not None:
        return explained.of_source(explained.readout(outputs))
    if weights:
        return torch.stack(weights).mean(dim=(0, 2, 3))[0]  # (L, 1, H, T, S) → (S,)
    own = getattr(outputs, "attentions", None)
    if own:
        return explained.readout(outputs) @ own[-1][0].float().mean(dim=0)
    raise ValueError(
        "The model returned no attention over its source: a recurrent model with attention='none' has none (use "
        "method='leave_one_out'), other models may need attn_implementation='eager'."
    )


def attention_rollout(explained: ExplainedOutput) -> Tensor:
    outputs = explained.attentions()
    return explained.of_source(rollout(mixtures(outputs), explained.readout(outputs)))


def attention_flow(explained: ExplainedOutput) -> Tensor:
    outputs = explained.attentions()
    chain = mixtures(outputs)
    return explained.of_source(flow(chain, explained.readout(outputs)))


METHODS: dict[str, Callable[[ExplainedOutput], Tensor]] = {
    function.__name__: function
    for function in (
        leave_one_out,
        integrated_gradients,
        gradient_x_input,
        attention_rollout,
        attention_flow,
        attention,
    )
}
