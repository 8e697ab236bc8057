"""Run by test_checkpoint_saving: saves over checkpoints and is killed, each time a little later.

    python saving_process.py NEW ROOT JOBS.json

A job names a folder that is copied for each try, and the size of a shard. Try n dies before the n-th thing it does to
the file system, counting every file that is opened for writing, renamed, removed, and every shard half written; the
last try gets through. All tries are forks of one process.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import transformers.modeling_utils
from transformers import PreTrainedModel

import dragoman

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


class Countdown:
    """Kills the process when it has been called often enough."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if writes or event in CHANGES:
            self()


def save(model: PreTrainedModel, folder: Path, shard: str, by_transformers: bool, countdown: Countdown) -> None:
    write = transformers.modeling_utils.safe_save_file

    def write_in_two(tensors: Any, name: str, **kwargs: Any) -> None:
        write(tensors, name, **kwargs)
        os.truncate(name, Path(name).stat().st_size // 2)
        countdown()  # and before: the file is there in half
        write(tensors, name, **kwargs)

    transformers.modeling_utils.safe_save_file = write_in_two
    sys.addaudithook(countdown.watch)
    save_pretrained = PreTrainedModel.save_pretrained if by_transformers else type(model).save_pretrained
    save_pretrained(model, folder, max_shard_size=shard)


def main(new: str, root: str, jobs: str) -> None:
    torch.set_num_threads(1)
    model = dragoman.DragomanForConditionalGeneration.from_pretrained(new)
    for name, old, shard, by_transformers in json.loads(Path(jobs).read_text("utf-8")):
        status, tries = 1, 0
        while status != 0:
            tries += 1
            folder = Path(root, name, f"{tries:03d}")
            shutil.copytree(old, folder)
            child = os.fork()
            if child == 0:
                try:
                    save(model, folder, shard, by_transformers, Countdown(tries))
                except BaseException as error:
                    print(repr(error), flush=True)
                    os._exit(1)
                os._exit(0)
            status = os.waitpid(child, 0)[1]
            if status not in (0, signal.SIGKILL) or tries > 300:
                sys.exit(f"{name}, try {tries}: status {status}")


if __name__ == "__main__":
    main(*sys.argv[1:])
