"""Memory and speed of the training loss, against the plain one: ``cross_entropy(linear(states), labels)``.

    python benchmarks/training_loss.py

One forward and backward of head and loss alone. Memory: what the process's peak grows by, a process each. Speed: both
in one process, in turn, medians. Prints tables in Markdown. Linux only.
"""

import argparse
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from dragoman.modeling.loss import head_cross_entropy, token_cross_entropy
from torch import Tensor, nn

TOKENS, HIDDEN = 4096, 256


def plain(states: Tensor, head: nn.Linear, labels: Tensor) -> Tensor:
    return token_cross_entropy(head(states), labels)


LOSSES: dict[str, Callable[[Tensor, nn.Linear, Tensor], Tensor]] = {"plain": plain, "chunked": head_cross_entropy}


def case(vocabulary: int) -> tuple[Tensor, nn.Linear, Tensor]:
    torch.manual_seed(0)
    states = torch.randn(1, TOKENS, HIDDEN, requires_grad=True)
    return states, nn.Linear(HIDDEN, vocabulary, bias=False), torch.randint(0, vocabulary, (1, TOKENS))


def step(name: str, states: Tensor, head: nn.Linear, labels: Tensor) -> float:
    states.grad = head.weight.grad = None
    started = time.perf_counter()
    LOSSES[name](states, head, labels).backward()
    return time.perf_counter() - started


def peak_growth(name: str, vocabulary: int) -> float:
    """MiB that one step adds to this process's peak; for a process of its own."""
    states, head, labels = case(vocabulary)
    step(name, states[:, :8].detach().requires_grad_(), nn.Linear(HIDDEN, 100, bias=False), labels[:, :8] % 100)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is resident now
    before = peak()
    step(name, states, head, labels)
    return peak() - before


def peak() -> float:
    """The process's peak of resident memory, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) / 1024  # type: ignore[union-attr]


def peak_growth_elsewhere(name: str, vocabulary: int) -> float:
    command = [sys.executable, __file__, "--peak_of", name, "--memory_at", str(vocabulary)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def speed_ratio(vocabulary: int, repeats: int) -> float:
    """How many times as fast as the plain loss the chunked one is."""
    arguments = case(vocabulary)
    times: dict[str, list[float]] = {name: [] for name in LOSSES}
    for _ in range(repeats + 1):
        for name, measured in times.items():
            measured.append(step(name, *arguments))
    medians = {name: statistics.median(measured[1:]) for name, measured in times.items()}  # the first one warms up
    return medians["plain"] / medians["chunked"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory_at", type=int, nargs="*", default=[32_000, 64_000, 256_000], metavar="VOCABULARY")
    parser.add_argument("--speed_at", type=int, nargs="*", default=[8_000, 32_000], metavar="VOCABULARY")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--peak_of", choices=LOSSES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        print(peak_growth(options.peak_of, options.memory_at[0]))
        return
    print(f"{TOKENS} target tokens, hidden size {HIDDEN}, fp32, {torch.get_num_threads()} threads, ", end="")
    print(f"torch {torch.__version__}\n")
    print("| vocabulary | plain, MiB | chunked, MiB | memory |\n|--:|--:|--:|--:|")
    for vocabulary in options.memory_at:
        peaks = {name: peak_growth_elsewhere(name, vocabulary) for name in LOSSES}
        share = peaks["chunked"] / peaks["plain"]
        print(f"| {vocabulary:,} | {peaks['plain']:,.0f} | {peaks['chunked']:,.0f} | {share:.1%} |", flush=True)
    print("\n| vocabulary | speed |\n|--:|--:|")
    for vocabulary in options.speed_at:
        print(f"| {vocabulary:,} | {speed_ratio(vocabulary, options.repeats):.2f}x |", flush=True)


if __name__ == "__main__":
    main()
