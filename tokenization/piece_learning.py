"""Vocabularies from word counts: words, characters, byte-pair encoding, unigram language model.

Every function takes counts of words (as cut by the segmentation) and the number of pieces wanted, and returns at most
that many. All are deterministic: counts are integers, and ties are settled by the text of the pieces.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby

from tokenizers import Tokenizer, models, trainers

CHARACTER_COVERAGE = 0.9995  # rarer characters go to bytes (Kudo and Richardson, 2018, arXiv:1808.06226)
LONGEST_PIECE = 16
SEEDS_PER_PIECE = 10
SHRINKING_FACTOR = 0.75
AT_ONCE = 1000  # copies of a word


def learn_words(counts: Counter[str], size: int) -> list[str]:
    return _commonest(counts, size)


def learn_characters(counts: Counter[str], size: int) -> list[str]:
    return _commonest(_count_characters(counts), size)


def learn_bpe(counts: Counter[str], size: int, byte_fallback: bool) -> tuple[list[str], list[tuple[str, str]]]:
    """Pieces and merges. Sennrich et al., 2016 (arXiv:1508.07909); a pair seen once is not merged."""
    alphabet = _alphabet(counts, size, byte_fallback)
    if not alphabet:
        return [], []
    words = _within(alphabet, counts)
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=size, min_frequency=2, show_progress=False)
    tokenizer.train_from_iterator(_repeated(words), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].__getitem__), [(left, right) for left, right in model["merges"]]


def learn_unigram(counts: Counter[str], size: int, byte_fallback: bool) -> list[tuple[str, float]]:
    """Pieces and their log probabilities, likeliest first. Kudo, 2018 (arXiv:1804.10959).

    EM counts the pieces of the best segmentation instead of all of them: exact integers, so that training twice gives
    one answer. Pruning drops the pieces whose loss costs the corpus the least likelihood.
    """
    alphabet = _alphabet(counts, size, byte_fallback)
    words = _within(alphabet, counts)
    scores = _log_probabilities(_seeds(words, alphabet, SEEDS_PER_PIECE * size))
    while alphabet:
        for _ in range(2):
            used = _count_best_pieces(words, scores)
            scores = _log_probabilities({piece: used[piece] for piece in scores if used[piece] or piece in alphabet})
        if len(scores) <= size:
            break
        spare = sorted(
            (piece for piece in scores if piece not in alphabet),
            key=lambda piece: (-used[piece] * (scores[piece] - _best_split(piece, scores)), piece),
        )
        kept = max(size, int(SHRINKING_FACTOR * len(scores))) - len(alphabet)
        scores = {piece: scores[piece] for piece in [*alphabet, *spare[:kept]]}
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def _repeated(counts: Counter[str]) -> Iterator[list[str]]:
    """Every word as often as it occurs, a few at a time: the commonest of a large corpus would fill the memory."""
    for word, count in counts.items():
        for start in range(0, count, AT_ONCE):
            yield [word] * min(AT_ONCE, count - start)


def _commonest(counts: Counter[str], size: int) -> list[str]:
    return sorted(counts, key=lambda item: (-counts[item], item))[:size]


def _count_characters(counts: Counter[str]) -> Counter[str]:
    characters: Counter[str] = Counter()
    for word, count in counts.items():
        for character in word:
            characters[character] += count
    return characters


def _alphabet(counts: Counter[str], size: int, byte_fallback: bool) -> dict[str, int]:
    """Characters to keep as pieces, commonest first; with bytes to fall back on, the rarest 0.05% of text does."""
    characters = _count_characters(counts)
    needed = characters.total() * (CHARACTER_COVERAGE if byte_fallback else 1.0)
    alphabet: dict[str, int] = {}
    for character in _commonest(characters, size):
        if needed <= 0:
            break
        alphabet[character] = characters[character]
        needed -= characters[character]
    return alphabet


def _within(alphabet: dict[str, int], counts: Counter[str]) -> Counter[str]:
    """The stretches of each word that the alphabet can write."""
    stretches: Counter[str] = Counter()
    for word, count in counts.items():
        for known, stretch in groupby(word, alphabet.__contains__):
            if known:
                stretches["".join(stretch)] += count
    return stretches


def _seeds(words: Counter[str], alphabet: dict[str, int], limit: int) -> dict[str, int]:
    """Substrings seen at least twice, those that cover most text first, each weighted by the text it covers."""
    seeds: Counter[str] = Counter()
    shorter: Iterable[str] = alphabet
    for length in range(2, LONGEST_PIECE + 1):
        frequent = set(shorter)  # a substring is frequent only if both substrings one shorter are
        found: Counter[str] = Counter()
        for word, count in words.items():
            for start in range(len(word) - length + 1):
                piece = word[start : start + length]
                if piece[:-1] in frequent and piece[1:] in frequent:
                    found[piece] += count
        shorter = [piece for piece, count in found.items() if count > 1]
        if not shorter:
            break
        seeds.update({piece: found[piece] * length for piece in shorter})
    return alphabet | {piece: seeds[piece] for piece in _commonest(seeds, limit)}


def _log_probabilities(counts: dict[str, int]) -> dict[str, float]:
    """A character that no segmentation uses stays, as if seen half a time."""
    total = math.log(sum(counts.values()) or 1)
    return {piece: math.log(count or 0.5) - total for piece, count in counts.items()}


def _count_best_pieces(words: Counter[str], scores: dict[str, float]) -> Counter[str]:
    model = models.Unigram(list(scores.items()), 0, False)
    used: Counter[str] = Counter()
    for word, count in words.items():
        for token in model.tokenize(word):
            used[token.value] += count
    return used


def _best_split(piece: str, scores: dict[str, float]) -> float:
    """Log probability of the best segmentation of `piece` into two or more."""
    best = [0.0]
    for end in range(1, len(piece) + 1):
        starts = range(1 if end == len(piece) else 0, end)
        best.append(max(best[start] + scores.get(piece[start:end], -math.inf) for start in starts))
    return best[-1]
