"""The road to attention, measured: fixed context, looking back, and attention alone, with equal parameters.

    python examples/road_to_attention.py                              # everything; about an hour of one core
    python examples/road_to_attention.py --task recall-8 --models dot # a piece of it
    python examples/road_to_attention.py --report                     # pictures and docs/road_to_attention.md

Trains four models (--models) on every task, once a seed, after trying three learning rates for a fifth of a run's time
each, all of them once. Time is processor time of the process, so that a run is as long on a machine that is busy, or
that pauses it; --max_minutes sets another than the tasks' own. What is measured goes into files under --output_dir and
is not measured again, so that a plan that was stopped goes on where it ended. For two cores: two processes with
different models, and a thread each. Translation is measured with --task translation --train_file pairs.tsv.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, HfArgumentParser

from recall_tasks import TASKS
from road_measurements import mean_percent, measure_heads, measure_speed, measured_once, record_path, run
from road_models import MODELS, WIDTH
from road_report import gather_results, write_report
from road_tasks import Task, read_task

SPEED, HEADS = "speed", "heads"  # measurements that are no task of training
PLAN = ("width", "longest", "batch_tokens", "measured_rows", "measured_texts")  # what results differ by
DEFAULT_TASKS = ["words", *TASKS, SPEED, HEADS]
ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Arguments:
    task: list[str] = field(
        default_factory=lambda: list(DEFAULT_TASKS),
        metadata={
            "help": f"Of {', '.join(DEFAULT_TASKS)}, translation. speed: training tokens a second, on a machine with "
            "nothing else to do. heads: what each head of the Transformer of words is worth, once that is trained."
        },
    )
    models: list[str] = field(
        default_factory=lambda: [*MODELS, "one-head"],
        metadata={"help": f"Of {', '.join(MODELS)}; and one-head, the Transformer's ablation, on words only."},
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    max_minutes: float | None = field(
        default=None, metadata={"help": "Processor time a training run, in minutes. Else 1 for texts, 0.5 for recall."}
    )
    train_file: str | None = field(default=None, metadata={"help": "Of translation: .tsv, .csv or .jsonl."})
    output_dir: Path = field(default=Path("runs/road_to_attention"), metadata={"help": "Of results and checkpoints."})
    report: bool = field(default=False, metadata={"help": "Measure nothing; write page and pictures from the files."})
    docs_dir: Path = field(default=ROOT / "docs", metadata={"help": "Where page and pictures go."})
    threads: int = field(default=1, metadata={"help": "Of torch. Part of the conditions: keep it the same."})
    width: int = field(default=WIDTH, metadata={"help": "Hidden size of the Transformer, which sets the budget."})
    longest: int = field(default=512, metadata={"help": "Steps of recall, at most."})
    batch_tokens: int = field(
        default=1024, metadata={"help": "Source and target tokens a batch, of recall and speed; ends aside."}
    )
    measured_rows: int = field(
        default=200, metadata={"help": "Rows a length to measure recall on; a quarter for copies."}
    )
    measured_texts: int = field(default=4000, metadata={"help": "Held-out words or sentences to measure on, at most."})


def planned_models(task: str, models: list[str]) -> list[str]:
    """One head stands against four on words; elsewhere it is not part of the story."""
    return [model for model in models if model != "one-head" or task == "words"]


def load(arguments: Arguments, model: str) -> Any:
    """The checkpoint of a model of words, of the first seed."""
    folder = record_path(arguments.output_dir, "words", model, arguments.seeds[0]).with_suffix("")
    if not (folder / "config.json").is_file():
        raise ValueError(f"There is no trained {model} in {folder}: run --task words --models {model} first.")
    return AutoModelForSeq2SeqLM.from_pretrained(folder).eval()


def measure_heads_of_words(arguments: Arguments, task: Task) -> dict[str, Any]:
    model = load(arguments, "transformer")
    return measure_heads(model, lambda: mean_percent(task.measure(model)))


def measure_everything(arguments: Arguments) -> None:
    if arguments.max_minutes is not None and not arguments.max_minutes > 0:
        raise ValueError(f"--max_minutes must be above 0, not {arguments.max_minutes:g}.")
    sizes = arguments.longest, arguments.batch_tokens, arguments.measured_rows
    plan = {name: getattr(arguments, name) for name in PLAN}
    for name in sorted(arguments.task, key=lambda name: name == HEADS):  # which needs a trained model
        if name == SPEED:
            lengths = [2**power for power in range(3, arguments.longest.bit_length())]
            for model in (m for m in arguments.models if m in MODELS):
                path = arguments.output_dir / SPEED / f"{model}.json"
                speed = partial(measure_speed, model, lengths, arguments.batch_tokens, arguments.width)
                measured_once(path, speed, plan)
                print(f"{SPEED}, {model}: {path}", flush=True)
        elif name == HEADS:
            if "transformer" not in arguments.models:
                print(f"{HEADS}: not measured, for the transformer is not in --models", flush=True)
            else:
                task = read_task("words", *sizes, None, arguments.measured_texts // 4)
                path = arguments.output_dir / HEADS / "transformer.json"
                minutes = task.minutes if arguments.max_minutes is None else arguments.max_minutes
                asked = plan | {"minutes": minutes, "seed": arguments.seeds[0]}  # the model's, too
                measured_once(path, partial(measure_heads_of_words, arguments, task), asked)
                print(f"{HEADS}: {path}", flush=True)
        else:
            task = read_task(name, *sizes, arguments.train_file, arguments.measured_texts)
            for seed in arguments.seeds:
                for model in planned_models(name, arguments.models):
                    minutes = task.minutes if arguments.max_minutes is None else arguments.max_minutes
                    pairs = arguments.train_file if name == "translation" else None
                    asked = plan | {"minutes": minutes, "train_file": pairs}
                    record = run(task, model, seed, arguments.output_dir, asked)
                    shown = ", ".join(f"{p['length']}: {p['percent']:.1f}" for p in record["points"])
                    print(f"{name}, {model}, seed {seed}: {record['parameters']:,} parameters; {shown}", flush=True)


def report(arguments: Arguments) -> None:
    names = [name for name in arguments.task if name not in (SPEED, HEADS)]
    paths = {
        (name, model, seed): record_path(arguments.output_dir, name, model, seed)
        for name in names
        for model in planned_models(name, [*MODELS, "one-head"])
        for seed in arguments.seeds
    }
    others = [arguments.output_dir / SPEED / f"{model}.json" for model in MODELS]
    others.append(arguments.output_dir / HEADS / "transformer.json")
    missing = [path for path in [*paths.values(), *others] if not path.is_file()]
    if missing:
        raise ValueError(f"{len(missing)} results are missing, such as {missing[0]}: run without --report first.")
    if "words" not in names:
        raise ValueError("The report shows alignments and heads of the task words: leave it in --task.")
    models = {model: load(arguments, model) for model in ("additive", "transformer")}
    tokenizer = AutoTokenizer.from_pretrained(models["transformer"].name_or_path)
    results = gather_results(paths.values(), others[:-1], others[-1])
    write_report(results, models, tokenizer, ROOT / "docs" / "stability.csv", arguments.docs_dir)


def main(argv: list[str] | None = None) -> None:
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(argv)
    torch.set_num_threads(arguments.threads)
    try:
        unknown = set(arguments.task) - {*DEFAULT_TASKS, "translation"}
        unknown |= set(arguments.models) - {*MODELS, "one-head"}
        if unknown:
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}; see --help for tasks and models.")
        report(arguments) if arguments.report else measure_everything(arguments)
    except (ValueError, OSError) as error:
        raise SystemExit(f"road_to_attention: {error}") from error


if __name__ == "__main__":
    main()
