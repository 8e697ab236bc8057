"""Training speed beside in-tree Marian, BART and T5: target tokens a second of whole optimisation steps.

    python benchmarks/train.py
    python benchmarks/train.py --quick --sizes small

One process an engine, taking turns at the same batches of 64 pairs; medians over the rounds, with the least and the
most. "ragged" batches are drawn at random, "grouped" ones of pairs of like length. Dragoman has Marian's weights, and
nothing is printed if their losses differ; BART and T5 have the same dimensions. Everyone steps with PyTorch's fused
AdamW, in fp32, dropout 0.1, attention dropout 0.

glibc gives large blocks back to the system at every step, and padded logits then cost page faults: the allocator is
told not to, for all alike ("neutral"); --allocator default measures without. Linux only.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

import dragoman
from training_engines import CLOCKS, ENGINES, SAME_WEIGHTS, SIZES, draw_batches, fill_of

ROOT = Path(__file__).resolve().parent
KEEP = str(2**40)  # bytes: more than is ever freed
ALLOCATORS = {"neutral": {"MALLOC_MMAP_THRESHOLD_": KEEP, "MALLOC_TRIM_THRESHOLD_": KEEP}, "default": {}}
REFERENCE = "Marian"
LOSSES_AGREE = 1e-5


class Worker:
    """An engine in a process of its own."""

    def __init__(self, name: str, size: str, work: str, allocator: str, options: argparse.Namespace) -> None:
        self.name = name
        arguments = [name, size, work, str(options.batches), str(options.scale), str(options.threads), options.clock]
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "training_engines.py"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **ALLOCATORS[allocator]},
        )
        self.loss = self._read()[0]
        self.speeds: list[float] = []
        self.peak = 0.0

    def step(self, count: bool) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        seconds, tokens, self.peak = self._read()
        if count:
            self.speeds.append(tokens / seconds)

    def _read(self) -> list[float]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self.process.wait()}; its message stands above.")
        return [float(number) for number in line.split()]


@contextmanager
def working(size: str, work: str, allocator: str, options: argparse.Namespace) -> Iterator[list[Worker]]:
    workers: list[Worker] = []
    try:
        for name in options.engines:
            workers.append(Worker(name, size, work, allocator, options))
        yield workers
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.wait()


def measure(size: str, work: str, allocator: str, options: argparse.Namespace) -> dict[str, Any]:
    """Raises ValueError where engines with the same weights disagree on the loss."""
    with working(size, work, allocator, options) as workers:
        losses = {worker.name: worker.loss for worker in workers if worker.name in SAME_WEIGHTS}
        if max(losses.values()) - min(losses.values()) > LOSSES_AGREE * min(losses.values()):
            raise ValueError(
                f"Same weights, same batch, and other losses: {losses}. No speed of these is worth printing."
            )
        for i in range(options.batches + options.rounds):
            for worker in workers[:: 1 if i % 2 else -1]:
                worker.step(count=i >= options.batches)  # every batch's shapes are seen once beforehand
    found = {worker.name: {"speeds": worker.speeds, "peak": worker.peak, "loss": worker.loss} for worker in workers}
    fill = fill_of(draw_batches(work, options.batches, SIZES[size]["vocabulary"], options.scale))
    return {"size": size, "work": work, "fill": fill, "allocator": allocator, "engines": found}


def table(result: dict[str, Any]) -> str:
    """In Markdown: ratios to the reference are of medians; the range is that of the rounds' own ratios."""
    size, engines = SIZES[result["size"]], result["engines"]
    shape = (
        f"{size['layers']}+{size['layers']} layers, {size['hidden']}, {size['intermediate']}, V {size['vocabulary']:,}"
    )
    lines = [
        f"\n{result['size']} ({shape}), {result['work']} batches ({result['fill']:.0%} tokens), "
        f"allocator {result['allocator']}\n",
        f"| engine | target tokens/s | (least-most) | to {REFERENCE} | (least-most) | peak memory |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    reference = engines[REFERENCE]["speeds"]
    for name, engine in engines.items():
        speeds = engine["speeds"]
        ratios = [a / b for a, b in zip(speeds, reference, strict=True)]
        ratio = statistics.median(speeds) / statistics.median(reference)
        lines.append(
            f"| {name} | {statistics.median(speeds):,.0f} | {min(speeds):,.0f}-{max(speeds):,.0f} | {ratio:.2f} | "
            f"{min(ratios):.2f}-{max(ratios):.2f} | {engine['peak'] / 2**20:.2f} GiB |"
        )
    return "\n".join(lines)


def conditions(options: argparse.Namespace) -> dict[str, Any]:
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ": unknown")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{model.split(': ')[1]}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": f"{options.threads} ({options.clock} time)",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "dragoman": dragoman.__version__,
        "rounds": options.rounds,
        "batches": options.batches,
        "scale": options.scale,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--work", nargs="+", choices=("ragged", "grouped"), default=["ragged", "grouped"])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES), help="beside " + REFERENCE)
    parser.add_argument("--allocator", nargs="+", choices=ALLOCATORS, default=["neutral"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batches", type=int, default=3, help="that are taken in turn")
    parser.add_argument("--scale", type=float, default=1.0, help="stretches all lengths")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="three rounds of one batch")
    parser.add_argument("--output", type=Path, default=Path("train.json"))
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: of one thread, where others are at work")
    options = parser.parse_args()
    if options.clock == "cpu":
        options.threads = 1
    options.engines = [REFERENCE, *(name for name in options.engines if name != REFERENCE)]
    if options.quick:
        options.rounds, options.batches = 3, 1
    report: dict[str, Any] = {"conditions": conditions(options), "results": []}
    print(", ".join(f"{name} {value}" for name, value in report["conditions"].items()))
    for size in options.sizes:
        for work in options.work:
            for allocator in options.allocator:
                report["results"].append(measure(size, work, allocator, options))
                print(table(report["results"][-1]), flush=True)
                options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
