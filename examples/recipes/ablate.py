"""What each part of a recipe is worth: train it without the part, or with another one, from several seeds.

    python examples/recipes/ablate.py ar2en ../shared/data/ar2en --at-once 2

`ablation.json` beside the recipe lists the rows: arguments that are added (`train`, `score`; the last of a name counts)
or left out (`without`). What `all` adds, every row has, the unchanged first one too: a shorter training, say; with
`"every": 5` they learn from each fifth line of the training file. A row that only scores otherwise scores what the
first row trained. `ablation_results.json` in --output is written after each measurement, and what it holds is not
measured again; what was measured with other arguments is refused.
"""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from run import HERE, Record, hardware, read_recipe, run_seed, score

ABLATIONS = sorted(path.parent.name for path in HERE.glob("*/ablation.json"))
REFERENCE = "unchanged"
KEPT = ("steps", "epochs", "parameters", "weights_sha256")  # of a record, besides its scores


def leave_out(arguments: list[Any], names: list[str]) -> list[Any]:
    """Without these options and the values after each, however often. Raises ValueError for one that is not there."""
    kept = list(arguments)
    for name in names:
        if name not in kept:
            raise ValueError(f"{name} is not there to leave out.")
        while name in kept:
            at = kept.index(name)
            del kept[at]
            while at < len(kept) and not str(kept[at]).startswith("--"):
                del kept[at]
    return kept


def changed_by(row: Record, recipe: Record) -> Record:
    arguments = [*leave_out(recipe["train"], row.get("without", [])), *row.get("train", [])]
    changed = {**recipe, "train": arguments, "score": [*recipe["score"], *row.get("score", [])]}
    return changed | ({"average": row["average"]} if "average" in row else {})


def thin_out(recipe: Record, data: Path, every: int, output: Path) -> None:
    """Let a recipe train on every so-manieth line of its file, from the first on."""
    at = recipe["train"].index("--train_file") + 1
    whole = Path(recipe["train"][at].replace("{data}", str(data)))
    kept = output / whole.name
    with whole.open("rb") as lines, kept.open("wb") as file:
        file.writelines(islice(lines, 0, None, every))
    recipe["train"][at] = str(kept)


def measure(recipe: Record, row: Record, places: Record, output: Path, seed: int) -> Record:
    """Train and score a row from a seed; or score anew what the first row trained from it."""
    changed = changed_by(row, recipe)
    folder = output / row["name"].replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    if "score" not in row:
        return run_seed(changed, places, folder, seed, [])
    trained = output / REFERENCE / f"seed-{seed}{'-average' * ('average' in recipe)}"
    return score(changed, places, folder / f"seed-{seed}-score", [trained], folder / f"seed-{seed}.log")


def main(
    recipe: Annotated[str, typer.Argument(help=", ".join(ABLATIONS))],
    data: Annotated[Path, typer.Argument(help="The folder of the data set.")],
    seeds: Annotated[list[int], typer.Option(help="Repeat the option for several.")] = [0, 1, 2],  # noqa: B006
    at_once: Annotated[int, typer.Option(min=1, help="How many trainings run side by side.")] = 1,
    before: Annotated[
        Path | None, typer.Option(help="Where a recipe that goes on from another finds its seeds.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Default: runs/RECIPE-ablation.")] = None,
) -> None:
    """What each part of a recipe is worth: train it without the part, or with another one, from several seeds."""
    if recipe not in ABLATIONS:
        raise SystemExit(f"ablate: {recipe!r} has no ablation; choose from {', '.join(ABLATIONS)}.")
    if not data.is_dir():
        raise SystemExit(f"ablate: {data}: no such folder.")
    about = read_recipe(recipe, before)
    plan = json.loads((HERE / recipe / "ablation.json").read_text("utf-8"))
    output = output or Path("runs") / f"{recipe}-ablation"
    output.mkdir(parents=True, exist_ok=True)
    if "every" in plan:
        thin_out(about, data, plan["every"], output)
    about["train"] += plan["all"]
    file = output / "ablation_results.json"
    result: Record = json.loads(file.read_text("utf-8")) if file.exists() else {"recipe": recipe, "rows": {}}
    writing = threading.Lock()

    def work(row: Record, seed: int) -> None:
        record = measure(about, row, {"data": data, "before": before}, output, seed)
        kept = {name: record[name] for name in (*about["metrics"], *KEPT) if name in record}
        with writing:
            result["rows"][row["name"]][str(seed)] = kept
            result.update(date=date.today().isoformat(), hardware=hardware(about["train"]), at_once=at_once)
            result.update(threads=torch.get_num_threads(), metric=about["metrics"][0])
            result.update(all=plan["all"], every=plan.get("every", 1))
            partial_file = file.with_suffix(".partial")  # whoever stops this loses no measurement
            partial_file.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
            partial_file.replace(file)
        typer.echo(f"{row['name']}, seed {seed}: " + ", ".join(f"{m} {kept[m]:.2f}" for m in about["metrics"]))

    rows = [{"name": REFERENCE}, *plan["rows"]]
    result["rows"] = {row["name"]: {} for row in rows} | result["rows"]  # in this order
    plans = {row["name"]: changed_by(row, about) for row in rows}
    measured = {name: result.get("plans", {}).get(name) for name, found in result["rows"].items() if found}
    if other := [name for name, plan in measured.items() if plan != plans.get(name)]:
        raise SystemExit(f"ablate: {file} has {', '.join(other)} by another plan: name another --output.")
    result["plans"] = plans
    for wanted in ([row for row in rows if "score" not in row], [row for row in rows if "score" in row]):
        missing: list[Callable[[], None]] = [
            partial(work, row, seed) for seed in seeds for row in wanted if str(seed) not in result["rows"][row["name"]]
        ]
        with ThreadPoolExecutor(at_once) as pool:
            try:
                for done in [pool.submit(task) for task in missing]:
                    done.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)  # not hours of other trainings first
                raise


if __name__ == "__main__":
    typer.run(main)
