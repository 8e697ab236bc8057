"""Write docs/performance.md from what the benchmarks of training and writing left in benchmarks/results.

python benchmarks/train.py --sizes small --output benchmarks/results/train-small.json
python benchmarks/train.py --sizes base --output benchmarks/results/train-base.json
python benchmarks/generate.py
python benchmarks/performance.py
"""

import json
from pathlib import Path
from typing import Any

from train import table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE, TEMPLATE = ROOT / "docs" / "performance.md", ROOT / "benchmarks" / "performance.template.md"


def training(reports: list[dict[str, Any]]) -> str:
    """A table for every size and kind of batches."""
    parts = []
    for report in reports:
        parts += [_said(report["conditions"]), *(table(result).strip() for result in report["results"])]
    return "\n\n".join(parts)


def writing(reports: list[dict[str, Any]]) -> str:
    """One row a case, one column an engine; a ratio is the median of the rounds' (lowest-highest)."""
    parts = []
    for report in reports:
        engines = [name for name in next(iter(report["results"].values())) if name != "marian"]
        lines = [f"| times as fast as Marian | {' | '.join(engines)} |", f"|:--|{'--:|' * len(engines)}"]
        for case, row in report["results"].items():
            cells = (f"{row[e]['ratio']:.2f} ({row[e]['lowest']:.2f}-{row[e]['highest']:.2f})" for e in engines)
            lines.append(f"| {case} | {' | '.join(cells)} |")
        parts += [_said(report["machine"] | {"rounds": report["rounds"]}), "\n".join(lines)]
    return "\n\n".join(parts)


def _said(conditions: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in conditions.items()) + ":"


def render() -> str:
    def read(pattern: str) -> list[dict[str, Any]]:
        return [json.loads(file.read_text("utf-8")) for file in sorted(RESULTS.glob(pattern))]

    text = TEMPLATE.read_text("utf-8")
    text = text.replace("{training}", training(read("train-*.json")))
    return text.replace("{writing}", writing(read("generate*.json")))


if __name__ == "__main__":
    PAGE.write_text(render(), "utf-8")
