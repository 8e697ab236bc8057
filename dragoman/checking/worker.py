"""What each of the two processes runs: see processes.py. Only the first one writes."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file

from .processes import Results
from .subjects import Subject, find_subject
from .training import evaluate, evaluating_trainer, smoothings, take_step
from .verdicts import first_line


def main(folder: Path, jobs: str) -> None:
    torch.set_num_threads(1)
    state = PartialState(cpu=True)
    if state.num_processes != 2:
        raise RuntimeError(f"Error: {state.num_processes} processes were started instead of 2.")
    for number, job in enumerate(json.loads(jobs)):
        subject = find_subject(job["model"], job["overrides"])
        results = measure(subject.in_float64() if job["float64"] else subject)
        if state.is_main_process:
            save_file(results.gradients, folder / f"{number}.safetensors")
            found = {name: value for name, value in results._asdict().items() if name != "gradients"}
            folder.joinpath(f"{number}.json").write_text(json.dumps(found), "utf-8")
    state.destroy_process_group()


def measure(subject: Subject) -> Results:
    results = Results({}, {}, {}, {})

    @contextmanager
    def noted(what: str) -> Iterator[None]:
        """Both processes meet an error of the subject at the same place, and go on."""
        try:
            yield
        except Exception as error:
            results.errors[what] = f"{type(error).__name__}: {first_line(error)}"

    for way, smoothing in smoothings(subject).items():
        with noted(way):
            results.losses[way], results.gradients[way] = take_step(subject, 2, 4, **smoothing)
    with noted("eval_loss"):
        for rows in (1, 3):
            loss = evaluate(subject, rows, evaluating_trainer(subject))
            results.evaluations[f"2 processes of {rows}"] = loss
    return results


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
