"""Words of a text, and which tokens each is made of, by the tokenizer's offsets."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch

# Letters (a word may hold apostrophes), signs, and the scripts that write no spaces, a word a character; each with the
# variation selectors (V) that follow it.
_WORD = re.compile("CV*|L[LV]*(?:'[LV]+)*|[S'V]+")
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA")


Units = Literal["words", "tokens"]


class WordSpan(NamedTuple):
    """``text[start:end]``, and the indices of its tokens."""

    text: str
    start: int
    end: int
    tokens: tuple[int, ...]


def word_spans(text: str, offsets: Sequence[tuple[int, int]]) -> list[WordSpan]:
    """The words of ``text`` in order, each with its tokens; words that share a token are one.

    ``offsets`` are (start, end) of every token, empty for tokens that stand for no text. Tokens of white space alone
    belong to the word that follows; the last ones, to the last word.
    """
    words = [match.span() for match in _WORD.finditer("".join(map(_kind, text)))]
    spans: list[WordSpan] = []
    waiting: list[int] = []  # tokens of white space
    for index, (start, end) in enumerate(offsets):
        if start == end:
            continue
        touched = [word for word in words if word[0] < end and word[1] > start]
        if not touched:
            waiting.append(index)
            continue
        first, last = touched[0][0], touched[-1][1]
        tokens = (*waiting, index)
        waiting = []
        while spans and spans[-1].end > first:  # the word of the tokens before goes on
            before = spans.pop()
            first, last = min(first, before.start), max(last, before.end)
            tokens = before.tokens + tokens
        spans.append(WordSpan(text[first:last], first, last, tokens))
    if spans and waiting:
        spans[-1] = spans[-1]._replace(tokens=(*spans[-1].tokens, *waiting))
    return spans


def spans_of(text: str, offsets: Sequence[tuple[int, int]], units: Units) -> list[WordSpan]:
    """:func:`word_spans`, or the tokens that stand for some text; those that share a character, as bytes do, are one.

    Raises ValueError for other units.
    """
    if units == "words":
        return word_spans(text, offsets)
    if units != "tokens":
        raise ValueError(f"units must be 'words' or 'tokens', not {units!r}.")
    spans: list[WordSpan] = []
    for index, (start, end) in enumerate(offsets):
        start = end - len(text[start:end].lstrip() or text[start:end])
        tokens: tuple[int, ...] = (index,)
        if start == end:
            continue
        if spans and spans[-1].end > start:
            before = spans.pop()
            start, end, tokens = before.start, max(before.end, end), (*before.tokens, index)
        spans.append(WordSpan(text[start:end], start, end, tokens))
    return spans


def check_offsets(tokenizer: Any) -> None:
    """Raises TypeError for a tokenizer that cannot tell where its tokens stand."""
    if not getattr(tokenizer, "is_fast", False):
        raise TypeError(
            f"{type(tokenizer).__name__} tells no offsets, which lead from tokens back to words: use a fast tokenizer "
            "(AutoTokenizer.from_pretrained gives one where there is one)."
        )


def offsets_of(encoding: Any) -> list[tuple[int, int]]:
    """(start, end) of every token of the one row that ``tokenizer(text, return_offsets_mapping=True)`` gave."""
    return [(int(start), int(end)) for start, end in torch.as_tensor(encoding["offset_mapping"]).view(-1, 2)]


def offsets_of_written(ids: Sequence[int], tokenizer: Any) -> tuple[str, list[tuple[int, int]]]:
    """The text that ``ids`` stand for, and where each of them put its part; special tokens put nothing.

    Tokens that make one character together, as bytes do, all have that character.
    """
    text = tokenizer.decode(ids, skip_special_tokens=True)
    # How far the text is written after each token: half a character decodes to something else, of any length.
    written = [tokenizer.decode(ids[: i + 1], skip_special_tokens=True) for i in range(len(ids))]
    ends = [_alike(text, prefix) for prefix in written]
    special, start = set(tokenizer.all_special_ids), 0
    offsets: list[tuple[int, int]] = []
    for i, token in enumerate(ids):
        end = start if token in special else next((end for end in ends[i:] if end > start), start)
        offsets.append((start, end))
        start = max(start, ends[i])
    return text, offsets


def _alike(one: str, other: str) -> int:
    """How many characters both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _kind(character: str) -> str:
    if character.isspace():
        return " "
    if character in "'\N{RIGHT SINGLE QUOTATION MARK}":
        return "'"
    category = unicodedata.category(character)
    if category == "Cf" and character != "\N{ZERO WIDTH SPACE}":  # joiners, soft hyphens, ...: of the word around
        return "V"
    if category[0] not in "LMN":
        return "S"
    name = unicodedata.name(character, "")
    if name.startswith("VARIATION SELECTOR"):
        return "V"
    return "C" if name.startswith(_UNSPACED) else "L"
