"""Writes docs/road_to_attention.md and its pictures from measured files: the page's every figure is one of theirs."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from recall_tasks import SYMBOLS
from road_measurements import RATES, TUNING_SHARE, WARMUP
from road_models import MODELS, NAMES, TOLERANCE
from road_pictures import draw_accuracy, draw_alignments, draw_depth, draw_heads, draw_speed
from road_verdicts import (
    FASTER,
    HIGHER,
    MARGIN,
    NEEDED,
    RIGHT,
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

Results = dict[str, Any]  # runs, speeds, heads
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
    """Sizes, the learning rate that tuning chose, and the first seed's run, by task and model."""
    rows = [("task", "model", "hidden size", "parameters", "learning rate", "minutes", "steps")]
    for record in records:
        if record["seed"] == records[0]["seed"]:
            sizes = (str(record["hidden_size"]), f"{record['parameters']:,}", f"{record['rate']:g}")
            spent = f"{record['minutes']:g}", f"{record['steps']:,}"
            rows.append((record["task"], NAMES[record["model"]], *sizes, *spent))
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


def gather_results(runs: Iterable[Path], speeds: Iterable[Path], heads: Path) -> Results:
    """What the page is written from, small enough to lie beside it: the records without their curves of losses.

    Raises:
        ValueError: where runs of one task were of different lengths.
    """
    read = [json.loads(path.read_text("utf-8")) for path in runs]
    for task in {record["task"] for record in read}:
        minutes = {record["minutes"] for record in read if record["task"] == task}
        if len(minutes) > 1:
            told = ", ".join(f"{m:g}" for m in sorted(minutes))
            raise ValueError(f"The runs of {task} were of different lengths: {told} minutes.")
    return {
        "runs": [{name: value for name, value in record.items() if name not in ("losses", "asked")} for record in read],
        "speeds": [json.loads(path.read_text("utf-8")) for path in speeds],
        "heads": json.loads(heads.read_text("utf-8")),
    }


def write_page(results: Results, depth: dict[str, dict[str, list[float]]]) -> str:
    """The page in Markdown; a pure function of what was measured."""
    records, speeds, removal = results["runs"], results["speeds"], results["heads"]
    everything = gather(records)
    curves = {task: {m: curve for m, curve in of.items() if m in MODELS} for task, of in everything.items()}
    claims = [
        *claims_of_tasks(curves),
        *claims_of_speed(speeds),
        *claims_of_heads(records, removal),
        *claims_of_depth(depth),
    ]
    return TEMPLATE.read_text("utf-8").format(
        verdicts=verdict_table(claims),
        accuracy=accuracy_tables(everything, {record["task"]: record for record in records}),
        parameters=parameter_table(records),
        speeds=speed_table(speeds),
        conditions=stated_conditions([*records, *speeds, removal]),
        seeds=len({record["seed"] for record in records}),
        rates=", ".join(f"{rate:g}" for rate in RATES),
        share=f"{100 * TUNING_SHARE:g} %",
        warmup=f"{100 * WARMUP:g} %",
        tolerance=f"{100 * TOLERANCE:g} %",
        batch=f"{speeds[0]['batch']:,}",
        **{"margin": f"{MARGIN:g}", "faster": FASTER, "higher": f"{HIGHER:g}", "needed": f"{NEEDED:g}"},
        right=f"{RIGHT:g} %",
        **{"symbols": SYMBOLS, "word": ASKED},
    )


def write_report(results: Results, models: dict[str, Any], tokenizer: Any, stability: Path, docs: Path) -> None:
    """Page, pictures and results go to ``docs``; ``stability`` is the file of losses at depth."""
    depth, images = read_depth(stability), docs / "images"
    page = write_page(results, depth)  # which refuses what cannot be compared, before anything is drawn
    told = {record["task"]: record for record in results["runs"]}
    draw_accuracy(gather(results["runs"]), told, images / "road_accuracy.png")
    draw_speed(results["speeds"], images / "road_speed.png")
    draw_alignments(PICTURED, models, tokenizer, images / "road_alignments.png")
    draw_heads(ASKED, models["transformer"], tokenizer, results["heads"], images / "road_heads.png")
    draw_depth(depth, 4, images / "road_depth.png")
    (docs / "road_to_attention.json").write_text(json.dumps(results, indent=0) + "\n", "utf-8")
    (docs / "road_to_attention.md").write_text(page, "utf-8")
