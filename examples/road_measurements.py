"""What is measured on the road to attention: training runs, speeds, and what heads are worth; each once, into a file.

A result is a JSON file whose name says what it is of. One that exists is not measured again, so a plan that was
interrupted goes on where it ended, and two processes may share a folder if they are given different models.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PrinterCallback, Seq2SeqTrainer, Seq2SeqTrainingArguments, set_seed

from processor_clock import ProcessorClock
from recall_tasks import VOCABULARY, make_batch
from road_models import build_config, build_model
from road_tasks import Task

RATES = (1e-3, 2e-3, 4e-3)  # the whole of tuning: each is tried once by every model on every task
TUNING_SHARE = 0.2  # of a run's time, a rate
WARMUP = 0.1  # of a run's time, short or long
Record = dict[str, Any]


def measured_once(path: Path, measure: Callable[[], Record], asked: Record) -> Record:
    """The record in ``path``; measured and written there first if there is none. A half-written one is never seen.

    Raises:
        ValueError: for a record of a plan that asked for something else.
    """
    if not path.is_file():
        record = measure() | conditions() | {"asked": asked}
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.unfinished")
        unfinished.write_text(json.dumps(record), "utf-8")
        unfinished.replace(path)
    record = json.loads(path.read_text("utf-8"))
    before = record.get("asked", {})
    unlike = [f"{name} {before.get(name)}, not {value}" for name, value in asked.items() if before.get(name) != value]
    if unlike:
        raise ValueError(
            f"{path} is of a plan with {', '.join(unlike)}: give this one another --output_dir, or delete that result."
        )
    return record


def conditions() -> Record:
    return {
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
    }


def train(task: Task, model_name: str, seed: int, rate: float, minutes: float, width: int, folder: Path) -> Any:
    """A model trained from scratch for ``minutes`` of processor time by the stock Seq2SeqTrainer, which is returned."""
    set_seed(seed)
    model = build_model(build_config(model_name, task.fields, task.both_ways, width))
    if task.max_length is not None:
        model.generation_config.max_length = task.max_length
    trainer = Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(
            output_dir=str(folder),
            num_train_epochs=1000,  # the clock ends it
            learning_rate=rate,
            adam_beta2=0.98,
            warmup_steps=WARMUP,
            logging_steps=20,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=seed,
            use_cpu=not torch.cuda.is_available(),
            **task.training_arguments(),
        ),
        callbacks=[ProcessorClock(minutes, schedule_by_clock=True)],
        **task.trainer_options(seed),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


def try_rate(task: Task, model_name: str, rate: float, minutes: float, width: int, folder: Path) -> Record:
    """The validation loss that a learning rate reaches in a share of a run's time."""
    trainer = train(task, model_name, 0, rate, TUNING_SHARE * minutes, width, folder)
    return {"rate": rate, "loss": trainer.evaluate()["eval_loss"]}


def tune(task: Task, model_name: str, folder: Path, asked: Record) -> float:
    """The learning rate of the lowest validation loss."""
    tried = []
    for rate in RATES:
        path = folder / task.name / f"{model_name}-rate-{rate:g}.json"
        attempt = partial(try_rate, task, model_name, rate, asked["minutes"], asked["width"], path.with_suffix(""))
        tried.append(measured_once(path, attempt, asked))
    return min(tried, key=lambda record: record["loss"])["rate"]


def run(task: Task, model_name: str, seed: int, folder: Path, asked: Record) -> Record:
    """Tune, train and measure; the checkpoint lies beside the record. ``asked`` has the minutes, the width, ..."""
    path = record_path(folder, task.name, model_name, seed)

    def measure() -> Record:
        rate = tune(task, model_name, folder, asked)
        checkpoint = path.with_suffix("")
        trainer = train(task, model_name, seed, rate, asked["minutes"], asked["width"], checkpoint)
        trainer.save_model()
        model: PreTrainedModel = trainer.model.eval()
        logged = [(log["step"], log["loss"]) for log in trainer.state.log_history if "loss" in log]
        return {
            "task": task.name,
            "model": model_name,
            "seed": seed,
            "minutes": asked["minutes"],
            "parameters": model.num_parameters(),
            "hidden_size": model.config.hidden_size,
            "rate": rate,
            "steps": trainer.state.global_step,
            "losses": logged,
            "unit": task.unit,
            "metric": task.metric,
            "chance": task.chance,
            "points": [point._asdict() for point in task.measure(model)],
        }

    return measured_once(path, measure, asked)


def record_path(folder: Path, task: str, model_name: str, seed: int) -> Path:
    return folder / task / f"{model_name}-seed-{seed}.json"


def measure_speed(model_name: str, lengths: list[int], tokens: int, width: int, repeats: int = 5) -> Record:
    """Training tokens a second, source and target, by length: the copy task in batches of ``tokens`` symbols and ends.

    Forward, backward and optimiser step, one step to warm up, then the median of ``repeats``.
    """
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = build_model(build_config(model_name, {"vocab_size": VOCABULARY, "dropout": 0.0}, False, width))
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    speeds = []
    for length in lengths:
        rows = max(1, tokens // (2 * length))
        batch = make_batch("copy", length, rows, torch.Generator().manual_seed(0))
        inputs = {name: ids.to(device) for name, ids in batch.items()}
        seconds = []
        for _ in range(1 + repeats):
            start = time.perf_counter()
            model(**inputs).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        trained = sum(ids.numel() for ids in batch.values())
        speeds.append({"length": length, "tokens_per_second": trained / statistics.median(seconds[1:])})
    return {"model": model_name, "batch": tokens, "speeds": speeds}


@contextmanager
def without_head(attention: Any, head: int) -> Iterator[None]:
    """Nothing of ``head`` reaches the output: its columns of the output projection (C, H · D) are 0 for a while."""
    weight = attention.o_proj.weight
    columns = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
    kept = weight.detach()[:, columns].clone()
    with torch.no_grad():
        weight[:, columns] = 0
    try:
        yield
    finally:
        with torch.no_grad():
            weight[:, columns] = kept


def attention_parts(model: Any) -> Iterator[tuple[str, int, Any]]:
    """Every attention of a Transformer: which kind, in which layer."""
    for number, layer in enumerate(model.model.encoder.layers):
        yield "encoder", number, layer.self_attn
    for number, layer in enumerate(model.model.decoder.layers):
        yield "decoder", number, layer.self_attn
        yield "cross", number, layer.cross_attn


def measure_heads(model: Any, percent: Callable[[], float]) -> Record:
    """What ``percent`` loses without each head in turn, in points."""
    whole = percent()
    heads = []
    for part, layer, attention in attention_parts(model):
        for head in range(attention.q_proj.out_features // attention.head_dim):
            with without_head(attention, head):
                heads.append({"part": part, "layer": layer, "head": head, "lost": whole - percent()})
    return {"percent": whole, "heads": heads}


def mean_percent(points: list[Any]) -> float:
    """Over all sources, whatever their lengths."""
    records = [point if isinstance(point, dict) else point._asdict() for point in points]
    return sum(p["percent"] * p["sources"] for p in records) / sum(p["sources"] for p in records)
