"""examples/recipes: one command trains, averages, scores and reports; the page says what the result files say."""

import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import HfArgumentParser

import sentiment
from support import ROOT

RECIPES = ROOT / "examples" / "recipes"
DATA = {
    "ar2en": {
        "ar2en-train.txt": "".join(f"{w}\t{w.upper()}\n" for w in ("ab", "ba", "aab", "bb", "abab") * 8),
        "ar2en-eval.txt": "ab\tAB\nbba\tBBA\nba\tBA\n",
    },
    "multi30k": {
        "train.en": "a man .\ntwo do@@ gs .\n" * 20,
        "train.de": "ein mann .\nzwei hun@@ de .\n" * 20,
        "test.2016.en": "two men .\n",
        "test.2016.de": "zwei mann .\n",
    },
    "cmudict": {
        "train.tsv": "AB\tAE B\nBA\tB AH\nBAB\tB AE B\n" * 8,
        "valid.tsv": "AB\tAE B\nAB\tAH B\nABBA\tAE B AH\n",
    },
}


def run(recipe: str, folder: Path, seeds: list[int], train: str, *more: Any) -> tuple[str, dict[str, Any]]:
    data, output = folder / "data", folder / "out"
    data.mkdir(exist_ok=True)
    for name, text in DATA[recipe.partition("-")[0]].items():
        (data / name).write_text(text, "utf-8")
    chosen = [part for seed in seeds for part in ("--seeds", str(seed))]
    command = [sys.executable, RECIPES / "run.py", recipe, data, *chosen, "--output", output, "--train", train, *more]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (output / "log.csv").read_text().startswith("step,epoch,loss,learning_rate\n1,")
    return done.stdout, json.loads((output / "results.json").read_text("utf-8"))


@pytest.mark.slow
def test_two_seeds_their_spread_and_their_ensemble(tmp_path: Path) -> None:
    said, result = run("ar2en", tmp_path, [3, 5], "--max_steps 3 --logging_steps 1 --use_cpu")
    wer = result["scores"]["wer"]
    assert [record["seed"] for record in result["seeds"]] == [3, 5]
    found = [record["wer"] for record in result["seeds"]]
    assert wer == {"mean": sum(found) / 2, "least": min(found), "most": max(found)}
    sums = [record["weights_sha256"] for record in result["seeds"]]
    assert len(set(sums)) == 2
    assert {"wer", "cer"} <= result["ensemble"].keys()
    assert all(record["rows"] == 3 and record["steps"] == 3 for record in result["seeds"])
    assert f"ar2en wer: {wer['mean']:.2f}" in said


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["multi30k", "cmudict"])
def test_the_other_recipes_run(recipe: str, tmp_path: Path) -> None:
    epochs = "--num_train_epochs 3" if recipe == "multi30k" else "--max_steps 2"
    _, result = run(recipe, tmp_path, [0], f"{epochs} --logging_steps 1 --use_cpu")
    assert result["seeds"][0]["rows"] == (1 if recipe == "multi30k" else 2)
    assert "ensemble" not in result
    averaged = (tmp_path / "out" / "seed-0-average").is_dir()
    assert averaged == ("average" in json.loads((RECIPES / recipe / "recipe.json").read_text("utf-8")))
    assert result["seeds"][0].get("averaged") == (3 if averaged else None), "as many checkpoints as there are"
    (tmp_path / "out" / "seed-0" / "checkpoint-9999").mkdir(exist_ok=True)
    run(recipe, tmp_path, [0], f"{epochs} --logging_steps 1 --use_cpu")
    assert not (tmp_path / "out" / "seed-0" / "checkpoint-9999").exists(), "of the run before: it is not averaged"


@pytest.mark.slow
def test_a_recipe_goes_on_from_another(tmp_path: Path) -> None:
    """Its seeds are where the others ended, and learn from all of them, and from invented words."""
    steps = "--max_steps 2 --logging_steps 1 --use_cpu"
    run("cmudict", tmp_path, [0], steps)
    before = (tmp_path / "out").rename(tmp_path / "before")
    for seed in (1, 2):
        shutil.copytree(before / "seed-0", before / f"seed-{seed}")
    command = [sys.executable, RECIPES / "invent.py", tmp_path / "data" / "train.tsv", 2, before / "with-invented.tsv"]
    models = [part for seed in range(3) for part in ("--model", before / f"seed-{seed}")]
    done = subprocess.run(list(map(str, [*command, *models, "--max-new-tokens", 5])), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    _, result = run("cmudict-taught", tmp_path, [1], steps, "--before", before)
    assert result["seeds"][0]["rows"] == 2
    log = (tmp_path / "out" / "seed-1.log").read_text("utf-8")
    assert f"--model_name_or_path {before}/seed-1 --teachers {before}/seed-0 {before}/seed-1 {before}/seed-2 " in log
    assert f"{len((before / 'with-invented.tsv').read_text().splitlines())} training pairs, the first " in log
    shutil.copy(before / "with-invented.tsv", before / "with-words.tsv")
    run("cmudict-words", tmp_path, [2], steps, "--before", before)
    log = (tmp_path / "out" / "seed-2.log").read_text("utf-8")
    assert f"--train_file {before}/with-words.tsv --model_name_or_path {before}/seed-2 --config_overrides " in log

    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    recipes = tmp_path / "examples" / "recipes"
    plan = {"all": [*steps.split(), "true"], "rows": [{"name": "no teachers", "without": ["--teachers"]}]}
    (recipes / "cmudict-taught" / "ablation.json").write_text(json.dumps(plan), "utf-8")
    command = [sys.executable, recipes / "ablate.py", "cmudict-taught", tmp_path / "data", "--seeds", 1]
    command += ["--before", before, "--output", tmp_path / "ablation"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    logs = [(tmp_path / "ablation" / row / "seed-1.log").read_text("utf-8") for row in ("unchanged", "no-teachers")]
    assert ["--teachers" in log for log in logs] == [True, False]
    assert all(f"--model_name_or_path {before}/seed-1 " in log for log in logs)


@pytest.mark.slow
def test_an_ablation_measures_what_is_missing(tmp_path: Path) -> None:
    """A row trained otherwise, and one scored otherwise; the second time only a new seed."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    recipes, data, output = tmp_path / "examples" / "recipes", tmp_path / "data", tmp_path / "out"
    data.mkdir()
    for name, text in DATA["ar2en"].items():
        (data / name).write_text(text, "utf-8")
    plan = {
        "every": 2,
        "all": ["--max_steps", 2, "--logging_steps", 1, "--use_cpu", "true"],
        "rows": [
            {"name": "no average", "without": ["--moving_average"]},
            {"name": "greedy", "score": ["--num-beams", 1]},
        ],
    }
    (recipes / "ar2en" / "ablation.json").write_text(json.dumps(plan), "utf-8")
    for seeds in (["0"], ["0", "4"]):
        chosen = [part for seed in seeds for part in ("--seeds", seed)]
        command = [sys.executable, recipes / "ablate.py", "ar2en", data, *chosen, "--output", output]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        measured = re.findall(r"^(.+), seed (\d)", done.stdout, re.M)
        assert sorted(measured) == sorted((row, seeds[-1]) for row in ("unchanged", "no average", "greedy"))
    changed = {**plan, "all": ["--max_steps", 3, *plan["all"][2:]]}
    (recipes / "ar2en" / "ablation.json").write_text(json.dumps(changed), "utf-8")
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert "has unchanged, no average, greedy by another plan: name another --output" in done.stderr
    rows = json.loads((output / "ablation_results.json").read_text("utf-8"))["rows"]
    assert all(set(found) == {"0", "4"} for found in rows.values())
    weights = {row: found["0"]["weights_sha256"] for row, found in rows.items()}
    assert weights["greedy"] == weights["unchanged"] != weights["no average"]
    log = (output / "no-average" / "seed-0.log").read_text("utf-8")
    assert "--moving_average" not in log
    lines = DATA["ar2en"]["ar2en-train.txt"].splitlines()
    assert f"parameters; {len(lines[::2])} training pairs, the first " in log
    assert (output / "ar2en-train.txt").read_text("utf-8").splitlines() == lines[::2]


def test_a_change_is_reported_seed_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RECIPES))
    import ablate
    import report

    base = {"0": {"wer": 50.0}, "1": {"wer": 60.0}}
    rows = {"unchanged": base, "worse": {"0": {"wer": 51.0}, "1": {"wer": 63.0}}, "one seed": {"1": {"wer": 59.0}}}
    head = {"recipe": "ar2en", "metric": "wer", "hardware": "a machine", "date": "2026-01-02"}
    head["all"] = ["--max_steps", 2]
    sampled = report.ablation({**head, "rows": rows, "every": 5})
    assert sampled.startswith("**ar2en**, one in 5 of its training lines, with `--max_steps 2`, 2 seeds")
    table = report.ablation({**head, "rows": rows}).splitlines()
    assert table[0] == "**ar2en** with `--max_steps 2`, 2 seeds, a machine, 2026-01-02:"
    assert table[-3:] == [
        "| unchanged | 55.00 (50.00 to 60.00) |  |",
        "| worse | 57.00 (51.00 to 63.00) | +2.00 (+1.00 to +3.00) |",
        "| one seed | 59.00 | -1.00 |",
    ]
    assert ablate.leave_out(["--a", 1, "--b", 2, 5, "--c", 3, "--b", -4], ["--b"]) == ["--a", 1, "--c", 3]
    with pytest.raises(ValueError, match="--d"):
        ablate.leave_out(["--a", 1], ["--d"])


def test_a_run_of_several_sittings_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RECIPES))
    import report

    seed = {"bleu": 40.0, "epochs": 60.0, "parameters": 1000}
    result = {"recipe": "multi30k", "scores": {"bleu": {}}, "longest_training": 90, "hardware": "two", "date": "today"}
    for more, training in (({}, "1.5 minutes"), ({"resumed": True}, "in several sittings")):
        line = report.row({**result, "seeds": [{**seed, **more}]}, "multi30k/results-x.json")
        assert line.startswith("| [multi30k](multi30k/results-x.json) | 1 | BLEU 40.00 | - | 1,000 | 60 epochs, ")
        assert f"{training}; two | today |" in line


def test_ablations_change_arguments_that_recipes_have() -> None:
    for file in RECIPES.glob("*/ablation.json"):
        plan = json.loads(file.read_text("utf-8"))
        arguments = json.loads((file.parent / "recipe.json").read_text("utf-8"))["train"]
        for row in plan["rows"]:
            assert set(row.get("without", [])) <= set(arguments), row["name"]
            assert row.keys() & {"train", "without", "score"}, row["name"]
            for part in ("train", "score"):
                assert all(str(option).startswith("--") for option in row.get(part, [])[::2]), row["name"]


@pytest.mark.parametrize(
    ("more", "kept"),
    [
        ([], False),
        (["--resume_from_checkpoint", "x"], True),
        (["--resume_from_checkpoint=x"], True),
        (["--resume-from-checkpoint", "x"], True),
        (["--resume_from", "x"], True),
    ],
)
def test_only_a_resumed_run_keeps_checkpoints(
    more: list[str], kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("run")
    monkeypatch.setattr(module, "python", lambda *_, **__: sys.exit("training"))
    checkpoint = tmp_path / "seed-0" / "checkpoint-9"
    checkpoint.mkdir(parents=True)
    with pytest.raises(SystemExit, match="training"):
        module.run_seed({"train": []}, {}, tmp_path, 0, more)
    assert checkpoint.exists() == kept


@pytest.mark.parametrize(
    ("more", "newer", "given", "machine"),
    [
        ([], True, ["--dataloader_num_workers", "1", "--tf32", "true"], "a card, "),
        ([], False, ["--dataloader_num_workers", "1"], "a card, "),
        (["--use_cpu", "true"], True, [], "no GPU"),
        (["--use_cpu=true"], True, [], "no GPU"),
    ],
)
def test_a_gpu_is_used_as_far_as_it_goes(
    more: list[str], newer: bool, given: list[str], machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers refuses --tf32 on cards before Ampere."""
    module = importlib.import_module("run")
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(module, "python", lambda *command, **_: (commands.append(command), sys.exit("training")))
    monkeypatch.setattr(module.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(module.torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(module, "is_torch_tf32_available", lambda: newer)
    with pytest.raises(SystemExit, match="training"):
        module.run_seed({"train": []}, {}, tmp_path, 0, more)
    after = commands[0].index("--output_dir") + 2
    assert list(commands[0][after:]) == [*given, *more]
    assert machine in module.hardware(["--bf16", *more])


@pytest.mark.parametrize(
    ("more", "found"),
    [
        (["--a", "1"], (["--a", "1"], [])),
        (
            ["--a", "1", "--resume-from-checkpoint", "true", "--b"],
            (["--a", "1", "--b"], ["--resume-from-checkpoint", "true"]),
        ),
        (["--resume_from=x", "--b"], (["--b"], ["--resume_from=x"])),
    ],
)
def test_resuming_is_told_from_other_arguments(more: list[str], found: tuple[list[str], list[str]]) -> None:
    assert importlib.import_module("run").part_resuming(more) == found


@pytest.mark.parametrize(
    ("checkpoint", "source", "resumed"),
    [("seed-0", "true", True), ("seed-1", "true", False), ("seed-1", "elsewhere", True)],
)
def test_a_seed_that_has_not_begun_is_not_resumed(
    checkpoint: str, source: str, resumed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("run")
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(module, "python", lambda *command, **_: (commands.append(command), sys.exit("training")))
    (tmp_path / checkpoint / "checkpoint-9").mkdir(parents=True)
    with pytest.raises(SystemExit, match="training"):
        module.run_seed({"train": []}, {}, tmp_path, 0, ["--bf16", "--resume_from_checkpoint", source])
    assert "--bf16" in commands[0]
    assert ("--resume_from_checkpoint" in commands[0]) == resumed


def test_a_finished_seed_is_kept_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("run")
    trained: list[int] = []

    def train(_recipe: Any, _data: Path, _output: Path, seed: int, _more: list[str]) -> dict[str, int]:
        if seed == 2:
            raise SystemExit("interrupted")
        trained.append(seed)
        return {"seed": seed, "trained": len(trained)}

    monkeypatch.setattr(module, "run_seed", train)
    asked = ({"train": ["x"]}, {}, tmp_path)
    first = [module.run_or_keep(*asked, seed, ["--y"], False) for seed in (0, 1)]
    with pytest.raises(SystemExit, match="interrupted"):
        module.run_or_keep(*asked, 2, ["--y"], True)
    again = ["--resume_from_checkpoint", "true", "--y"]
    assert [module.run_or_keep(*asked, seed, again, True) for seed in (0, 1)] == first
    assert trained == [0, 1], "the record of a seed outlives what comes after it"
    with pytest.raises(SystemExit, match=r"seed-0\.json is of another recipe or --train"):
        module.run_or_keep(*asked, 0, ["--z"], True)
    assert module.run_or_keep(*asked, 0, ["--z"], False) == {"seed": 0, "trained": 3}, "not asked to keep it"


def test_a_failure_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    command = [RECIPES / "run.py", "ar2en", tmp_path / "data", "--seeds", "0", "--output", tmp_path / "out"]
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    assert done.returncode
    assert "No such file" in done.stderr
    for arguments, message in (
        (["x", tmp_path], "no recipe 'x'"),
        (["ar2en", tmp_path / "y"], "no such folder"),
        (["cmudict-taught", tmp_path], "cmudict-taught goes on from another recipe: --before runs/cmudict."),
    ):
        done = subprocess.run(
            [sys.executable, str(RECIPES / "run.py"), *map(str, arguments)], capture_output=True, text=True
        )
        assert done.returncode
        assert message in done.stderr


def test_the_page_says_what_the_result_files_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RECIPES))
    import report

    assert report.rendered_page() == (RECIPES / "README.md").read_text("utf-8"), "run examples/recipes/report.py"


def test_commands_on_the_page_name_recipes() -> None:
    page = (RECIPES / "README.md").read_text("utf-8")
    commands = [shlex.split(line)[2] for line in re.findall(r"^python examples/recipes/run\.py .*", page, re.M)]
    assert sorted(set(commands)) == sorted(path.parent.name for path in RECIPES.glob("*/recipe.json"))
    ablated = [shlex.split(line)[2] for line in re.findall(r"^python examples/recipes/ablate\.py .*", page, re.M)]
    assert ablated == sorted(path.parent.name for path in RECIPES.glob("*/ablation.json"))
    folders = set()
    for line in re.findall(r"^python examples/sentiment\.py .*", page, re.M):
        (arguments,) = HfArgumentParser(sentiment.Arguments).parse_args_into_dataclasses(shlex.split(line)[2:])
        assert arguments.seeds == [0, 1, 2]
        folders.add(arguments.output_dir.name)
    assert folders == {path.stem.partition("-")[0] for path in (RECIPES / "sentiment").glob("*.json")}
