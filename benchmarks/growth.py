"""How the cost of greedy writing grows with one dimension at a time, from the small model on: cases and picture."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter

import generate
from generate import SMALL

matplotlib.use("agg")
WAYS = {
    "source": (16, 128, 512, 2048),
    "batch": (1, 4, 16, 64, 128),
    "vocabulary": (8_000, 32_000, 96_000, 256_000),
    "layers": (2, 3, 6, 12, 24),
}
LABELS = {
    "source": "source length, tokens",
    "batch": "rows in the batch",
    "vocabulary": "vocabulary",
    "layers": "layers of each side",
}
TOKENS = 32
ENGINES = {  # colours of Okabe and Ito, and marks that do without colour
    "Marian": ("#000000", "o", "Marian (transformers)"),
    "CTranslate2": ("#E69F00", "s", "CTranslate2"),
    "Dragoman": ("#0072B2", "^", "Dragoman"),
}


def growing(rounds: int, settings: dict[str, Any]) -> dict[str, Callable[[], dict[str, Any]]]:
    cells: dict[str, Callable[[], dict[str, Any]]] = {}
    for field, values in WAYS.items():
        for value in values:
            case = SMALL._replace(**{field: value, "tokens": TOKENS})
            cells[f"{field} {value}"] = partial(generate.measure, case, ["Dragoman", "CTranslate2"], rounds, **settings)
    return cells


def short(number: float, _: object = None) -> str:
    return f"{number / 1000:g}k" if number >= 1000 and number % 1000 == 0 else f"{number:g}"


def plot(found: dict[str, dict[str, Any]], file: Path) -> None:
    """Tokens a second by dimension, both in powers; less work a token is higher."""
    figure, panels = plt.subplots(1, len(WAYS), figsize=(13, 3.8), layout="constrained")
    for panel, (field, label) in zip(panels, LABELS.items(), strict=True):
        for engine, (colour, mark, title) in ENGINES.items():
            points = [
                (value, 1e3 * result["case"]["batch"] / result["engines"][engine]["ms_per_token"])
                for value in WAYS[field]
                if engine in (result := found.get(f"{field} {value}", {"engines": {}}))["engines"]
            ]
            if points:
                panel.loglog(*zip(*points, strict=True), color=colour, marker=mark, label=title)
        panel.set_xlabel(label)
        panel.set_xticks(WAYS[field])
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_formatter(FuncFormatter(short))
            axis.set_minor_formatter(NullFormatter())
        panel.set_yticks([ten * n for ten in (10, 100, 1000, 10000) for n in (1, 3)])
        low, high = panel.dataLim.intervaly
        panel.set_ylim(low / 1.5, high * 1.5)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("target tokens a second, all rows")
    panels[0].legend(frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)
