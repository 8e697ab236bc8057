"""Run by test_push: what users do with a repository, each time in a process that has done nothing else.

    python hub_process.py

A line of standard input asks for an action; a line of standard output answers. Each action runs in a fork of this
process, which has imported torch and transformers but never dragoman, and whose environment names server and caches.
"""

import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from safetensors.torch import load_file
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    TrainerCallback,
)

from loading_process import FACETS, Absent, compare

ACTIONS: dict[str, Callable[..., Any]] = {}


def action(function: Callable[..., Any]) -> Callable[..., Any]:
    ACTIONS[function.__name__] = function
    return function


@action
def load(repo: str, notes: str, facets: list[str], revision: str = "main", **keywords: Any) -> list[str]:
    """Load by name, and compare with what was noted before the push; the names of the modules that did it."""
    noted = torch.load(notes)
    homes = []
    for name in facets:
        auto, describe = FACETS[name]
        thing = auto.from_pretrained(repo, revision=revision, **keywords)
        compare(describe(thing), noted[name])
        homes.append(type(thing).__module__.partition(".")[0])
    return homes


@action
def load_weights(repo: str, weights: str, **keywords: Any) -> None:
    """Load a model that nobody noted; its weights must be those of a file."""
    found = AutoModelForSeq2SeqLM.from_pretrained(repo, **keywords).state_dict()
    for name, value in load_file(weights).items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)


@action
def push(what: str, folder: str, repo: str, **keywords: Any) -> None:
    """`model`, `tokenizer` or `config`, as `folder` holds it, by its own push_to_hub."""
    thing = _parts(folder)[what]
    thing.push_to_hub(repo, **keywords)


@action
def save_and_push(what: str, folder: str, repo: str, into: str, **keywords: Any) -> None:
    """By save_pretrained(push_to_hub=True), over what the folder `into` may hold already."""
    _parts(folder)[what].save_pretrained(into, push_to_hub=True, repo_id=repo, **keywords)


@action
def upload(folder: str, repo: str, delete: list[str] | None = None) -> None:
    """The files of a folder as they are; `delete` names what goes in the same commit."""
    HfApi().create_repo(repo, exist_ok=True)
    HfApi().upload_folder(repo_id=repo, folder_path=folder, delete_patterns=delete)


@action
def tag(repo: str, name: str) -> None:
    HfApi().create_tag(repo, tag=name)


@action
def train(folder: str, repo: str, output: str, steps: int, with_tokenizer: bool = True) -> None:
    """Trainer: a push beside training after every step, then push_to_hub() at the end."""

    class Patience(TrainerCallback):
        """A step takes as long as the push before it, and what went wrong there is seen."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            for job in trainer.push_in_progress.jobs if trainer.push_in_progress else ():
                job.result()

    parts = _parts(folder)
    arguments = Seq2SeqTrainingArguments(
        output,
        max_steps=steps,
        save_strategy="steps",
        save_steps=1,
        push_to_hub=True,
        hub_model_id=repo,
        disable_tqdm=True,
        report_to=[],
        use_cpu=True,
    )
    rows = [dict(parts["tokenizer"]("a dog runs", text_target="ein Hund rennt"))] * 8
    tokenizer = parts["tokenizer"] if with_tokenizer else None
    collator = DataCollatorForSeq2Seq(parts["tokenizer"])
    trainer = Seq2SeqTrainer(parts["model"], arguments, collator, rows, processing_class=tokenizer)
    trainer.add_callback(Patience())
    trainer.train()
    trainer.push_to_hub()


@action
def verify(repo: str, into: str) -> dict[str, str]:
    """Download as `hf download --local-dir` does; what `python -m dragoman verify` finds wrong, by file."""
    from dragoman.verification import verify

    return {
        finding.path: finding.problem for finding in verify(snapshot_download(repo, local_dir=into)) if finding.problem
    }


@action
def compare_hashes(repo: str) -> list[str]:
    """As `hf cache verify`: the files in the cache whose content is not what the repository says."""
    return [mismatch["path"] for mismatch in HfApi().verify_repo_checksums(repo).mismatches]


def _parts(folder: str) -> dict[str, Any]:
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    return {"model": model, "config": model.config, "tokenizer": AutoTokenizer.from_pretrained(folder)}


def run(job: dict[str, Any]) -> Any:
    """Modes as in test_hub_matrix: a, the plugin is imported; b, there is none."""
    torch.set_num_threads(1)
    sleep = time.sleep
    time.sleep = lambda seconds: sleep(seconds / 100)  # the client's waits before it tries again
    mode, name = job.pop("mode"), job.pop("action")
    os.environ.update(job.pop("environment", {}))
    if mode == "a":
        import dragoman  # noqa: F401
    else:
        sys.meta_path.insert(0, Absent())
    result = ACTIONS[name](**job)
    assert ("dragoman" in sys.modules) == (mode == "a")
    return result


def warm_up() -> None:
    """What transformers does once in a process takes half a second: here, for all forks."""
    model = AutoModelForSeq2SeqLM.from_config(T5Config(vocab_size=9, d_model=8, d_kv=8, d_ff=8, num_layers=1))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        AutoModelForSeq2SeqLM.from_pretrained(folder)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    warm_up()
    for line in sys.stdin:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                answer = {"result": run(json.loads(line))}
            except BaseException as error:
                traceback.print_exc()
                answer = {"error": f"{type(error).__name__}: {error}"}
            os.write(writer, json.dumps(answer).encode())
            sys.stderr.flush()
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            answer = pipe.read()
        os.waitpid(child, 0)
        print(answer.decode() or '{"error": "it died"}', file=answers, flush=True)


if __name__ == "__main__":
    main()
