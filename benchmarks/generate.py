"""How fast ``generate()`` is, beside Marian, BART and T5 of transformers and beside CTranslate2.

    python benchmarks/generate.py [--quick] [--vary] [--growth]

Every engine has a process of its own; in every round all run once, forwards and backwards in turn. Ratios are over
Marian, medians, with the lowest and the highest round. Engines with the same weights must write the same tokens, but
after a choice between two as good as equal, and rows that neither repeat themselves nor each other; otherwise there is
no result. Writes ``benchmarks/results/generate.json`` and ``generate.png``. Linux only.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt

from generation_engines import ENGINES, SAME_WEIGHTS, Case, scores_of

matplotlib.use("agg")
RESULTS = Path(__file__).parent / "results"
SMALL, BASE = Case(3, 256, 1024, 4, 8000), Case(6, 512, 2048, 8, 32000)
CASES = {
    "small, greedy, batch 1": SMALL,
    "base, greedy, batch 1": BASE,
    "small, greedy, batch 16": SMALL._replace(batch=16),
    "base, greedy, batch 16": BASE._replace(batch=16),
    "small, beam 4, batch 1": SMALL._replace(beams=4),
    "small, beam 4, batch 8": SMALL._replace(beams=4, batch=8),
    "base, beam 4, batch 1": BASE._replace(beams=4),
}
TIE = 1e-3  # log-probabilities: closer than that, engines may choose differently
FOREIGN = 0.08  # of a core: more that others take, and a round is run again


class Worker:
    """One engine in its process."""

    def __init__(self, name: str, case: Case, threads: int) -> None:
        command = [
            sys.executable,
            str(Path(__file__).with_name("generation_engines.py")),
            name,
            json.dumps(case),
            str(threads),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.ids: list[list[int]] = self._answer()["ids"]

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended without an answer")
        return json.loads(line)

    def seconds(self, tries: int = 4) -> float:
        """One run, of several the one that other processes disturbed least."""
        runs = []
        for _ in range(tries):
            before, started = busy(), time.perf_counter()
            assert self.process.stdin is not None
            print("run", file=self.process.stdin, flush=True)
            answer = self._answer()
            assert answer["same"], "an engine gave other tokens than before"
            elapsed = time.perf_counter() - started
            foreign = (busy() - before - answer["cpu"]) / max(elapsed, 0.05)
            runs.append((foreign, answer["seconds"]))
            if foreign <= FOREIGN:
                break
        return min(runs)[1]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def busy() -> float:
    """Seconds of CPU that all processes have used so far."""
    user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:8])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def check(case: Case, ids: dict[str, list[list[int]]]) -> None:
    """Raises ValueError where engines of the same weights disagree, or an output is too simple to compare."""
    for name, rows in ids.items():
        if any(len(row) != case.tokens or len(set(row)) < len(row) / 2 for row in rows):
            raise ValueError(f"{name} repeats itself or ended early: {rows[0]}")
        if len(set(map(tuple, rows))) < len(rows):
            raise ValueError(f"{name} gives the same for different sources")
    for name in set(SAME_WEIGHTS) & ids.keys():
        for row, (found, expected) in enumerate(zip(ids[name], ids["marian"], strict=True)):
            if found != expected and not is_tie(case, row, found, ids["marian"]):
                raise ValueError(f"{name} and Marian disagree in row {row}: {found} and {expected}")


def is_tie(case: Case, row: int, found: list[int], expected: list[list[int]]) -> bool:
    """Whether two rows part at a choice as good as equal; of beams, whether the whole rows are as likely."""
    scores = scores_of(case, expected)[row]
    if case.beams == 1:
        first = next(i for i, pair in enumerate(zip(found, expected[row], strict=True)) if pair[0] != pair[1])
        return abs(float(scores[first, found[first]] - scores[first, expected[row][first]])) < TIE
    ours = scores_of(case, [found if i == row else ids for i, ids in enumerate(expected)])[row]
    sums = [
        float(s.gather(1, s.new_tensor(ids).long()[:, None]).sum())
        for s, ids in ((scores, expected[row]), (ours, found))
    ]
    return abs(sums[0] - sums[1]) < TIE * case.tokens


def measure(case: Case, engines: list[str], rounds: int, threads: int) -> dict[str, Any]:
    workers = {name: Worker(name, case, threads) for name in engines}
    try:
        check(case, {name: worker.ids for name, worker in workers.items()})
        times: dict[str, list[float]] = {name: [] for name in engines}
        for number in range(rounds + 1):
            for name in engines if number % 2 else reversed(engines):
                times[name].append(workers[name].seconds())
    finally:
        for worker in workers.values():
            worker.close()
    ratios = {name: [m / t for m, t in zip(times["marian"][1:], times[name][1:], strict=True)] for name in engines}
    return {  # the first round warms up
        name: {
            "ms_per_token": statistics.median(times[name][1:]) * 1e3 / case.tokens,
            "ratio": statistics.median(ratios[name]),
            "lowest": min(ratios[name]),
            "highest": max(ratios[name]),
        }
        for name in engines
    }


def variations() -> dict[str, Case]:
    """Lengths and sizes off those of the table by 30 %: nothing is made for these."""
    cases = {}
    for name, case in CASES.items():
        for sign, share in (("-", 0.7), ("+", 1.3)):
            size = round(case.size * share / 16 / case.heads) * 16 * case.heads
            changed = case._replace(size=size, feed_forward=4 * size, vocabulary=round(case.vocabulary * share))
            lengths = {"source": round(case.source * share), "tokens": round(case.tokens * share)}
            cases[f"{name}, {sign}30 %"] = changed._replace(**lengths)
    return cases


def growth() -> dict[str, Case]:
    ways = {
        "source": (16, 128, 512, 2048),
        "batch": (1, 4, 16, 64, 128),
        "vocabulary": (8000, 32000, 128000, 256000),
        "layers": (1, 3, 6, 12),
    }
    return {f"{field} {x}": SMALL._replace(**{field: x, "tokens": 32}) for field, xs in ways.items() for x in xs}


def plot(table: dict[str, Any], engines: list[str], file: Path) -> None:
    figure, axes = plt.subplots(figsize=(9, 0.55 * len(table) * len(engines) / 3 + 1))
    height = 0.8 / len(engines)
    for i, name in enumerate(engines):
        rows = [row[name] for row in table.values()]
        places = [j + i * height for j in range(len(rows))]
        spread = [[r["ratio"] - r["lowest"] for r in rows], [r["highest"] - r["ratio"] for r in rows]]
        axes.barh(places, [r["ratio"] for r in rows], height, xerr=spread, label=name)
    axes.set_yticks([j + 0.4 for j in range(len(table))], list(table))
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.5)
    axes.set_xlabel("times as fast as Marian in transformers")
    axes.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def machine(threads: int) -> dict[str, Any]:
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    versions = {name: version(name) for name in ("torch", "transformers", "ctranslate2", "dragoman")}
    return (
        {"date": date.today().isoformat(), "cpu": cpu.partition(": ")[2], "threads": threads}
        | versions
        | {"python": platform.python_version()}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rounds, small models, three engines")
    parser.add_argument("--vary", action="store_true", help="also sizes and lengths 30 %% off")
    parser.add_argument(
        "--growth", action="store_true", help="also longer sources, larger batches, vocabularies, stacks"
    )
    parser.add_argument("--engines", nargs="*", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", default="generate", help="of the files in benchmarks/results")
    options = parser.parse_args()
    engines, rounds, cases = options.engines, options.rounds, dict(CASES)
    if options.quick:
        engines, rounds = ["marian", "dragoman", "ctranslate2"], 3
        cases = {name: case for name, case in cases.items() if "small" in name}
    cases |= (variations() if options.vary else {}) | (growth() if options.growth else {})
    about = machine(options.threads)
    print(", ".join(f"{name} {value}" for name, value in about.items()) + "\n")
    print(f"| times as fast as Marian | {' | '.join(engines)} |\n|:--|{'--:|' * len(engines)}")
    table = {}
    for name, case in cases.items():
        if options.only in name:
            table[name] = row = measure(case, engines, rounds, options.threads)
            cells = [f"{row[e]['ratio']:.2f} ({row[e]['lowest']:.2f}-{row[e]['highest']:.2f})" for e in engines]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
    RESULTS.mkdir(exist_ok=True)
    sizes = {name: cases[name]._asdict() for name in table}
    report = {"machine": about, "rounds": rounds, "cases": sizes, "results": table}
    (RESULTS / f"{options.name}.json").write_text(json.dumps(report, indent=1) + "\n")
    plot(table, engines, RESULTS / f"{options.name}.png")


if __name__ == "__main__":
    main()
