"""Write docs/performance.md from what ``python benchmarks/table.py`` left in benchmarks/results."""

import json
import re
from pathlib import Path
from typing import Any

import accelerator
from train import table
from turns import RESULTS, cell_text

ROOT = Path(__file__).resolve().parent.parent
PAGE, TEMPLATE = ROOT / "docs" / "performance.md", ROOT / "benchmarks" / "performance.template.md"
Results = dict[str, dict[str, Any]]


def training(found: Results) -> str:
    """A table for every size and kind of batches."""
    cells = {name: result for name, result in found.items() if name.startswith("train")}
    return said(cells) + "\n\n" + "\n\n".join(table(name, result) for name, result in cells.items())


def writing(found: Results) -> str:
    """One row a case, one column an engine; a ratio is the median of the rounds' (lowest-highest)."""
    cells = {name: result for name, result in found.items() if not name.startswith("train")}
    return said(cells) + "\n\n" + ratios(cells)


def ratios(cells: Results) -> str:
    engines = list(dict.fromkeys(e for result in cells.values() for e in result["engines"] if e != "Marian"))
    lines = [f"| times as fast as Marian | {' | '.join(engines)} |", f"|:--|{'--:|' * len(engines)}"]
    for case, result in cells.items():
        texts = (cell_text(result["engines"][e]) if e in result["engines"] else "" for e in engines)
        lines.append(f"| {case} | {' | '.join(texts)} |")
    missing = {f"{e}, {name}: it {why}" for name, result in cells.items() for e, why in result["failed"].items()}
    return "\n".join([*lines, *(f"\nMissing: {text}." for text in sorted(missing))])


def on_a_gpu(found: dict[str, Any]) -> str:
    about = {name: value for name, value in found["conditions"].items() if isinstance(value, str)}
    cells = [accelerator.table(name, cell) for name, cell in found["cells"].items() if name != "flash attention"]
    return ", ".join(f"{name} {value}" for name, value in about.items()) + ":\n" + "\n".join(cells)


def said(cells: Results) -> str:
    """What was the same for all, once; where it differs, all that there was."""
    values: dict[str, list[str]] = {}
    for result in cells.values():
        for name, value in result["conditions"].items():
            if name != "allocator" and str(value) not in values.setdefault(name, []):
                values[name].append(str(value))
    return ", ".join(f"{name} {' or '.join(found)}" for name, found in values.items()) + ":"


def render() -> str:
    """Between ``<!-- if vary -->`` and ``<!-- end -->`` stands what is said only where that was measured."""
    text = TEMPLATE.read_text("utf-8")
    for kind in ("vary", "growth"):
        file = RESULTS / f"{kind}.json"
        text = re.sub(
            rf"<!-- if {kind} -->\n(.*?)<!-- end -->\n", r"\1" if file.exists() else "", text, flags=re.DOTALL
        )
        if file.exists():
            found: Results = json.loads(file.read_text("utf-8"))
            text = text.replace(f"{{{kind}}}", said(found) + "\n\n" + ratios(found))
    narrow = json.loads((RESULTS / "bf16.json").read_text("utf-8"))
    text = text.replace("{bf16}", training(narrow))
    gpu = json.loads((RESULTS / "accelerator.json").read_text("utf-8"))
    text = text.replace("{accelerator}", on_a_gpu(gpu))
    found = json.loads((RESULTS / "table.json").read_text("utf-8"))
    return text.replace("{training}", training(found)).replace("{writing}", writing(found))


if __name__ == "__main__":
    PAGE.write_text(render(), "utf-8")
