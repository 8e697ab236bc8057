"""Measure every line of the check on Dragoman and its peers, and write docs/correctness.md.

python -m pip install -c constraints.txt -e ".[benchmarks]" && python benchmarks/correctness.py
"""

import datetime
import os
import platform
import time
import warnings
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from transformers.utils import logging

from dragoman.checking import LINES, Subject, Verdict, find_subject, judge
from dragoman.checking.processes import run_in_two_processes
from dragoman.checking.training import evaluating_trainer
from peers import PEERS

ROOT = Path(__file__).resolve().parent.parent
PAGE, TEMPLATE = ROOT / "docs" / "correctness.md", (ROOT / "benchmarks" / "correctness.template.md").read_text("utf-8")
OURS = {
    "tiny (rotary)": ("tiny", {}),
    "modern_base": ("modern_base", {}),
    "transformer_base": ("transformer_base", {}),
    **{
        scheme: ("tiny", {"position_encoding": scheme})
        for scheme in ("sinusoidal", "learned", "alibi", "relative", "none")
    },
}
IN_TREE = {
    "BART": "BartForConditionalGeneration",
    "Marian": "MarianMTModel",
    "T5": "T5ForConditionalGeneration",
    "T5Gemma": "T5GemmaForConditionalGeneration",
}
# Threads about what a line measures, by line; not all of them name these models.
REPORTS = {
    1: "huggingface/transformers#47688 #37766 #35203",
    8: "inseq-team/inseq#302 sillsdev/machine.py#150 resemble-ai/chatterbox#398",
}

Column = dict[int, Verdict]


def measure(subjects: dict[str, Subject]) -> dict[str, Column]:
    """Every line on every subject. Those that train do so on two processes in one launch."""
    trained = [name for name, subject in subjects.items() if not subject.forward_only]
    distributed = run_in_two_processes([subjects[name] for name in trained])
    subjects |= {
        name: replace(subjects[name], distributed=results) for name, results in zip(trained, distributed, strict=True)
    }
    columns: dict[str, Column] = {}
    for name, subject in subjects.items():
        columns[name] = {number: judge(subject, number) for number in LINES}
        print(name, *(f"{v.number}:{v.status}" for v in columns[name].values()), flush=True)
    return columns


def worst_of(columns: Iterable[Column]) -> Column:
    """One column for several: a line passes where it passes everywhere, and shows the largest deviation."""
    rank = ["pass", "not offered", "FAIL"]
    return {
        number: max((c[number] for c in columns), key=lambda v: (rank.index(v.status), v.deviation or 0.0))
        for number in LINES
    }


def cell(verdict: Verdict) -> str:
    if verdict.status == "not offered":
        return "–"  # noqa: RUF001
    if verdict.status == "pass":
        return f"{verdict.deviation:.0e}" if verdict.deviation else "0"
    if verdict.deviation == float("inf"):
        return "**not finite**"
    beyond = verdict.deviation is not None and not verdict.deviation <= (verdict.limit or 0)
    return f"**differs, {verdict.deviation:.0e}**" if beyond else "**differs**"


def table(columns: dict[str, Column]) -> str:
    rows = [["line", *columns], ["---"] + ["---:"] * len(columns)]
    for number, (name, _) in LINES.items():
        rows.append([f"{number} {name}", *(cell(column[number]) for column in columns.values())])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def legend() -> str:
    rows = ["| line | what is checked |", "| --- | --- |"]
    for number, (name, line) in LINES.items():
        rows.append(f"| {number} {name} | {(line.__doc__ or '').splitlines()[0]} |")
    return "\n".join(rows)


def differences(columns: dict[str, Column]) -> str:
    """What failed, in the words of the check."""
    failed = [(name, v) for name, column in columns.items() for v in column.values() if v.status == "FAIL"]
    return "\n".join(f"- **{name}, {v.number} {v.name}.** {v.note}." for name, v in failed)


def links(threads: str) -> str:
    """``owner/name#1 #2`` to Markdown; a bare number belongs to the repository before it."""
    repository, found = "", []
    for thread in threads.split():
        repository = thread.partition("#")[0] or repository
        number = thread.partition("#")[2]
        found.append(f"[{repository.split('/')[-1]}#{number}](https://github.com/{repository}/issues/{number})")
    return ", ".join(found)


def conditions(seconds: float) -> str:
    packages = ("transformers", "torch", "accelerate", "x-transformers", "dragoman")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return (
        f"{versions}, Python {platform.python_version()}; {os.cpu_count()} cores, {platform.machine()} "
        f"({torch.backends.cpu.get_cpu_capability()}), no GPU; {datetime.date.today()}; measured in {seconds:.0f} s."
    )


def main() -> None:
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    start = time.perf_counter()
    subjects = {name: find_subject(*model) for name, model in OURS.items()}
    subjects |= {name: find_subject(model) for name, model in IN_TREE.items()}
    columns = measure(subjects | {name: adapt() for name, adapt in PEERS.items()})
    ours = {name: columns.pop(name) for name in OURS}
    columns = {"Dragoman": worst_of(ours.values()), **columns}
    PAGE.write_text(
        TEMPLATE.format(
            legend=legend(),
            peers=table(columns),
            ours=table(ours),
            differences=differences(columns),
            reports="; ".join(f"line {number}: {links(threads)}" for number, threads in REPORTS.items()),
            trainer=evaluating_trainer(subjects["tiny (rotary)"]).__name__,
            conditions=conditions(time.perf_counter() - start),
        ),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
