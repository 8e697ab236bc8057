"""Train a recipe from several seeds, score each, and write down what came out.

    python examples/recipes/run.py cmudict ../shared/data/cmudict_g2p
    python examples/recipes/run.py multi30k ../shared/data/multi30k_bpe --seeds 0 --seeds 1 --seeds 2 --at-once 3
    python examples/recipes/run.py ar2en ../shared/data/ar2en --train "--max_minutes 8"
    python examples/recipes/run.py cmudict-taught ../shared/data/cmudict_g2p --before runs/cmudict

A recipe is `recipe.json` in a folder beside this file: the arguments of train_seq2seq.py, how many checkpoints to
average, and the arguments of score.py. `results.json` (scores of every seed, their mean and spread, checksums,
hardware, times) and `log.csv` (loss and learning rate of the first seed) go beside the checkpoints; `seed-N.json` is
there as soon as a seed is done. Seeds that do not fit into one sitting: start again with --keep.
"""

import csv
import json
import math
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors import safe_open
from transformers.utils import is_torch_tf32_available

HERE = Path(__file__).resolve().parent
RECIPES = sorted(path.parent.name for path in HERE.glob("*/recipe.json"))
Record = dict[str, Any]


def python(*command: str, log: Path) -> None:
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ python {shlex.join(command)}\n")
        file.flush()
        done = subprocess.run([sys.executable, *command], stdout=file, stderr=subprocess.STDOUT, env=environment)
    if done.returncode:
        tail = "\n".join(log.read_text("utf-8").splitlines()[-5:])
        raise SystemExit(f"run: {shlex.join(command[:3])} ended with {done.returncode}; {log} ends with\n{tail}")


def part_resuming(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments without --resume_from_checkpoint, in all spellings that it may have; and that one."""
    for at, part in enumerate(arguments):
        if part.replace("-", "_").startswith("__resume"):
            end = at + (1 if "=" in part else 2)
            return arguments[:at] + arguments[end:], arguments[at:end]
    return arguments, []


def filled(arguments: list[Any], **values: Any) -> list[str]:
    """The arguments with the values in the places of {their names}."""
    texts = [str(argument) for argument in arguments]
    for name, value in values.items():
        texts = [text.replace(f"{{{name}}}", str(value)) for text in texts]
    return texts


def read_recipe(name: str, before: Path | None) -> Record:
    about: Record = json.loads((HERE / name / "recipe.json").read_text("utf-8"))
    if before is None and "{before}" in str(about["train"]):
        raise SystemExit(f"run: {name} goes on from another recipe: --before runs/{name.partition('-')[0]}.")
    return about


def run_seed(recipe: Record, places: Record, output: Path, seed: int, more: list[str]) -> Record:
    """Train, average, score: the scores."""
    folder, log = output / f"seed-{seed}", output / f"seed-{seed}.log"
    others, resumed = part_resuming(more)
    if resumed[-1:] == ["true"] and not any(folder.glob("checkpoint-*")):  # other seeds have begun, this one has not
        more, resumed = others, []
    if not resumed:
        shutil.rmtree(folder, ignore_errors=True)  # of a run before, whose checkpoints would be averaged, too
    started = time.perf_counter()
    arguments = filled(recipe["train"], **places, seed=seed)
    train = [str(HERE.parent / "train_seq2seq.py"), "--do_train", *arguments, "--seed", str(seed)]
    fast = ["--dataloader_num_workers", "1"] if on_gpu([*train, *more]) else []
    if fast and is_torch_tf32_available():
        fast += ["--tf32", "true"]
    python(*train, "--output_dir", str(folder), *fast, *more, log=log)
    seconds = time.perf_counter() - started
    scored = folder
    if last := recipe.get("average"):
        last = max(1, min(last, len(list(folder.glob("checkpoint-*")))))  # a short training has fewer
        scored = output / f"seed-{seed}-average"
        shutil.rmtree(scored, ignore_errors=True)
        python("-m", "dragoman", "average", str(folder), str(scored), "--last", str(last), log=log)
    state = json.loads((folder / "trainer_state.json").read_text("utf-8"))
    record = score(recipe, places, output / f"seed-{seed}-score", [scored], log)
    steps: Record = {"steps": state["global_step"], "epochs": round(state["epoch"], 1)}
    if resumed:
        steps["resumed"] = True  # the seconds are those of the last sitting
    if last:
        steps["averaged"] = last
    size = {"parameters": count_parameters(folder / "model.safetensors")}
    return {"seed": seed, "train_seconds": round(seconds), **steps, **size, **record}


def run_or_keep(recipe: Record, places: Record, output: Path, seed: int, more: list[str], keep: bool) -> Record:
    """The record of a seed, which is in a file of its own as soon as there is one; with `keep` that of before."""
    file, asked = output / f"seed-{seed}.json", {"recipe": recipe, "more": part_resuming(more)[0]}
    if keep and file.exists():
        found = json.loads(file.read_text("utf-8"))
        if found["asked"] != asked:
            raise SystemExit(f"run: {file} is of another recipe or --train: name another --output.")
        typer.echo(f"seed {seed}: kept, of {file}")
        return found["record"]
    file.unlink(missing_ok=True)
    record = run_seed(recipe, places, output, seed, more)
    file.write_text(json.dumps({"asked": asked, "record": record}, indent=1) + "\n", "utf-8")
    return record


def count_parameters(file: Path) -> int:
    with safe_open(file, "pt") as weights:
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118


def score(recipe: Record, places: Record, output: Path, checkpoints: list[Path], log: Path) -> Record:
    first, *others = map(str, checkpoints)
    task, *arguments = filled(recipe["score"], **places)
    together = [part for other in others for part in ("--with", other)]
    python(
        str(HERE / "score.py"), first, task, *arguments, *together, "--nbest", "1", "--output-dir", str(output), log=log
    )
    return json.loads((output / "score.json").read_text("utf-8"))


def spread(records: list[Record], metrics: list[str]) -> Record:
    """Mean, least and most of each score."""
    values = {metric: [record[metric] for record in records] for metric in metrics}
    return {m: {"mean": statistics.mean(v), "least": min(v), "most": max(v)} for m, v in values.items()}


def write_log(state: Path, file: Path) -> None:
    history = [entry for entry in json.loads(state.read_text("utf-8"))["log_history"] if "loss" in entry]
    names = ("step", "epoch", "loss", "learning_rate")
    with file.open("w", encoding="utf-8", newline="\n") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([f"{float(entry[name]):.6g}" for name in names] for entry in history)


def on_gpu(arguments: list[Any]) -> bool:
    told = any(str(argument).partition("=")[0] == "--use_cpu" for argument in arguments)
    return torch.cuda.is_available() and not told


def hardware(arguments: list[Any]) -> str:
    if on_gpu(arguments):
        return f"{torch.cuda.get_device_name()}, {os.cpu_count()} cores"
    return f"{platform.machine()}, {os.cpu_count()} cores, no GPU"


def main(
    recipe: Annotated[str, typer.Argument(help=", ".join(RECIPES))],
    data: Annotated[Path, typer.Argument(help="The folder of the data set.")],
    seeds: Annotated[list[int], typer.Option(help="Repeat the option for several.")] = [0, 1, 2],  # noqa: B006
    at_once: Annotated[int, typer.Option(min=1, help="How many seeds train side by side.")] = 1,
    before: Annotated[
        Path | None, typer.Option(help="Where a recipe that goes on from another finds its seeds.")
    ] = None,
    train: Annotated[str, typer.Option(help="More arguments for train_seq2seq.py; the last of a name counts.")] = "",
    output: Annotated[Path | None, typer.Option(help="Default: runs/RECIPE.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Train no seed again that this command has finished.")] = False,
) -> None:
    """Train a recipe from several seeds, score each, and write down what came out."""
    if recipe not in RECIPES:
        raise SystemExit(f"run: there is no recipe {recipe!r}; choose from {', '.join(RECIPES)}.")
    if not data.is_dir():
        raise SystemExit(f"run: {data}: no such folder.")
    about = read_recipe(recipe, before)
    output = output or Path("runs") / recipe
    output.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(at_once) as pool:
        places, more = {"data": data, "before": before}, shlex.split(train)
        records = list(pool.map(lambda seed: run_or_keep(about, places, output, seed, more, keep), seeds))
    together: Record = {}
    if len(seeds) > 1 and about.get("ensemble", True):
        name = "seed-{}-average" if about.get("average") else "seed-{}"
        members = [output / name.format(seed) for seed in seeds]
        together = {"ensemble": score(about, places, output / "ensemble-score", members, output / "ensemble.log")}
        for member in together["ensemble"]["with"]:
            member["checkpoint"] = Path(member["checkpoint"]).name
    result = {
        "recipe": recipe,
        "date": date.today().isoformat(),
        "hardware": hardware([*about["train"], *more]),
        "at_once": at_once,
        "more_train_arguments": train,
        "longest_training": max(record["train_seconds"] for record in records),
        "scores": spread(records, about["metrics"]),
        "seeds": records,
        **together,
    }
    (output / "results.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    write_log(output / f"seed-{seeds[0]}" / "trainer_state.json", output / "log.csv")
    for name, found in result["scores"].items():
        ensemble = f", ensemble {together['ensemble'][name]:.2f}" if together else ""
        typer.echo(f"{recipe} {name}: {found['mean']:.2f} ({found['least']:.2f} to {found['most']:.2f}){ensemble}")


if __name__ == "__main__":
    typer.run(main)
