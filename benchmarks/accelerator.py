"""Training and writing on one GPU beside transformers' Marian, BART and T5, in one process and about a minute.

    python benchmarks/accelerator.py
    python benchmarks/accelerator.py --device cpu --quick

Ratios are over Marian, whose weights Dragoman has; the others have the same dimensions. Training is in fp32 weights
under autocast to bfloat16, with fused AdamW, on ragged batches: medians over rounds in which all take their turn.
What fails says why and costs nothing else; the file is written after every cell; cells that the seconds do not reach
are named. Not for CPUs but to try the script: there the fast loops of ``generate()`` and benchmarks/table.py are.
"""

import argparse
import gc
import inspect
import json
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from dragoman.modeling import packed_attention
from transformers.utils import logging

from accelerator_cells import (
    QUICK,
    Plan,
    Result,
    compiled_training,
    flash_attention,
    reason,
    same_batch,
    static_cache,
    training,
    writing,
)
from turns import RESULTS


def cells_of(plan: Plan) -> dict[str, Callable[[], Result]]:
    cells: dict[str, Callable[[], Result]] = {
        "padded and packed": partial(same_batch, plan),
        "flash attention": partial(flash_attention, plan),
        "training": partial(training, plan),
    }
    for dtype, word in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")):
        for beams, how in ((1, "greedy"), (4, "beam 4")):
            for batch in plan.batches:
                cells[f"{how}, {word}, batch {batch}"] = partial(writing, plan, dtype, beams, batch)
    return cells | {
        "greedy, static cache": partial(static_cache, plan),
        "training, compiled": partial(compiled_training, plan),
    }


def text_of(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(name: str, result: Result) -> str:
    """In Markdown."""
    lines = [f"\n{name} ({result['took']:.1f} s)"]
    rows = result.get("engines", {})
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    if rows:
        lines += ["", f"| engine | {' | '.join(columns)} |", "|:--|" + "--:|" * len(columns)]
        lines += [f"| {e} | {' | '.join(text_of(row.get(c, '')) for c in columns)} |" for e, row in rows.items()]
        lines.append("")
    others = {key: value for key, value in result.items() if key not in ("engines", "failed", "took")}
    lines += [f"- {key}: {text_of(value)}" for key, value in others.items()]
    return "\n".join(lines + [f"- {e} FAILED: {message}" for e, message in result.get("failed", {}).items()])


def adapted(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """torch's attention for varying lengths as before torch 2.13, when it took other arguments."""
    known = inspect.signature(kernel).parameters

    def attend(*tensors: Any, window_size: tuple[int, int], **options: Any) -> Any:
        if "window_size" in known:
            options["window_size"] = window_size
        else:
            options["is_causal"] = window_size == (-1, 0)
        return kernel(*tensors, **{name: value for name, value in options.items() if name in known})

    return attend


def conditions(device: str) -> dict[str, Any]:
    about = {"date": date.today().isoformat(), "torch": torch.__version__, "transformers": transformers.__version__}
    if device == "cuda":
        about |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return about | {"varlen_attn takes": [*inspect.signature(packed_attention.varlen_attn).parameters]}


def run(cells: dict[str, Callable[[], Result]], about: Result, seconds: float, file: Path) -> int:
    """How many cells failed."""
    report: Result = {"conditions": about, "cells": {}, "not begun": list(cells)}
    started = time.perf_counter()
    for name, measure in cells.items():
        begun = time.perf_counter()
        if begun - started > seconds:
            break
        try:
            found = measure()
        except Exception as error:
            found = {"error": reason(error)}
        report["cells"][name] = found | {"took": time.perf_counter() - begun}
        report["not begun"].remove(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
        print(table(name, report["cells"][name]), flush=True)
        gc.collect()
        torch.cuda.empty_cache()  # does nothing without a GPU
    failed = [name for name, found in report["cells"].items() if "error" in found]
    print(f"\n{time.perf_counter() - started:.0f} s; failed: {', '.join(failed) or 'none'}; ", end="")
    print(f"not begun: {', '.join(report['not begun']) or 'none'}")
    return len(failed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether the script runs")
    parser.add_argument("--seconds", type=float, default=75, help="after which no further cell is begun")
    parser.add_argument("--only", default="", help="cells whose name holds this")
    parser.add_argument("--output", type=Path, default=RESULTS / "accelerator.json")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    plan = (QUICK if options.quick else Plan())._replace(device=options.device)
    about = conditions(options.device)
    if "enable_gqa" not in about["varlen_attn takes"]:
        packed_attention.varlen_attn = adapted(packed_attention.varlen_attn)
    cells = {name: measure for name, measure in cells_of(plan).items() if options.only in name}
    raise SystemExit(run(cells, about, options.seconds, options.output))


if __name__ == "__main__":
    main()
