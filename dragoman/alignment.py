"""Which source word a target word comes from, read off cross-attention; and how often that agrees with people."""

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .explained_output import evaluating
from .surrogates import check_characters
from .teacher_forcing import decoder_inputs
from .word_spans import Units, check_offsets, offsets_of, offsets_of_written, spans_of
from .written_rows import generation_options

Link = tuple[int, int]  # source, target
Links = frozenset[Link]


@dataclass(frozen=True)
class Alignment:
    """Units of both sides, the weight of every pair (T, S), and the links; ``str()`` writes them as ``0-0 1-2``.

    A row of weights is what one target unit looked at: less than 1 where special tokens got the rest.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    weights: Tensor
    links: Links

    def __str__(self) -> str:
        return " ".join(f"{i}-{j}" for i, j in sorted(self.links))


class _Side(NamedTuple):
    ids: Tensor  # (S,) or (T,)
    units: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]  # of each unit


@overload
def align(
    model: Any,
    tokenizer: Any,
    source: str,
    target: str | None = None,
    *,
    layer: int | None = None,
    head: int | None = None,
    units: Units = "words",
) -> Alignment: ...


@overload
def align(
    model: Any,
    tokenizer: Any,
    source: list[str],
    target: list[str] | None = None,
    *,
    layer: int | None = None,
    head: int | None = None,
    units: Units = "words",
) -> list[Alignment]: ...


def align(
    model: Any,
    tokenizer: Any,
    source: str | list[str],
    target: str | list[str] | None = None,
    *,
    layer: int | None = None,
    head: int | None = None,
    units: Units = "words",
) -> Alignment | list[Alignment]:
    """Links each target unit to the source unit that it attends to most. One pair, or lists that make a batch.

    Without ``target``, the model writes one first, by its generation config. The attention is that of one pass over the
    finished target, so it belongs to the hypothesis that won, whatever the search. Heads and layers are averaged where
    none is chosen. ``units="tokens"`` links what the tokenizers cut. :func:`symmetrize` joins two directions.

    Raises:
        ValueError: for a model without cross-attention, a layer or head there is not, or a text without words.
        TypeError: for a tokenizer without offsets.
    """
    check_offsets(tokenizer)
    sources = [source] if isinstance(source, str) else source
    targets = [target] if isinstance(target, str) else target
    if targets is not None and len(targets) != len(sources):
        raise ValueError(f"{len(sources)} sources and {len(targets)} targets: give one target a source, or none.")
    if not sources:
        return []
    with evaluating(model), torch.no_grad():
        from_texts = [_side(tokenizer, text, units, text) for text in sources]
        inputs = _batch([side.ids for side in from_texts], model, tokenizer)
        if targets is None:
            rows = [*_generate(model, tokenizer, inputs)]
            into = [_written(tokenizer, row[1:], units) for row in rows]
            decoder_ids = pad_sequence([torch.tensor(row[:-1]) for row in rows], True, tokenizer.pad_token_id)
        else:
            into = [_side(tokenizer, text, units, text_target=text) for text in targets]
            decoder_ids = decoder_inputs(model, pad_sequence([side.ids for side in into], True, -100))
        weights = _cross_attention(model, inputs, decoder_ids.to(model.device), layer, head)  # (B, T, S)
    found = [_link(read, wrote, matrix) for read, wrote, matrix in zip(from_texts, into, weights, strict=True)]
    return found[0] if isinstance(source, str) else found


def _side(tokenizer: Any, text: str, units: Units, *texts: str, **text_target: str) -> _Side:
    check_characters(text)
    encoding = tokenizer(*texts, **text_target, return_offsets_mapping=True)
    side = _cut(encoding["input_ids"], text, offsets_of(encoding), units)
    if not side.units:
        raise ValueError(f"There is nothing to align in {text!r}: the text has no words.")
    return side


def _written(tokenizer: Any, ids: list[int], units: Units) -> _Side:
    return _cut(ids, *offsets_of_written(ids, tokenizer), units)


def _cut(ids: list[int], text: str, offsets: list[tuple[int, int]], units: Units) -> _Side:
    spans = spans_of(text, offsets, units)
    return _Side(torch.tensor(ids), tuple(span.text for span in spans), tuple(span.tokens for span in spans))


def _batch(rows: list[Tensor], model: Any, tokenizer: Any) -> dict[str, Tensor]:
    return {
        "input_ids": pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id).to(model.device),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(model.device),
    }


def _generate(model: Any, tokenizer: Any, inputs: dict[str, Tensor]) -> Iterable[list[int]]:
    """What the model writes, from the start token to the end token, with them."""
    end = model.generation_config.eos_token_id
    ends = set(end) if isinstance(end, list) else {end}
    for row in model.generate(**inputs, **generation_options(model, tokenizer)).tolist():
        length = next((i + 1 for i, token in enumerate(row) if i and token in ends), len(row))
        yield row[:length]


def _cross_attention(model: Any, inputs: dict[str, Tensor], ids: Tensor, layer: int | None, head: int | None) -> Tensor:
    """(B, T, S) of a decoder that reads ``ids`` (B, T)."""
    outputs = model(**inputs, decoder_input_ids=ids, output_attentions=True, use_cache=False, return_dict=True)
    if not outputs.cross_attentions or outputs.cross_attentions[0] is None:
        raise ValueError(
            "The model returned no cross-attention, and there is nothing else to align by: a recurrent model with "
            "attention='none' has none (train one with attention='dot'), other models may need "
            "attn_implementation='eager'."
        )
    weights = torch.stack(outputs.cross_attentions, dim=1)  # (B, L, H, T, S)
    for name, index, count in (("layer", layer, weights.shape[1]), ("head", head, weights.shape[2])):
        if index is not None and not 0 <= index < count:
            raise ValueError(f"There is no {name} {index}: the decoder has {count}, 0 to {count - 1}.")
    weights = weights.mean(dim=1) if layer is None else weights[:, layer]  # (B, H, T, S)
    return (weights.mean(dim=1) if head is None else weights[:, head]).float().cpu()


def _link(source: _Side, target: _Side, weights: Tensor) -> Alignment:
    """Token weights (T, S) to weights of units: the sum over source tokens, the mean over target tokens."""
    columns = torch.stack([weights[:, list(tokens)].sum(dim=1) for tokens in source.tokens], dim=1)
    rows = [columns[list(tokens)].mean(dim=0) for tokens in target.tokens]
    matrix = torch.stack(rows) if rows else columns[:0]  # a model may write nothing
    links = frozenset((int(i), j) for j, i in enumerate(matrix.argmax(dim=1)))
    return Alignment(source.units, target.units, matrix, links)


def symmetrize(forward: Alignment, backward: Alignment, method: str = "grow-diag") -> Alignment:
    """Joins the links of both directions, ``backward`` from a model that translates back, with ``forward``'s weights.

    ``grow-diag`` begins with the intersection and adds links of the union beside those it has, where a word on either
    side has none yet (Koehn et al. 2003); ``intersection`` and ``union`` are as they say.

    Raises ValueError for an unknown method, or alignments of different words.
    """
    if method not in SYMMETRIZATIONS:
        raise ValueError(f"Unknown method {method!r}: choose one of {', '.join(SYMMETRIZATIONS)}.")
    if (forward.source, forward.target) != (backward.target, backward.source):
        raise ValueError(
            f"The two directions do not join: {forward.source} to {forward.target}, and {backward.source} to "
            f"{backward.target}. Align the same two texts, in words."
        )
    return replace(forward, links=SYMMETRIZATIONS[method](forward.links, frozenset((i, j) for j, i in backward.links)))


def grow_diag(forward: Links, backward: Links) -> Links:
    links, candidates = set(forward & backward), forward | backward
    neighbours = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]
    while True:
        before = len(links)
        for i, j in sorted(links):
            for di, dj in neighbours:
                new = (i + di, j + dj)
                is_free = new[0] not in {a for a, _ in links} or new[1] not in {b for _, b in links}
                if new in candidates and is_free:
                    links.add(new)
        if len(links) == before:
            return frozenset(links)


SYMMETRIZATIONS: dict[str, Callable[[Links, Links], Links]] = {
    "grow-diag": grow_diag,
    "intersection": lambda forward, backward: forward & backward,
    "union": lambda forward, backward: forward | backward,
}


def alignment_error_rate(
    found: Sequence[Set[Link]], sure: Sequence[Set[Link]], possible: Sequence[Set[Link]] | None = None
) -> float:
    """``1 − (|A ∩ S| + |A ∩ P|) / (|A| + |S|)`` over all sentences; sure links are possible too. Och & Ney 2003.

    Raises ValueError for lists of different lengths, or no links at all.
    """
    possible = sure if possible is None else possible
    if not len(found) == len(sure) == len(possible):
        raise ValueError(f"One set a sentence: {len(found)} found, {len(sure)} sure and {len(possible)} possible ones.")
    total = sum(len(a) + len(s) for a, s in zip(found, sure, strict=True))
    if total == 0:
        raise ValueError("No links were found, and none are sure: there is no error rate.")
    right = sum(len(a & s) + len(a & (p | s)) for a, s, p in zip(found, sure, possible, strict=True))
    return 1 - right / total
