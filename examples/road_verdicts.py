"""What the measurements say about the story: every claim, its number, and whether it holds here.

At a length one model is *above* another where its mean over seeds is higher by ``MARGIN`` points or more and its worst
seed beats the other's best. A claim about lengths *holds* where it does at every length; *holds only beyond length n*
where it does at all lengths above n and not at n; and otherwise *does not hold here*.
"""

import csv
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from road_measurements import mean_percent
from road_models import NAMES

MARGIN = 2.0  # percent points
FASTER = 1.05  # times as fast counts as faster
HIGHER = 2.0  # times the loss counts as worse
RIGHT = 99.0  # percent of the symbols count as all of them
NEEDED = 1.0  # percent points that a head must be worth
HOLDS, FAILS = "holds", "does not hold here"

Seeds = list[float]  # one value a seed
Curve = dict[int, Seeds]  # by length
Curves = dict[str, dict[str, Curve]]  # by task and model


class Claim(NamedTuple):
    says: str
    where: str
    number: str
    verdict: str


def judge(lengths: Sequence[int], held: Sequence[bool]) -> str:
    """The verdict on a claim that held, or not, at each of ``lengths``, ascending."""
    if not held or not held[-1]:
        return FAILS
    failed = [length for length, good in zip(lengths, held, strict=True) if not good]
    return f"holds only beyond length {failed[-1]}" if failed else HOLDS


def is_above(higher: Seeds, lower: Seeds) -> bool:
    return statistics.mean(higher) - statistics.mean(lower) >= MARGIN and min(higher) > max(lower)


def spread(values: Seeds, digits: int = 1) -> str:
    """``mean (lowest to highest)``."""
    mean, low, high = (f"{x:.{digits}f}" for x in (statistics.mean(values), min(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def gather(records: Iterable[dict[str, Any]]) -> Curves:
    """Results of runs, seeds together."""
    curves: Curves = {}
    for record in records:
        curve = curves.setdefault(record["task"], {}).setdefault(record["model"], {})
        for point in record["points"]:
            curve.setdefault(point["length"], []).append(point["percent"])
    return curves


def compare(better: Curve, worse: Curve, names: tuple[str, str]) -> tuple[str, str]:
    """Number and verdict of the claim that ``better`` is above ``worse``; the number is that of the longest."""
    lengths = sorted(better)
    held = [is_above(better[length], worse[length]) for length in lengths]
    last = lengths[-1]
    number = f"at {last}: {names[0]} {spread(better[last])}, {names[1]} {spread(worse[last])}"
    return number, judge(lengths, held)


def forgets(curves: dict[str, Curve]) -> tuple[str, str]:
    """Whether the fixed context loses with length, and loses more than a model with attention does."""
    fixed, other = curves["fixed"], curves["additive"]
    first, *lengths = sorted(fixed)

    def lost(curve: Curve, length: int) -> float:
        return statistics.mean(curve[first]) - statistics.mean(curve[length])

    held = [
        is_above(fixed[first], fixed[length]) and lost(fixed, length) - lost(other, length) >= MARGIN
        for length in lengths
    ]
    last = lengths[-1]
    number = (
        f"from {first} to {last}: fixed context {spread(fixed[first])} to {spread(fixed[last])}, "
        f"additive attention {spread(other[first])} to {spread(other[last])}"
    )
    return number, judge(lengths, held)


def keeps_up(curves: dict[str, Curve]) -> tuple[str, str]:
    """Whether the Transformer is nowhere below the better of the two recurrent models with attention."""
    transformer, lengths = curves["transformer"], sorted(curves["transformer"])
    rivals = ("additive", "dot")
    held = [not any(is_above(curves[rival][n], transformer[n]) for rival in rivals) for n in lengths]
    last = lengths[-1]
    best = max(rivals, key=lambda rival: statistics.mean(curves[rival][last]))
    number = f"at {last}: Transformer {spread(transformer[last])}, {NAMES[best]} {spread(curves[best][last])}"
    return number, judge(lengths, held)


def reaches(curve: Curve) -> tuple[str, str]:
    """Whether what was marked is found however much follows it."""
    lengths = sorted(curve)
    worst = min(lengths, key=lambda length: statistics.mean(curve[length]))
    verdict = judge(lengths, [statistics.mean(curve[length]) >= RIGHT for length in lengths])
    return f"at {lengths[-1]}: {spread(curve[lengths[-1]])}; least, at {worst}: {spread(curve[worst])}", verdict


def claims_of_tasks(curves: Curves) -> list[Claim]:
    claims = []
    for task, models in curves.items():
        claims.append(Claim("A fixed context forgets long inputs", task, *forgets(models)))
    for task, models in curves.items():
        for attention in ("additive", "dot"):
            told = compare(models[attention], models["fixed"], (f"{attention} attention", "fixed context"))
            claims.append(Claim(f"Attention looks back: {attention} is above a fixed context", task, *told))
    for task in (task for task in curves if task.startswith("recall-")):
        for model in ("additive", "dot", "transformer"):
            says = f"Attention reaches any distance: {NAMES[model]}"
            claims.append(Claim(says, task, *reaches(curves[task][model])))
    for task, models in curves.items():
        claims.append(Claim("Self-attention needs no recurrence: it is not below", task, *keeps_up(models)))
    return claims


def claims_of_speed(records: Iterable[dict[str, Any]]) -> list[Claim]:
    speeds = {r["model"]: {s["length"]: s["tokens_per_second"] for s in r["speeds"]} for r in records}
    transformer = speeds["transformer"]
    claims = []
    for model in ("fixed", "additive", "dot"):
        ratios = {length: transformer[length] / speeds[model][length] for length in sorted(transformer)}
        first, last = min(ratios), max(ratios)
        number = f"{ratios[first]:.2f} times as fast at {first}, {ratios[last]:.2f} at {last}"
        verdict = judge(list(ratios), [ratio >= FASTER for ratio in ratios.values()])
        claims.append(Claim("Parallel computation pays with length", f"against {NAMES[model]}", number, verdict))
    return claims


def claims_of_heads(records: Sequence[dict[str, Any]], removal: dict[str, Any]) -> list[Claim]:
    """Four heads against one, both trained; and what a trained model loses without one of its heads."""
    means: dict[str, Seeds] = {"transformer": [], "one-head": []}
    for record in records:
        if record["task"] == "words" and record["model"] in means:
            means[record["model"]].append(mean_percent(record["points"]))
    many, one = means["transformer"], means["one-head"]
    lost = [head["lost"] for head in removal["heads"]]
    idle = sum(points < NEEDED for points in lost)
    number = (
        f"{len(lost) - idle} of {len(lost)} heads are worth {NEEDED:g} point or more; the most needed "
        f"{max(lost):.1f}, the median one {statistics.median(lost):.1f}"
    )
    return [
        Claim(
            "Many heads are better than one",
            "words",
            f"four {spread(many)}, one {spread(one)}",
            HOLDS if is_above(many, one) else FAILS,
        ),
        Claim("Every head is needed", "words, removed one at a time", number, FAILS if idle else HOLDS),
    ]


def read_depth(path: Path) -> dict[str, dict[str, Seeds]]:
    """``docs/stability.csv``: losses by stack and variant; a run that diverged ends early, or in nan."""
    losses: dict[str, dict[str, Seeds]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for column, value in row.items():
                if column != "step":
                    stack, _, variant = column.partition(", ")
                    kept = losses.setdefault(stack, {}).setdefault(variant, [])
                    kept.append(float(value) if value else math.nan)
    return losses


def claims_of_depth(losses: dict[str, dict[str, Seeds]]) -> list[Claim]:
    compared = (
        ("Residual connections are needed at depth", "as it is", "no residual"),
        ("A norm is needed at depth", "as it is", "no norm"),
        (
            "A norm is needed at depth where the first weights are not scaled by it",
            "no depth scaling",
            "neither norm nor depth scaling",
        ),
    )
    claims = []
    for says, whole, without in compared:
        for stack, variants in losses.items():
            having, lacking = (statistics.mean(variants[variant][-5:]) for variant in (whole, without))
            told = f"{lacking:.3g}" if math.isfinite(lacking) else "diverged"
            holds = not lacking <= HIGHER * having  # nan is worse than anything
            number = f"loss at the end {having:.3g} with, {told} without"
            claims.append(Claim(says, stack, number, HOLDS if holds else FAILS))
    return claims
