"""Write the table of results in README.md, from the results.json of every recipe.

python examples/recipes/report.py
"""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE / "README.md"
BEGIN, END = "<!-- results: written by report.py -->\n", "<!-- end of results -->"
NAMES = {"wer": "WER", "per": "PER", "cer": "CER", "bleu": "BLEU"}


def row(result: dict[str, Any]) -> str:
    scores, together = [], []
    for metric, found in result["scores"].items():
        spread = f" ({found['least']:.2f} to {found['most']:.2f})" if len(result["seeds"]) > 1 else ""
        scores.append(f"{NAMES[metric]} {found['mean']:.2f}{spread}")
        if "ensemble" in result:
            together.append(f"{NAMES[metric]} {result['ensemble'][metric]:.2f}")
    first = result["seeds"][0]
    trained = f"{first['epochs']:.0f} epochs, {result['longest_training'] / 60:.1f} minutes"
    cells = (
        f"[{result['recipe']}]({result['recipe']}/results.json)",
        str(len(result["seeds"])),
        ", ".join(scores),
        ", ".join(together) or "-",
        f"{first['parameters']:,}",
        f"{trained}; {result['hardware']}",
        result["date"],
    )
    return "| " + " | ".join(cells) + " |"


def render() -> str:
    results = [json.loads(path.read_text("utf-8")) for path in sorted(HERE.glob("*/results.json"))]
    head = "| recipe | seeds | mean (least to most) | their ensemble | parameters | training of one seed | date |"
    return "\n".join([head, "|---|--:|---|---|--:|---|---|", *map(row, results)]) + "\n"


def rendered_page() -> str:
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    return f"{before}{BEGIN}{render()}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(rendered_page(), "utf-8")
