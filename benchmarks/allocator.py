"""What it is worth to have glibc keep freed memory, for a training step on the CPU.

    python benchmarks/allocator.py

Steps of Dragoman, packed, on ragged batches, in two processes that take turns, one with MALLOC_MMAP_THRESHOLD_ and
MALLOC_TRIM_THRESHOLD_ set; medians over the rounds, with the least and the most. Linux with glibc only.
"""

import argparse
import json
from contextlib import ExitStack

import torch

from peer_models import SIZES
from train import ALLOCATORS
from training_engines import Work
from turns import TRIES, cell_text, compare, conditions, take_turns, working

ENGINE = "Dragoman, packed"


def speed_up(work: Work, dtype: str, rounds: int, threads: int, tries: int) -> dict[str, float]:
    """Of the process whose memory is kept, over the one with glibc's defaults."""
    with ExitStack() as stack:
        workers = {}
        for name in ("default", "neutral"):
            arguments = {name: [ENGINE, json.dumps(work), str(threads), "cpu", dtype]}
            found, _ = stack.enter_context(working("training_engines.py", arguments, threads, ALLOCATORS[name]))
            workers |= found
        batches = [str(i % work.batches) for i in range(work.batches + rounds)]
        return compare(take_turns(workers, batches, work.batches, tries), "default")["neutral"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--dtypes", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="two rounds of one batch, undisturbed or not")
    options = parser.parse_args()
    rounds, batches, tries = (2, 1, 1) if options.quick else (options.rounds, 3, TRIES)
    print(", ".join(f"{name} {value}" for name, value in conditions(options.threads, rounds).items()))
    print("\n| size | dtype | times as fast |\n|---|---|--:|")
    for size in options.sizes:
        for dtype in options.dtypes:
            row = speed_up(Work(SIZES[size], "ragged", batches), dtype, rounds, options.threads, tries)
            print(f"| {size} | {dtype} | {cell_text(row)} |", flush=True)


if __name__ == "__main__":
    main()
