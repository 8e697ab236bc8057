"""Do deep stacks train, and what are the residual, the norm and the initialisation for?

    python benchmarks/stability.py

48+48 pre-norm and 24+24 post-norm layers learn to copy short random rows: as they are, and with one thing taken away.
Writes ``docs/stability.md``, its picture and its losses; fails where a stack as it is does not learn. One thread a run.
"""

import csv
import math
import os
import platform
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from multiprocessing import get_context
from pathlib import Path

import matplotlib
import torch
import transformers
from transformers import HfArgumentParser

from copy_task import BLIND, LENGTHS, exact_match, sequences
from deep_stacks import BATCH, LEARNING_RATE, STACKS, VARIANTS, WARMUP, WIDTH, Placement, deep, train

matplotlib.use("Agg")
from matplotlib import pyplot as plt

VERDICTS = ("learned", "learned in part", "did not learn", "diverged")
REPORT = """# Do deep stacks train?

48+48 pre-norm layers and 24+24 post-norm layers learn to copy random rows. What residuals, norms and the scaling of the
first weights have to do with it, the same stacks show with one of them taken away. Written by its script:

```bash
python benchmarks/stability.py
```

![Loss against step, one panel a stack, one curve a variant](images/stability.png)

{outcomes}

| stack | variant | first loss | loss at the end | highest in the second half | rows copied exactly | |
|---|---|---|---|---|---|---|
{rows}

Losses are in nats a token; the one at the end is the mean of the last 20 steps. {blind:.2f} is what a model reaches
that knows how rows are made and never looks at the source: the dotted line. *Learned*: at least 99 % of 500 new rows
copied exactly, greedily. *Did not learn*: ended within 5 % of the dotted line, or above it. *Diverged*: ended above its
first loss, or in a loss that is not finite. [Every {every}th loss](stability.csv).

## What was run

The preset `transformer_base` (LayerNorm, ReLU, sinusoids, tied vectors) with norms where the stack says:
{sizes}.
AdamW at {rate}, {warmup} steps of warm-up, then linearly to 0 at step {steps}; {batch} rows a step; fp32, no dropout,
and nothing that clips a gradient. All runs share seed, data and schedule; one run each.

- *As it is*: nothing changed. Branch outputs begin with deviation 1/√(fan_in · branches)
  ([the table](../modeling/initialization.py)).
- *No residual*: every `x +` is gone.
- *No norm*: every norm is gone, the final ones too.
- *No depth scaling*: branch outputs begin with deviation 1/√fan_in, the same draws.
- *Neither norm nor depth scaling*: both of these.

{versions}.
"""


@dataclass
class Run:
    layers: int
    placement: Placement
    variant: str
    steps: int
    losses: list[float] = field(default_factory=list)
    exact: float = 0.0

    @property
    def stack(self) -> str:
        return f"{self.layers}+{self.layers} {self.placement}-norm"

    @property
    def end(self) -> float:
        return sum(self.losses[-20:]) / len(self.losses[-20:])

    @property
    def verdict(self) -> str:
        if not math.isfinite(self.losses[-1]) or self.end > self.losses[0]:
            return "diverged"
        if self.exact >= 0.99:
            return "learned"
        return "did not learn" if self.end > 0.95 * BLIND else "learned in part"


def run(task: Run) -> Run:
    """In a process of its own: build, take away, train, and copy 500 new rows."""
    torch.set_num_threads(1)
    model = deep(task.layers, task.placement)
    VARIANTS[task.variant](model)
    task.losses = train(model, task.steps)
    ids, _ = sequences(500, torch.Generator().manual_seed(2))
    task.exact = exact_match(model, ids, ids)
    return task


@dataclass
class Arguments:
    steps: int = field(default=400, metadata={"help": "Steps of training, for every run."})
    every: int = field(default=4, metadata={"help": "Of how many steps one loss is kept."})
    processes: int = field(default=os.cpu_count() or 1, metadata={"help": "Runs at a time."})
    output_dir: Path = field(default=Path("docs"), metadata={"help": "Where report, picture and losses go."})


def main() -> None:
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    tasks = [Run(*stack, variant, arguments.steps) for stack in STACKS for variant in VARIANTS]
    runs = []
    with ProcessPoolExecutor(arguments.processes, get_context("spawn")) as pool:
        for done in pool.map(run, tasks):
            print(
                f"{done.stack}, {done.variant}: {done.verdict}: loss {done.end:.3g}, {done.exact:.1%} exact", flush=True
            )
            runs.append(done)
    images = arguments.output_dir / "images"
    images.mkdir(parents=True, exist_ok=True)
    write_losses(runs, arguments.every, arguments.output_dir / "stability.csv")
    draw(runs, arguments.every, images / "stability.png")
    (arguments.output_dir / "stability.md").write_text(report(runs, arguments), "utf-8")
    if any(r.verdict != "learned" for r in runs if r.variant == "as it is"):
        raise SystemExit("A stack as it is did not learn.")


def write_losses(runs: list[Run], every: int, path: Path) -> None:
    """One column a run; a run that ended early leaves the rest of it empty."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["step", *(f"{r.stack}, {r.variant}" for r in runs)])
        for step in range(0, max(len(r.losses) for r in runs), every):
            table.writerow([step, *(f"{r.losses[step]:.4g}" if step < len(r.losses) else "" for r in runs)])


def draw(runs: list[Run], every: int, path: Path) -> None:
    figure, panels = plt.subplots(1, len(STACKS), figsize=(11, 5), sharey=True, layout="constrained")
    for panel, (layers, placement) in zip(panels, STACKS, strict=True):
        shown = [r for r in runs if (r.layers, r.placement) == (layers, placement)]
        for r in shown:
            panel.plot(
                range(0, len(r.losses), every), r.losses[::every], label=f"{r.variant}: {r.verdict}", linewidth=1.2
            )
        panel.axhline(BLIND, color="grey", linestyle=":", label="best without the source")
        panel.set(yscale="log", ylim=(3e-4, 10), xlabel="step", title=shown[0].stack)  # what diverges leaves above
        panel.grid(alpha=0.3)
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, fontsize="small")
    panels[0].set_ylabel("loss (nats a token)")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def report(runs: list[Run], arguments: Arguments) -> str:
    rows = "\n".join(
        f"| {r.stack} | {r.variant} | {r.losses[0]:.3g} | {r.end:.3g} | {max(r.losses[len(r.losses) // 2 :]):.3g} "
        f"| {r.exact:.1%} | {r.verdict} |"
        for r in runs
    )
    outcomes = "\n".join(
        f"- **{verdict.capitalize()}**: {'; '.join(f'{r.stack}, {r.variant}' for r in runs if r.verdict == verdict)}."
        for verdict in sorted({r.verdict for r in runs}, key=VERDICTS.index)
    )
    sizes = f"width {WIDTH}, 4 heads, feed-forward {2 * WIDTH}, {LENGTHS.start} to {LENGTHS.stop - 1} tokens a row"
    versions = (
        f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()} CPU, one thread"
    )
    return REPORT.format(
        rows=rows,
        outcomes=outcomes,
        sizes=sizes,
        steps=arguments.steps,
        every=arguments.every,
        versions=f"{versions}, {date.today().isoformat()}",
        **{"batch": BATCH, "rate": LEARNING_RATE, "warmup": WARMUP, "blind": BLIND},
    )


if __name__ == "__main__":
    main()
