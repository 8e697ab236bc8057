"""Engines in processes of their own that take turns: how every comparison of speed here is made.

A round lets every engine run once, forwards and backwards in turn, and a ratio is that of two runs of one round. A
foreign process on one core wrecks a time on two threads: a run that it disturbed is run again. Linux only.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
FOREIGN = 0.08  # of a core: more that others take, and a run is repeated
TRIES = 4
PACKAGES = ("torch", "transformers", "dragoman", "ctranslate2", "x-transformers")


class Worker:
    """The parent's end of :func:`serve`."""

    def __init__(self, script: str, arguments: list[str], threads: int, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), **environment},
        )
        self.first: dict[str, Any] = {}

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"ended with {self.process.wait()}; its message stands above")
        return json.loads(line)

    def ask(self, command: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(command, file=self.process.stdin, flush=True)
        return self.answer()

    def run(self, command: str, tries: int) -> dict[str, Any]:
        """One run, of several the one that other processes disturbed least."""
        answers = []
        for _ in range(tries):
            before, started = busy(), time.perf_counter()
            answer = self.ask(command)
            foreign = (busy() - before - answer["cpu"]) / max(time.perf_counter() - started, 0.05)
            answers.append(answer | {"foreign": max(0.0, foreign)})
            if foreign <= FOREIGN:
                break
        return min(answers, key=lambda answer: answer["foreign"])


def busy() -> float:
    """Seconds of CPU that all processes have used so far."""
    user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:8])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def serve(build: Callable[[], tuple[dict[str, Any], Callable[[str], dict[str, Any]]]]) -> None:
    """The process of an engine: builds when told to, then answers every line with one of JSON."""
    print("{}", flush=True)  # all is imported
    sys.stdin.readline()
    first, run = build()
    print(json.dumps(first), flush=True)
    for line in sys.stdin:
        cpu = time.process_time()
        answer = run(line.strip())
        print(json.dumps(answer | {"cpu": time.process_time() - cpu}), flush=True)


@contextmanager
def working(
    script: str, engines: dict[str, list[str]], threads: int, environment: dict[str, str] | None = None
) -> Iterator[tuple[dict[str, Worker], dict[str, str]]]:
    """Workers that stand ready, and what those that failed to had to say; the first engine may not fail."""
    workers = {name: Worker(script, arguments, threads, environment or {}) for name, arguments in engines.items()}
    failed: dict[str, str] = {}
    try:
        for step in (lambda worker: worker.answer(), lambda worker: worker.first.update(worker.ask("build"))):
            for name in [name for name in workers if name not in failed]:
                try:
                    step(workers[name])
                except (RuntimeError, OSError) as error:
                    if name == next(iter(engines)):
                        raise RuntimeError(f"{name} {error}") from None
                    failed[name] = str(error)
        yield {name: worker for name, worker in workers.items() if name not in failed}, failed
    finally:
        for worker in workers.values():
            worker.process.kill()
            worker.process.wait()


def take_turns(workers: dict[str, Worker], commands: list[str], warm: int, tries: int) -> dict[str, Any]:
    """What every engine answered to every command, without the first ``warm`` rounds."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    for number, command in enumerate(commands):
        for name in list(workers)[:: 1 if number % 2 else -1]:
            answers[name].append(workers[name].run(command, tries))
    return {name: found[warm:] for name, found in answers.items()}


def compare(answers: dict[str, list[dict[str, Any]]], reference: str) -> dict[str, dict[str, float]]:
    """How many times as fast as the reference: the median of the rounds' ratios, the least and the most."""
    rows = {}
    for name, found in answers.items():
        ratios = [r["seconds"] / a["seconds"] for r, a in zip(answers[reference], found, strict=True)]
        rows[name] = {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
        rows[name]["foreign"] = statistics.median(a["foreign"] for a in found)
    return rows


def cell_text(row: dict[str, float]) -> str:
    return f"{row['ratio']:.2f} ({row['lowest']:.2f}-{row['highest']:.2f})"


def conditions(threads: int, rounds: int) -> dict[str, Any]:
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    about = {"date": date.today().isoformat(), "cpu": cpu.partition(": ")[2], "threads": threads}
    return about | {"python": platform.python_version()} | versions | {"rounds": rounds}


def run_cells(
    cells: dict[str, Callable[[], dict[str, Any]]],
    file: Path,
    kept: dict[str, dict[str, Any]],
    show: Callable[[str, dict[str, Any]], str],
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Results and failures by cell, beginning with those ``kept``, which are not measured.

    A cell is written as soon as it is measured; one that fails costs no other."""
    found, failures = dict(kept), {}
    for name, measure in cells.items():
        if name not in found:
            started = time.perf_counter()
            try:
                found[name] = measure() | {"took": round(time.perf_counter() - started, 1)}  # seconds
            except (RuntimeError, OSError, ValueError) as error:
                failures[name] = str(error)
                print(f"\n{name} FAILED: {error}", flush=True)
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({n: found[n] for n in [*cells, *found] if n in found}, indent=1) + "\n", "utf-8")
        print(show(name, found[name]), flush=True)
    return found, failures
