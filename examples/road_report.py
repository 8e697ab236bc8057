"""Writes docs/road_to_attention.md and its pictures from measured files: the page's every figure is one of theirs."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from recall_tasks import DOUBLING, SYMBOLS
from road_measurements import RATES, TUNING_SHARE, WARMUP
from road_models import MODELS, NAMES, TOLERANCE
from road_pictures import draw_accuracy, draw_alignments, draw_depth, draw_heads, draw_speed
from road_verdicts import (
    FASTER,
    HIGHER,
    MARGIN,
    NEEDED,
    Claim,
    Curves,
    claims_of_depth,
    claims_of_heads,
    claims_of_speed,
    claims_of_tasks,
    gather,
    read_depth,
    spread,
)

TEMPLATE = Path(__file__).with_suffix(".template.md")
PICTURED = ("photography", "wrongdoing", "straightaway")  # all held out
ASKED = "character"  # held out, too


def markdown(rows: Iterable[Sequence[str]]) -> str:
    header, *body = [list(row) for row in rows]
    ruler = ["---"] * len(header)
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ruler, *body))


def verdict_table(claims: Sequence[Claim]) -> str:
    return markdown([("claim", "where", "number", "verdict"), *((*c[:3], f"**{c.verdict}**") for c in claims)])


def accuracy_tables(curves: Curves, told: dict[str, dict[str, Any]]) -> str:
    """One table a task: a column a model, a row a length."""
    parts = []
    for task, models in curves.items():
        lengths = sorted(next(iter(models.values())))
        rows = [[told[task]["unit"], *(NAMES[model] for model in models)]]
        rows += [[str(n), *(spread(curve[n]) for curve in models.values())] for n in lengths]
        parts.append(f"**{task}**: {told[task]['metric']}\n\n{markdown(rows)}")
    return "\n\n".join(parts)


def parameter_table(records: Sequence[dict[str, Any]]) -> str:
    """Sizes, and the learning rate that tuning chose, by task and model."""
    rows = [("task", "model", "hidden size", "parameters", "learning rate", "steps in a run")]
    for record in records:
        if record["seed"] == records[0]["seed"]:
            sizes = (str(record["hidden_size"]), f"{record['parameters']:,}", f"{record['rate']:g}")
            rows.append((record["task"], NAMES[record["model"]], *sizes, f"{record['steps']:,}"))
    return markdown(rows)


def speed_table(speeds: Sequence[dict[str, Any]]) -> str:
    rows = [["symbols in the source", *(NAMES[record["model"]] for record in speeds)]]
    by_length = zip(*(record["speeds"] for record in speeds), strict=True)
    rows += [[str(cells[0]["length"]), *(f"{c['tokens_per_second']:,.0f}" for c in cells)] for cells in by_length]
    return markdown(rows)


def stated_conditions(records: Sequence[dict[str, Any]]) -> str:
    """The versions, dates and machine that all records share; raises ValueError where they are not alike."""
    for name in ("torch", "transformers", "threads", "device"):
        found = {str(record[name]) for record in records}
        if len(found) > 1:
            raise ValueError(f"The results were measured with different {name}: {', '.join(sorted(found))}.")
    first, dates = records[0], sorted({record["date"] for record in records})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    threads = f"{first['threads']} thread{'s' if first['threads'] > 1 else ''}"
    versions = f"torch {first['torch']}, transformers {first['transformers']}"
    return f"{versions}, {first['device']}, {threads} a process; {when}"


def write_report(
    runs: Sequence[Path],
    speeds: Sequence[Path],
    heads: Path,
    models: dict[str, Any],
    tokenizer: Any,
    measured_docs: Path,
    docs: Path,
) -> None:
    """``measured_docs`` has stability.csv; page and pictures go to ``docs``."""
    records, speed_records = ([json.loads(path.read_text("utf-8")) for path in paths] for paths in (runs, speeds))
    removal = json.loads(heads.read_text("utf-8"))
    minutes = {record["minutes"] for record in records}
    if len(minutes) > 1:
        raise ValueError(f"The runs were of different lengths: {', '.join(f'{m:g}' for m in sorted(minutes))} minutes.")
    conditions = stated_conditions([*records, *speed_records, removal])
    everything = gather(records)
    curves = {task: {m: curve for m, curve in of.items() if m in MODELS} for task, of in everything.items()}
    told = {record["task"]: record for record in records}
    depth = read_depth(measured_docs / "stability.csv")
    images = docs / "images"
    draw_accuracy(everything, told, images / "road_accuracy.png")
    draw_speed(speed_records, images / "road_speed.png")
    draw_alignments(PICTURED, models, tokenizer, images / "road_alignments.png")
    draw_heads(ASKED, models["transformer"], tokenizer, removal, images / "road_heads.png")
    draw_depth(depth, 4, images / "road_depth.png")
    claims = [
        *claims_of_tasks(curves),
        *claims_of_speed(speed_records),
        *claims_of_heads(records, removal),
        *claims_of_depth(depth),
    ]
    page = TEMPLATE.read_text("utf-8").format(
        verdicts=verdict_table(claims),
        accuracy=accuracy_tables(everything, told),
        parameters=parameter_table(records),
        speeds=speed_table(speed_records),
        conditions=conditions,
        minutes=f"{minutes.pop():g}",
        seeds=len({record["seed"] for record in records}),
        rates=", ".join(f"{rate:g}" for rate in RATES),
        share=f"{100 * TUNING_SHARE:g} %",
        tolerance=f"{100 * TOLERANCE:g} %",
        batch=f"{speed_records[0]['batch']:,}",
        **{"margin": f"{MARGIN:g}", "faster": FASTER, "higher": f"{HIGHER:g}", "needed": f"{NEEDED:g}"},
        **{"symbols": SYMBOLS, "doubling": DOUBLING, "warmup": WARMUP, "word": ASKED},
    )
    (docs / "road_to_attention.md").write_text(page, "utf-8")
