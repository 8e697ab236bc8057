"""Where a training step's time goes, operator by operator, padded and packed.

    python benchmarks/profile_step.py small "Dragoman, packed" "Dragoman, padded" Marian
    python benchmarks/profile_step.py small --optimizers

Time is what an operator spends itself, in forward and backward. Copies stand apart: those that a model causes without
need are the ones to look for.
"""

import argparse
import statistics
import time

import torch
from torch.profiler import ProfilerActivity, profile

from peer_models import SIZES
from training_engines import ENGINES, OPTIMIZERS, Engine, Work

KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear", "aten::addmm_"),
    "attention": ("_scaled_dot_product", "aten::_softmax", "flash_attention"),
    "norms": ("layer_norm", "rms_norm"),
    "dropout": ("bernoulli", "native_dropout"),
    "loss": ("log_softmax", "nll_loss", "aten::exp", "logsumexp"),
    "optimizer": ("adam",),
    "copies": ("aten::copy_", "aten::cat", "aten::clone", "aten::contiguous", "index_select", "aten::index"),
    "filling": ("aten::fill_", "aten::zero_", "aten::zeros", "masked_fill"),
}


def kind_of(operator: str) -> str:
    return next((kind for kind, names in KINDS.items() if any(name in operator for name in names)), "other")


def time_optimizers(size: str) -> None:
    """CPU time of one step: medians of five."""
    work = Work(SIZES[size], "ragged", batches=1)
    engines = {name: Engine("Dragoman, packed", work, optimizer=name) for name in OPTIMIZERS}
    for name, engine in engines.items():
        for parameter in engine.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        times = []
        for _ in range(6):
            started = time.process_time()
            engine.optimizer.step()
            times.append(time.process_time() - started)
        print(f"{name}: {statistics.median(times[1:]) * 1e3:.1f} ms ({min(times) * 1e3:.1f}-{max(times) * 1e3:.1f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("engines", nargs="*", default=["Dragoman, packed", "Dragoman, padded"], metavar="engine")
    parser.add_argument("--work", choices=("ragged", "grouped"), default="ragged")
    parser.add_argument("--operators", type=int, default=15, help="how many to list")
    parser.add_argument("--optimizers", action="store_true", help="time PyTorch's three AdamW instead")
    options = parser.parse_args()
    if options.optimizers:
        time_optimizers(options.size)
        return
    if unknown := set(options.engines) - set(ENGINES):
        parser.error(f"no engine {', '.join(unknown)}: there are {', '.join(ENGINES)}")
    for name in options.engines:
        engine = Engine(name, Work(SIZES[options.size], options.work, batches=2))
        for _ in range(3):
            seconds, tokens = engine.step(1)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            engine.step(1)
        events = sorted(profiled.key_averages(), key=lambda event: -event.self_cpu_time_total)
        total = sum(event.self_cpu_time_total for event in events)
        kinds = dict.fromkeys([*KINDS, "other"], 0.0)
        for event in events:
            kinds[kind_of(event.key)] += event.self_cpu_time_total
        print(
            f"\n{name}, {options.size}, {options.work}: {tokens} target tokens, {seconds * 1e3:.0f} ms unprofiled, ",
            end="",
        )
        print(f"{total / 1e3:.0f} ms profiled, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
        print("| kind | ms | share |\n|---|--:|--:|")
        for kind, spent in sorted(kinds.items(), key=lambda item: -item[1]):
            print(f"| {kind} | {spent / 1e3:.1f} | {spent / total:.1%} |")
        print("\n| operator | kind | ms | calls |\n|---|---|--:|--:|")
        for event in events[: options.operators]:
            print(
                f"| {event.key[:60]} | {kind_of(event.key)} | {event.self_cpu_time_total / 1e3:.1f} | {event.count} |"
            )


if __name__ == "__main__":
    main()
