"""A monotone aligner of letters and phonemes, to measure attention by: expectation maximisation over edit steps.

Steps take 1 letter and 1 phoneme, 1 and 0 (silent), 2 and 1, or 1 and 2; their probabilities are learned from the
dictionary alone (in the manner of Jiampojamarn et al. 2007), so it knows nothing of any model.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

STEPS = ((1, 1), (1, 0), (2, 1), (1, 2))
Step = tuple[str, tuple[str, ...]]
Pair = tuple[str, Sequence[str]]


def learn(pairs: Sequence[Pair], rounds: int = 8) -> dict[Step, float]:
    """Probabilities of steps, by soft EM from equal ones."""
    weights: dict[Step, float] = defaultdict(lambda: 1.0)
    for _ in range(rounds):
        counts: Counter[Step] = Counter()
        for word, phonemes in pairs:
            count(word, phonemes, weights, counts)
        total = sum(counts.values())
        weights = defaultdict(lambda: 1e-9, {step: number / total for step, number in counts.items()})
    return weights


def count(word: str, phonemes: Sequence[str], weights: dict[Step, float], counts: Counter[Step]) -> None:
    """Adds every step's expected number in one pair; nothing for a pair that no steps connect."""
    letters, sounds = len(word), len(phonemes)
    before = [[0.0] * (sounds + 1) for _ in range(letters + 1)]
    after = [[0.0] * (sounds + 1) for _ in range(letters + 1)]
    before[0][0] = after[letters][sounds] = 1.0
    edges = steps(word, phonemes)
    for i, j, di, dj, step in edges:
        before[i + di][j + dj] += before[i][j] * weights[step]
    for i, j, di, dj, step in reversed(edges):
        after[i][j] += weights[step] * after[i + di][j + dj]
    if before[letters][sounds] > 0:
        for i, j, di, dj, step in edges:
            counts[step] += before[i][j] * weights[step] * after[i + di][j + dj] / before[letters][sounds]


def align(word: str, phonemes: Sequence[str], weights: dict[Step, float]) -> list[set[int]]:
    """The letters of each phoneme on the likeliest path; empty sets where no steps connect the two."""
    best: dict[tuple[int, int], tuple[float, list[set[int]]]] = {(0, 0): (1.0, [])}
    for i, j, di, dj, step in steps(word, phonemes):
        if (i, j) in best:
            score, path = best[i, j]
            score *= weights[step]
            if score > best.get((i + di, j + dj), (0.0,))[0]:
                best[i + di, j + dj] = score, path + [set(range(i, i + di))] * dj
    return best.get((len(word), len(phonemes)), (0.0, [set[int]() for _ in phonemes]))[1]


def steps(word: str, phonemes: Sequence[str]) -> list[tuple[int, int, int, int, Step]]:
    """Every step of the grid, those that others follow first."""
    return [
        (i, j, di, dj, (word[i : i + di], tuple(phonemes[j : j + dj])))
        for i in range(len(word))
        for j in range(len(phonemes) + 1)
        for di, dj in STEPS
        if i + di <= len(word) and j + dj <= len(phonemes)
    ]
