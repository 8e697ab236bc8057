"""The whole table of speeds in one run: training and writing, small and base, and which bars are reached.

    python benchmarks/table.py [--resume]
    python benchmarks/table.py --vary 0.7 1.3
    python benchmarks/table.py --growth

A cell is written to benchmarks/results as soon as it is measured, a failing one costs no other, and ``--resume``
measures only what is missing there; ``--only`` measures some cells anew and keeps the others. It is made for two idle
cores. ``--vary`` asks instead whether ratios hold where lengths and sizes are other than those of the table, by these
factors; ``--growth`` how cost grows, one dimension at a time, and draws it. ``python benchmarks/performance.py`` then
writes the page. Ends with the number of cells that failed or fell short of their bar.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

import generate
import train
from generate import BASE, CASES, SMALL
from growth import growing, plot
from peer_models import MODELS, SIZES
from training_engines import Work
from turns import RESULTS, TRIES, cell_text, run_cells

Cells = dict[str, Callable[[], dict[str, Any]]]
PEERS = [name for name in MODELS if name != "Marian"]
WRITERS = ["Dragoman", "CTranslate2", "Dragoman, int8", "CTranslate2, int8"]
IMAGE = Path(__file__).resolve().parent.parent / "docs" / "images" / "growth.png"


class Bar(NamedTuple):
    cell: str
    engine: str
    bar: float
    aim: float
    column: str = "ratio"  # to Marian


BARS = [
    Bar("train small, ragged", "Dragoman, packed", 2.6, 3.5),
    Bar("train base, ragged", "Dragoman, packed", 2.9, 3.5),
    Bar("train small, grouped", "Dragoman, packed", 1.05, 1.3),
    Bar("train base, grouped", "Dragoman, packed", 1.15, 1.3),
    Bar("train base, ragged", "Dragoman, packed", 3.0, 3.0, "memory"),
    Bar("small, greedy, batch 1", "Dragoman", 1.8, 2.5),
    Bar("base, greedy, batch 1", "Dragoman", 1.2, 1.3),
    Bar("small, greedy, batch 1", "Dragoman, int8", 1.8, 4.4),
    Bar("base, greedy, batch 1", "Dragoman, int8", 3.2, 3.5),
    Bar("small, greedy, batch 16", "Dragoman", 1.35, 2.2),
    Bar("base, greedy, batch 16", "Dragoman", 1.05, 1.3),
    Bar("small, greedy, batch 16", "Dragoman, int8", 1.7, 4.4),
    Bar("base, greedy, batch 16", "Dragoman, int8", 2.6, 4.7),
    Bar("small, beam 4, batch 1", "Dragoman", 1.35, 2.0),
    Bar("small, beam 4, batch 8", "Dragoman", 1.6, 2.0),
    Bar("base, beam 4, batch 1", "Dragoman", 1.25, 2.0),
]


def whole_table(rounds: int, settings: dict[str, Any]) -> Cells:
    """All peers at the small size; at the base size the best one."""
    cells: Cells = {}
    for size, engines in (("small", PEERS), ("base", ["BART"])):
        for order in ("ragged", "grouped"):
            work = Work(SIZES[size], order, batches=3 if size == "small" else 2)
            few = engines if size == "small" or order == "grouped" else []
            cells[f"train {size}, {order}"] = partial(
                train.measure, work, [*few, "Dragoman, packed"], rounds, **settings
            )
    cells["train small, ragged, default allocator"] = partial(
        train.measure, Work(SIZES["small"], "ragged"), ["Dragoman, packed"], rounds, "default", **settings
    )
    for name, case in CASES.items():
        peers = PEERS if "small, greedy" in name else []
        cells[name] = partial(generate.measure, case, [*WRITERS, *peers], rounds, **settings)
    return cells


def varied(factors: list[float], rounds: int, settings: dict[str, Any]) -> Cells:
    """Lengths and sizes together. Nothing is made for these."""
    cells: Cells = {}
    for factor in factors:
        for order in ("ragged", "grouped"):
            work = Work(SIZES["small"].scaled(factor), order, batches=2, scale=factor)
            cells[f"train small, {order}, x {factor:g}"] = partial(
                train.measure, work, ["Dragoman, packed"], rounds, **settings
            )
        for name, case in {"small": SMALL, "base": BASE}.items():
            for batch in (1, 16):
                lengths = {"source": round(case.source * factor), "tokens": round(case.tokens * factor)}
                changed = generate.Case(*SIZES[name].scaled(factor), batch=batch, **lengths)
                engines = ["Dragoman", "Dragoman, int8"]
                cells[f"{name}, greedy, batch {batch}, x {factor:g}"] = partial(
                    generate.measure, changed, engines, rounds, **settings
                )
    return cells


def reached(result: dict[str, Any], bar: Bar) -> float:
    rows = result["engines"]
    if bar.column == "memory":  # how many times less than Marian
        return rows["Marian"]["peak"] / rows[bar.engine]["peak"]
    return rows[bar.engine]["ratio"]


def judge(found: dict[str, dict[str, Any]]) -> tuple[str, int]:
    """The bars as a table, and how many are missed or not measured."""
    lines = ["| cell | engine | | bar | reached | | aim |", "|:--|:--|:--|--:|--:|:--|--:|"]
    missed = 0
    for bar in BARS:
        value = reached(found[bar.cell], bar) if bar.engine in found.get(bar.cell, {"engines": {}})["engines"] else 0.0
        verdict = "yes" if value >= bar.bar else "NO" if value else "NOT MEASURED"
        missed += verdict != "yes"
        lines.append(
            f"| {bar.cell} | {bar.engine} | {bar.column} | {bar.bar:.2f} | {value:.2f} | {verdict} | {bar.aim:.2f} |"
        )
    return "\n".join(lines), missed


def show(name: str, result: dict[str, Any]) -> str:
    cells = [f"{engine} {cell_text(row)}" for engine, row in result["engines"].items() if engine != "Marian"]
    disturbed = max(row["foreign"] for row in result["engines"].values())
    lines = [f"{name} ({result.get('took', 0):.0f} s; others took {disturbed:.0%} of a core): {', '.join(cells)}"]
    return "\n".join(lines + [f"  {engine} is missing: it {message}" for engine, message in result["failed"].items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--vary", type=float, nargs="+", metavar="FACTOR", help="of lengths and sizes")
    what.add_argument("--growth", action="store_true")
    parser.add_argument("--resume", action="store_true", help="keep the cells that the file of results holds")
    parser.add_argument("--only", default="", help="cells whose name holds this")
    parser.add_argument("--rounds", type=int, help="5 of the table, else 3")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="one round, disturbed or not")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the files")
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds or (3 if options.vary or options.growth else 5)
    settings = {"threads": options.threads, "tries": 1 if options.quick else TRIES}
    if options.vary:
        kind, cells = "vary", varied(options.vary, rounds, settings)
    elif options.growth:
        kind, cells = "growth", growing(rounds, settings)
    else:
        kind, cells = "table", whole_table(rounds, settings)
    started = time.perf_counter()
    cells = {name: measure for name, measure in cells.items() if options.only in name}
    file = options.results / f"{kind}.json"
    kept = json.loads(file.read_text("utf-8")) if file.exists() and (options.resume or options.only) else {}
    if not options.resume:
        kept = {name: result for name, result in kept.items() if name not in cells}
    found, failures = run_cells(cells, file, kept, show)
    print(f"\n{time.perf_counter() - started:.0f} s, {len(failures)} cells failed: {', '.join(failures) or 'none'}\n")
    missed = 0
    if kind == "table":
        text, missed = judge(found)
        print(text)
    elif kind == "growth" and found:
        plot(found, IMAGE if options.results == RESULTS else options.results / IMAGE.name)
    raise SystemExit(len(failures) + missed)


if __name__ == "__main__":
    main()
