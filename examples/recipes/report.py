"""Write the tables in README.md, from the results*.json and the ablation_results.json of the recipes.

python examples/recipes/report.py
"""

import json
import statistics
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE / "README.md"
BEGIN, END = "<!-- {}: written by report.py -->\n", "<!-- end of {} -->"
NAMES = {"wer": "WER", "per": "PER", "cer": "CER", "bleu": "BLEU"}


def row(result: dict[str, Any], file: str) -> str:
    scores, together = [], []
    for metric in result["scores"]:
        scores.append(f"{NAMES[metric]} {with_spread([seed[metric] for seed in result['seeds']])}")
        if "ensemble" in result:
            together.append(f"{NAMES[metric]} {result['ensemble'][metric]:.2f}")
    first = result["seeds"][0]
    sittings = any(seed.get("resumed") for seed in result["seeds"])
    how_long = "in several sittings" if sittings else f"{result['longest_training'] / 60:.1f} minutes"
    trained = f"{first['epochs']:.0f} epochs, {how_long}"
    cells = (
        f"[{result['recipe']}]({file})",
        str(len(result["seeds"])),
        ", ".join(scores),
        ", ".join(together) or "-",
        f"{first['parameters']:,}",
        f"{trained}; {result['hardware']}",
        result["date"],
    )
    return "| " + " | ".join(cells) + " |"


def render() -> str:
    files = sorted(HERE.glob("*/results*.json"))  # of other hardware, too
    rows = [row(json.loads(file.read_text("utf-8")), file.relative_to(HERE).as_posix()) for file in files]
    head = "| recipe | seeds | mean (least to most) | their ensemble | parameters | training of one seed | date |"
    return "\n".join([head, "|---|--:|---|---|--:|---|---|", *rows]) + "\n"


def ablation(result: dict[str, Any]) -> str:
    """A row a change: the score, and by how much it differs from the recipe's with the same seed."""
    metric, rows = result["metric"], {row: found for row, found in result["rows"].items() if found}
    reference = next(iter(rows.values()))
    name, where = NAMES[metric], f"{result['hardware']}, {result['date']}"
    arguments, every = " ".join(map(str, result["all"])), result.get("every", 1)
    sample = f", one in {every} of its training lines," if every > 1 else ""
    lines = [
        f"**{result['recipe']}**{sample} with `{arguments}`, {len(reference)} seeds, {where}:\n",
        f"| | {name} | change of {name}, seed by seed |\n|---|---|---|",
    ]
    for row, found in rows.items():
        changes = [found[seed][metric] - reference[seed][metric] for seed in found]
        change = "" if found is reference else with_spread(changes, "+.2f")
        lines.append(f"| {row} | {with_spread([each[metric] for each in found.values()])} | {change} |")
    return "\n".join(lines) + "\n"


def classification() -> str:
    """A row a file that sentiment.py wrote: each set of texts, then the same with other arguments."""
    lines = [
        "| texts | to learn from, to measure on | accuracy | macro F1 | minutes of processor a seed | date |",
        "|---|---|---|---|--:|---|",
    ]
    for path in sorted((HERE / "sentiment").glob("*.json"), key=lambda path: path.stem):
        result = json.loads(path.read_text("utf-8"))
        unlike = ", ".join(f"{name} {value}" for name, value in result["unlike"].items())
        name = f"{path.stem.partition('-')[0]}{f', {unlike}' if unlike else ''}"
        seeds = result["seeds"]
        scores = [with_spread([seed[metric] for seed in seeds]) for metric in ("accuracy", "macro_f1")]
        minutes = statistics.mean(seed["processor_seconds"] for seed in seeds) / 60
        counts = "{:,}, {:,}".format(*result["texts"])
        lines.append(f"| {name} | {counts} | {' | '.join(scores)} | {minutes:.1f} | {result['date']} |")
    return "\n".join(lines) + "\n"


def with_spread(values: list[float], form: str = ".2f") -> str:
    spread = f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{spread}"


def render_ablations() -> str:
    return "\n".join(
        ablation(json.loads(path.read_text("utf-8"))) for path in sorted(HERE.glob("*/ablation_results.json"))
    )


def rendered_page() -> str:
    page = PAGE.read_text("utf-8")
    for name, text in (("results", render()), ("ablations", render_ablations()), ("sentiment", classification())):
        begin, end = BEGIN.format(name), END.format(name)
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}{text}{end}{rest.partition(end)[2]}"
    return page


if __name__ == "__main__":
    PAGE.write_text(rendered_page(), "utf-8")
