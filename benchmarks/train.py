"""Training speed beside in-tree Marian, BART, T5 and T5Gemma, nn.Transformer and x-transformers.

    python benchmarks/train.py
    python benchmarks/train.py --quick --sizes small

Target tokens a second of whole optimisation steps. One process an engine, taking turns at the same batches of 64
pairs; medians over the rounds, with the least and the most. "ragged" batches are drawn at random, "grouped" ones of
pairs of like length. Dragoman has Marian's weights, and nothing is printed if their losses differ; the others have the
same dimensions. Everyone steps with PyTorch's fused AdamW, dropout 0.1, attention dropout 0, in fp32 or, with --dtype
bf16, under autocast.

glibc gives large blocks back to the system at every step, and padded logits then cost page faults: the allocator is
told not to, for all alike ("neutral"); --allocator default measures without. Linux only.
"""

import argparse
import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch

from peer_models import SIZES
from training_engines import ENGINES, SAME_WEIGHTS, Work, draw_batches, fill_of
from turns import TRIES, compare, conditions, run_cells, take_turns, working

KEEP = str(2**40)  # bytes: more than is ever freed
ALLOCATORS = {"neutral": {"MALLOC_MMAP_THRESHOLD_": KEEP, "MALLOC_TRIM_THRESHOLD_": KEEP}, "default": {}}
REFERENCE = "Marian"
LOSSES_AGREE = {"fp32": 1e-5, "bf16": 1e-3}


def measure(
    work: Work,
    engines: list[str],
    rounds: int,
    allocator: str = "neutral",
    threads: int = 2,
    device: str = "cpu",
    tries: int = TRIES,
    dtype: str = "fp32",
) -> dict[str, Any]:
    """Raises ValueError where engines with the same weights disagree on the loss."""
    arguments = {name: [name, json.dumps(work), str(threads), device, dtype] for name in [REFERENCE, *engines]}
    with working("training_engines.py", arguments, threads, ALLOCATORS[allocator]) as (workers, failed):
        losses = {name: worker.first["loss"] for name, worker in workers.items()}
        check({name: losses[name] for name in SAME_WEIGHTS if name in losses}, dtype)
        batches = [str(i % work.batches) for i in range(work.batches + rounds)]  # every batch's shapes are seen before
        answers = take_turns(workers, batches, work.batches, tries)
    rows = compare(answers, REFERENCE)
    for name, found in answers.items():
        rows[name]["tokens_per_second"] = statistics.median(a["tokens"] / a["seconds"] for a in found)
        rows[name] |= {"peak": found[-1]["peak"], "loss": losses[name]}
    about = conditions(threads, rounds) | {"batches": work.batches, "allocator": allocator, "device": device}
    sizes = {"sizes": str(work.sizes), "order": work.order, "scale": work.scale, "fill": fill_of(draw_batches(work))}
    return {"conditions": about, **sizes, "engines": rows, "failed": failed}


def check(losses: dict[str, float], dtype: str = "fp32") -> None:
    if max(losses.values()) - min(losses.values()) > LOSSES_AGREE[dtype] * min(losses.values()):
        raise ValueError(f"Same weights, same batch, and other losses: {losses}. No speed of these is worth printing.")


def table(name: str, result: dict[str, Any]) -> str:
    """In Markdown."""
    lines = [
        f"{name}: {result['sizes']}, {result['fill']:.0%} of the padded batch is tokens, allocator "
        f"{result['conditions']['allocator']}\n",
        f"| engine | target tokens/s | to {REFERENCE} | (least-most) | peak memory |",
        "|---|--:|--:|--:|--:|",
    ]
    for engine, row in result["engines"].items():
        lines.append(
            f"| {engine} | {row['tokens_per_second']:,.0f} | {row['ratio']:.2f} | "
            f"{row['lowest']:.2f}-{row['highest']:.2f} | {row['peak'] / 2**30:.2f} GiB |"
        )
    lines += [f"\n{engine} is missing: it {message}" for engine, message in result["failed"].items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers = [name for name in ENGINES if name != REFERENCE]
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--work", nargs="+", choices=("ragged", "grouped"), default=["ragged", "grouped"])
    parser.add_argument("--engines", nargs="+", choices=peers, default=peers, help="beside " + REFERENCE)
    parser.add_argument("--allocator", nargs="+", choices=ALLOCATORS, default=["neutral"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=LOSSES_AGREE, default="fp32")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--batches", type=int, default=3, help="that are taken in turn")
    parser.add_argument("--scale", type=float, default=1.0, help="stretches all lengths")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="three rounds of one batch, undisturbed or not")
    parser.add_argument("--output", type=Path, default=Path("train.json"))
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.batches = 3, 1
    settings = {"threads": options.threads, "device": options.device, "dtype": options.dtype}
    settings["tries"] = 1 if options.quick else TRIES
    cells = {}
    for size in options.sizes:
        for order in options.work:
            for allocator in options.allocator:
                work = Work(SIZES[size], order, options.batches, options.scale)
                name = f"train {size}, {order}, {allocator}, {options.dtype}"
                cells[name] = partial(measure, work, options.engines, options.rounds, allocator, **settings)
    _, failures = run_cells(cells, options.output, {}, lambda name, result: "\n" + table(name, result))
    raise SystemExit(len(failures))


if __name__ == "__main__":
    main()
