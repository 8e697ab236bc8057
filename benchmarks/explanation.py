"""Write docs/explanation.md from what benchmarks/attribution.py and benchmarks/alignment.py left in their results."""

import json
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE, TEMPLATE = ROOT / "docs" / "explanation.md", ROOT / "benchmarks" / "explanation.template.md"
POOLINGS = ("mean", "attention")


def planted(report: dict[str, Any]) -> str:
    """One row a method, one column a pooling: the mean over the models, and the worst of them."""
    rows = report["rows"]
    methods = [name for name in rows[0] if name not in ("pooling", "seed", "texts", "accuracy")]
    table = ["| ranked first | mean pooling | attention pooling |", "|:--|--:|--:|"]
    for method in methods:
        cells = []
        for pooling in POOLINGS:
            found = [row[method] for row in rows if row["pooling"] == pooling]
            cells.append(f"{mean(found):.1%} (worst {min(found):.1%})")
        table.append(f"| {method} | {' | '.join(cells)} |")
    said = f"{len(rows)} models, {rows[0]['texts']} texts each (attention_flow: a tenth of them), "
    return said + conditions(report) + "\n\n" + "\n".join(table)


def sst2(report: dict[str, Any]) -> str:
    table = ["| | comprehensiveness | sufficiency | sentences | ms a sentence |", "|:--|--:|--:|--:|--:|"]
    for method, row in sorted(report["methods"].items(), key=lambda item: -item[1]["comprehensiveness"][0]):
        cells = [f"{row[name][0]:.3f} ± {row[name][1]:.3f}" for name in ("comprehensiveness", "sufficiency")]
        time = f"{1000 * row['seconds']:.0f}" if "seconds" in row else ""
        table.append(f"| {method} | {' | '.join(cells)} | {row['sentences']} | {time} |")
    return f"accuracy {report['accuracy']:.1%}, " + conditions(report) + "\n\n" + "\n".join(table)


def alignment(report: dict[str, Any]) -> str:
    table = ["| attention | same letter | within one letter |", "|:--|--:|--:|"]
    for name, row in report["agreement"].items():
        if "head" not in name:
            table.append(f"| {name} | {row['same']:.1%} | {row['within one letter']:.1%} |")
    return f"{report['words']} words, " + conditions(report) + "\n\n" + "\n".join(table)


def conditions(report: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in report["conditions"].items()) + ":"


def render() -> str:
    text = TEMPLATE.read_text("utf-8")
    for name, write in (("attribution-planted", planted), ("attribution-sst2", sst2), ("alignment", alignment)):
        report = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
        text = text.replace(f"{{{name.split('-')[-1]}}}", write(report))
    return text


if __name__ == "__main__":
    PAGE.write_text(render(), "utf-8")
