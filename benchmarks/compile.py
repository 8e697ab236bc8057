"""What torch.compile does to a training step: eager and compiled steps in turn, on the same batches of 64 pairs.

    OMP_NUM_THREADS=1 python benchmarks/compile.py
    OMP_NUM_THREADS=1 python benchmarks/compile.py --work ragged --engine "Dragoman, packed"

Prints the seconds until every shape had been compiled, how many graphs that made, and the target tokens a second of
both, medians with the least and the most. Refuses where their losses differ.
"""

import argparse
import statistics
import time
from typing import Any

import torch
import transformers

from training_engines import ENGINES, SIZES, Engine

BATCHES = 6
LOSSES_AGREE = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--engine", choices=[name for name in ENGINES if "Dragoman" in name], default="Dragoman, padded"
    )
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--work", choices=("grouped", "ragged"), default="grouped")
    parser.add_argument("--rounds", type=int, default=3, help="each of all batches")
    options = parser.parse_args()

    engines = {name: Engine(options.engine, options.size, options.work, BATCHES) for name in ("eager", "compiled")}
    compiled: Any = engines["compiled"]
    compiled.model.compile(dynamic=True)
    losses = [engine.loss() for engine in engines.values()]
    if abs(losses[0] - losses[1]) > LOSSES_AGREE * losses[0]:
        raise SystemExit(f"The losses are {losses[0]:.6f} eager and {losses[1]:.6f} compiled.")
    torch._dynamo.utils.counters.clear()
    began = time.perf_counter()
    for _ in range(BATCHES):
        compiled.step()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    print(f"{options.engine}, {options.size}, {options.work}, {torch.get_num_threads()} threads,", end=" ")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    print(f"{graphs} graphs for {BATCHES} shapes, {time.perf_counter() - began:.0f} s")
    for _ in range(BATCHES):
        engines["eager"].step()

    speeds: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(options.rounds * BATCHES):
        for name, engine in engines.items():
            seconds, tokens = engine.step()
            speeds[name].append(tokens / seconds)
    for name, found in speeds.items():
        print(f"{name:9}{statistics.median(found):8.0f} tokens/s ({min(found):.0f} to {max(found):.0f})")
    ratios = [c / e for c, e in zip(speeds["compiled"], speeds["eager"], strict=True)]
    print(
        f"compiled is {statistics.median(ratios):.2f} times as fast as eager ({min(ratios):.2f} to {max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()
