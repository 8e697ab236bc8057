"""Memory and speed of the training loss, against the plain one: ``cross_entropy(linear(states), labels)``.

    python benchmarks/loss.py [--quick] [--device cuda]

One forward and backward of head and loss alone. Memory: what the peak grows by, of a process each, on CUDA of the
device. Speed: both in one process, in turn, medians. Prints tables in Markdown. Linux only.
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


def case(vocabulary: int, device: str) -> tuple[Tensor, nn.Linear, Tensor]:
    torch.manual_seed(0)
    states = torch.randn(1, TOKENS, HIDDEN, device=device, requires_grad=True)
    labels = torch.randint(0, vocabulary, (1, TOKENS), device=device)
    return states, nn.Linear(HIDDEN, vocabulary, bias=False, device=device), labels


def step(name: str, states: Tensor, head: nn.Linear, labels: Tensor) -> float:
    states.grad = head.weight.grad = None
    started = time.perf_counter()
    LOSSES[name](states, head, labels).backward()
    if states.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_growth(name: str, vocabulary: int, device: str = "cpu") -> float:
    """MiB that one step adds to this process's peak; for a process of its own."""
    states, head, labels = case(vocabulary, device)
    tiny = nn.Linear(HIDDEN, 100, bias=False, device=device)
    step(name, states[:, :8].detach().requires_grad_(), tiny, labels[:, :8] % 100)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        step(name, states, head, labels)
        return (torch.cuda.max_memory_allocated() - held) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is resident now
    before = peak()
    step(name, states, head, labels)
    return peak() - before


def peak() -> float:
    """The process's peak of resident memory, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) / 1024  # type: ignore[union-attr]


def peak_growth_elsewhere(name: str, vocabulary: int, device: str = "cpu") -> float:
    command = [sys.executable, __file__, "--peak_of", name, "--memory_at", str(vocabulary), "--device", device]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def speed_ratio(vocabulary: int, repeats: int, device: str) -> float:
    """How many times as fast as the plain loss the chunked one is."""
    arguments = case(vocabulary, device)
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
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="the smallest vocabulary of each, three repeats")
    parser.add_argument("--peak_of", choices=LOSSES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        print(peak_growth(options.peak_of, options.memory_at[0], options.device))
        return
    if options.quick:
        options.memory_at, options.speed_at, options.repeats = options.memory_at[:1], options.speed_at[:1], 3
    where = f"{torch.get_num_threads()} threads" if options.device == "cpu" else torch.cuda.get_device_name()
    print(f"{TOKENS} target tokens, hidden size {HIDDEN}, fp32, {where}, ", end="")
    print(f"torch {torch.__version__}\n")
    print("| vocabulary | plain, MiB | chunked, MiB | memory |\n|--:|--:|--:|--:|")
    for vocabulary in options.memory_at:
        peaks = {name: peak_growth_elsewhere(name, vocabulary, options.device) for name in LOSSES}
        share = peaks["chunked"] / peaks["plain"]
        print(f"| {vocabulary:,} | {peaks['plain']:,.0f} | {peaks['chunked']:,.0f} | {share:.1%} |", flush=True)
    print("\n| vocabulary | speed |\n|--:|--:|")
    for vocabulary in options.speed_at:
        print(f"| {vocabulary:,} | {speed_ratio(vocabulary, options.repeats, options.device):.2f}x |", flush=True)


if __name__ == "__main__":
    main()
