"""Are the words that an attribution names those that the model uses? DeYoung et al. 2020 (arXiv:1911.03429)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from .attribution import Attribution
from .explained_output import evaluating

FRACTIONS = (0.01, 0.05, 0.1, 0.2, 0.5)  # of the words, and one word at least: the paper's


class Faithfulness(NamedTuple):
    """``comprehensiveness``, of p(x) − p(x without the top words): high is good. ``sufficiency``, of p(x) − p(the top
    words alone): low is good. Means over the fractions; beside the same of words drawn at random.
    """

    comprehensiveness: float
    sufficiency: float
    random_comprehensiveness: float
    random_sufficiency: float


def faithfulness(
    attribution: Attribution, fractions: Sequence[float] = FRACTIONS, draws: int = 5, seed: int = 0
) -> Faithfulness:
    """Deletes the top words, then all others, for each of ``fractions``; p is the probability of the target.

    Raises ValueError for a fraction outside (0, 1], and for regressions, which give no probability.
    """
    if not fractions or not all(0 < fraction <= 1 for fraction in fractions):
        raise ValueError(f"fractions must lie above 0 and at most at 1, got {tuple(fractions)}.")
    words = attribution.words
    generator = torch.Generator().manual_seed(seed)
    ranking = sorted(range(len(words)), key=lambda i: -words[i].score)
    rankings = [ranking, *(torch.randperm(len(words), generator=generator).tolist() for _ in range(draws))]
    cuts = [math.ceil(fraction * len(words)) for fraction in fractions]
    everything = range(len(words))
    kept: list[Sequence[int]] = [everything]
    for order in rankings:
        for cut in cuts:
            kept += [order[cut:], order[:cut]]
    explained = attribution.explained
    with evaluating(explained.model):
        rows = [[token for word in row for token in explained.words[word].tokens] for row in kept]
        probabilities = explained.probability(explained.of_parts(rows).double())
    drops = (probabilities[0] - probabilities[1:]).view(len(rankings), len(cuts), 2).mean(dim=1)  # (1 + draws, 2)
    by_chance = drops[1:].mean(dim=0) if draws else torch.full((2,), math.nan)
    return Faithfulness(*drops[0].tolist(), *by_chance.tolist())
