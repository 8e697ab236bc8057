"""The same step and the same evaluation on two processes: ``accelerate launch``, meeting over gloo."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file
from torch import Tensor

from .subjects import Subject

WORKER = "dragoman.checking.worker"
SECONDS = 600
# --multi_gpu is the launcher's name for "several processes by torchrun"; where no GPU is to be seen they meet over
# gloo. Port 0: any that is free.
LAUNCHER = (
    "-m accelerate.commands.launch --multi_gpu --num_machines=1 --mixed_precision=no --dynamo_backend=no "
    f"--num_processes=2 --num_cpu_threads_per_process=1 --main_process_port=0 --module {WORKER}"
).split()


class Results(NamedTuple):
    losses: dict[str, float]  # of a step, by way of smoothing
    gradients: dict[str, Tensor]
    evaluations: dict[str, float]  # eval_loss, by how the rows were split
    errors: dict[str, str]  # by way, or "eval_loss"

    def step(self, way: str) -> tuple[float, Tensor]:
        if way in self.errors:
            raise RuntimeError(f"2 processes: {self.errors[way]}")
        return self.losses[way], self.gradients[way]

    def eval_losses(self) -> dict[str, float]:
        if "eval_loss" in self.errors:
            raise RuntimeError(f"2 processes: {self.errors['eval_loss']}")
        return self.evaluations


@lru_cache(maxsize=1)
def two_processes(subject: Subject) -> Results:
    """What both lines that need it share."""
    return subject.distributed or run_in_two_processes([subject])[0]


def run_in_two_processes(subjects: Sequence[Subject]) -> list[Results]:
    """Launch once for all: starting takes longer than measuring.

    Raises:
        RuntimeError: where the launch fails, with the error that it printed.
    """
    jobs = [{"model": s.name, "overrides": dict(s.overrides or {}), "float64": s.float64} for s in subjects]
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(
            [sys.executable, *LAUNCHER, folder, json.dumps(jobs)],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )
        if run.returncode:
            errors = [line for line in run.stderr.splitlines() if "Error: " in line]
            raise RuntimeError(f"2 processes: {errors[0] if errors else run.stderr[-300:]}")
        return [read(Path(folder), i) for i in range(len(jobs))]


def read(folder: Path, number: int) -> Results:
    found: dict[str, Any] = json.loads(Path(folder, f"{number}.json").read_text("utf-8"))
    gradients = load_file(Path(folder, f"{number}.safetensors"))
    return Results(found["losses"], gradients, found["evaluations"], found["errors"])
