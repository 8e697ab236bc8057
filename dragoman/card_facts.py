"""What a model card says: read from the files of its folder, so that it is the same whatever was saved last."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

import torch
import transformers

from .configuration.base_configuration import VERSION
from .hub import OWNERS, owner_of, relies_on_code
from .modeling.checkpoint_files import check_safetensors, read_object, shard_names
from .modeling.int8_loading import METHOD
from .muon import MuonAdamW

CONFIG, TOKENIZER_CONFIG = OWNERS  # the two files that say whose folder it is
TAGS = ["dragoman", "encoder-decoder"]
SPLITS = {"eval": "validation", "predict": "test", "test": "test"}  # by the prefix that a Trainer gives
STATE = "state"  # the part of its reports that is of no split
COMMON = (
    "vocab_size source_vocab_size hidden_size position_encoding norm_type norm_placement "
    "num_hidden_layers cell bidirectional attention input_feeding"  # of recurrent models
).split()
CLASSIFIER = ("num_labels", "pooling", "classifier_backbone")
SIDED = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
_SAMPLE = 64  # bytes of each weight that tell two trainings apart
# Of a Trainer's reports: what measures the machine, not the model.
_MACHINE = ("runtime", "samples", "samples_per_second", "steps_per_second", "epoch", "step", "model_preparation_time")


def gather(folder: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Everything known of a folder. What ``known`` holds stays where the folder lacks the files it came from."""
    weights = weight_facts(folder)
    facts = {
        "model": model_facts(folder, weights) or known.get("model"),
        "tokenizer": tokenizer_facts(folder) or known.get("tokenizer"),
        "training": training_facts(folder, weights.get("digest"), known.get("training") or {}),
        "stated": known.get("stated"),  # by whoever called create_model_card
        "conversion": conversion_facts(weights.get("digest"), known.get("conversion") or {}),
    }
    return {name: value for name, value in facts.items() if value}


def model_facts(folder: Path, weights: Mapping[str, Any]) -> dict[str, Any]:
    owner, fields = owner_of(folder / CONFIG)
    if owner is None:
        return {}
    try:
        config = owner.from_dict(dict(fields))
    except Exception:  # loading reports it
        return {}
    facts = {"architecture": (config.architectures or [owner.__name__])[0], "has_code": relies_on_code(fields)}
    facts |= {name: weights[name] for name in ("parameters", "dtype") if name in weights}
    if (fields.get("quantization_config") or {}).get("quant_method") == METHOD:
        facts["dtype"] = "int8 weights with fp32 scales, for the CPU"
    if facts["architecture"] == "DragomanForSequenceClassification":
        facts |= {name: getattr(config, name) for name in CLASSIFIER}
    sided = [f"{side}_{name}" for name in SIDED for side in ("encoder", "decoder")]
    values = {field.name: getattr(config, field.name) for field in fields_of(config)}
    return facts | {name: values[name] for name in (*COMMON, *sided) if values.get(name) is not None}


def tokenizer_facts(folder: Path) -> dict[str, Any]:
    owner, fields = owner_of(folder / TOKENIZER_CONFIG)
    if owner is None:
        foreign = str(fields.get("tokenizer_class") or "")  # a converted model keeps the tokenizer of its family
        return {"languages": [], "has_code": True} if hasattr(transformers, foreign) else {}
    return {"languages": list(fields.get("languages") or []), "has_code": relies_on_code(fields)}


def conversion_facts(weights: str | None, known: Mapping[str, Any]) -> dict[str, Any]:
    """Where the weights came from, and what was verified of them, until they are trained further."""
    return dict(known) if weights is None or known.get("weights") == weights else {}


def weight_facts(folder: Path) -> dict[str, Any]:
    """Number of parameters, dtype, and a digest of a few bytes of every weight; nothing for what cannot be read."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    parameters, dtypes, digest = 0, set(), hashlib.sha256()
    try:
        shards = [whole] if whole.is_file() else [folder / name for name in shard_names(index)]
        weights: dict[str, tuple[Path, int, Mapping[str, Any]]] = {}
        for shard in shards:
            check_safetensors(shard)
            with shard.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
            weights |= {name: (shard, 8 + length, entry) for name, entry in header.items() if name != "__metadata__"}
        for name, (shard, start, entry) in sorted(weights.items()):
            parameters += math.prod(entry["shape"])
            dtypes.add(str(entry["dtype"]))
            begin, end = entry["data_offsets"]
            with shard.open("rb") as file:
                file.seek(start + begin)
                digest.update(f"{name} {entry['dtype']} {entry['shape']}".encode())
                digest.update(file.read(min(_SAMPLE, end - begin)))
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {"parameters": parameters, "dtype": ", ".join(sorted(dtypes)), "digest": digest.hexdigest()}


def training_facts(folder: Path, weights: str | None, known: Mapping[str, Any]) -> dict[str, Any]:
    """Results and arguments of the training that gave these weights; other weights take none over from ``known``."""
    if weights is None:
        return dict(known)
    own = dict(known) if known.get("weights") in (None, weights) else {}
    parts, before = report_parts(folder), known.get("reports") or {}
    digests = {name: hashlib.sha256(json.dumps(parts[name], sort_keys=True).encode()).hexdigest() for name in parts}
    if isinstance(before, str):  # of all parts together, in older cards
        before = {} if own else digests
    # The parts that nobody wrote anew told of the weights before, too.
    new = {name: part for name, part in parts.items() if digests[name] != before.get(name)}
    rows = [row for name, split in SPLITS.items() for row in result_rows(new.get(name, {}), split)]
    results = {(row["split"], row["metric"]): row for row in [*own.get("results", ()), *rows]}
    own |= {
        "results": list(results.values()),
        "arguments": state_arguments(new.get(STATE, {})) or own.get("arguments"),
        "reports": {**before, **digests},
        "weights": weights,
    }
    return {name: value for name, value in own.items() if value}


def report_parts(folder: Path) -> dict[str, dict[str, Any]]:
    """What ``Trainer.save_metrics`` and ``save_state`` left, by split: what was not measured anew stays in the file."""
    reports = []
    for name in ("all_results.json", "trainer_state.json"):
        try:
            reports.append(read_object(folder / name))
        except (OSError, ValueError):
            reports.append({})
    results, state = reports
    parts = {prefix: _without_prefix(results, f"{prefix}_") for prefix in SPLITS} | {STATE: state}
    return {name: part for name, part in parts.items() if part}


def state_arguments(state: Mapping[str, Any]) -> dict[str, Any]:
    arguments = {
        "training_steps": state.get("global_step"),
        "epochs": state.get("epoch"),
        "train_batch_size": state.get("train_batch_size"),
    }
    return {name: value for name, value in arguments.items() if isinstance(value, int | float)}


def summary_facts(summary: Any, trainer: Any) -> dict[str, Any]:
    """What transformers' ``TrainingSummary`` knows of a live Trainer, and what is DragomanTrainer's own."""
    evaluation = {name.lower().replace(" ", "_"): value for name, value in (summary.eval_results or {}).items()}
    dataset = {
        "name": _first(summary.dataset),
        "type": _first(summary.dataset_tags),
        "config": _first(summary.dataset_args),
        "split": next((entry.get("split") for entry in summary.dataset_metadata or []), None),
    }
    return {
        "results": result_rows(_without_prefix(evaluation, "eval_") or evaluation, "validation"),
        "arguments": {name: _plain(value) for name, value in trainer_arguments(summary, trainer).items()},
        "progress": [{name: _plain(v) for name, v in line.items()} for line in summary.eval_lines or []],
        "dataset": {name: value for name, value in dataset.items() if value is not None},
        "versions": {"dragoman": VERSION, "transformers": transformers.__version__, "torch": str(torch.__version__)},
    }


def trainer_arguments(summary: Any, trainer: Any) -> dict[str, Any]:
    args, arguments = trainer.args, dict(summary.hyperparameters or {})
    if getattr(args, "tokens_per_batch", None):
        for rows in ("train_batch_size", "total_train_batch_size"):  # what the budget stands in for
            arguments.pop(rows, None)
        packing = {"packing": True} if args.packing else {}
        arguments = {"tokens_per_batch": args.tokens_per_batch, **packing, **arguments}
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)  # accelerate's wraps it
    if isinstance(optimizer, MuonAdamW):  # transformers names args.optim
        betas, eps = (optimizer.param_groups[-1][name] for name in ("betas", "eps"))
        arguments["optimizer"] = f"MuonAdamW, its AdamW with betas={betas} and epsilon={eps}"
    if trainer.teachers is not None:
        arguments["teachers"] = f"{len(trainer.teachers.models)}, with a weight of {trainer.teachers.weight}"
    return arguments


def stated_facts(summary: Any) -> dict[str, Any]:
    """What the caller of ``create_model_card`` said, and transformers found out, for the card's head."""
    return {
        "language": _listed(summary.language),
        "license": summary.license,
        "pipeline_tag": _first(summary.tasks),
        "base_model": summary.finetuned_from,
        "tags": [*TAGS, *_listed(summary.tags)],
        "datasets": _listed(summary.dataset_tags),
    }


def result_rows(metrics: Mapping[str, Any], split: str) -> list[dict[str, Any]]:
    """One row a metric that is a finite number."""
    return [
        {"split": split, "metric": name, "value": value}
        for name, value in metrics.items()
        if type(value) in (int, float) and math.isfinite(value) and not name.startswith(("mem_", *_MACHINE))
    ]


def _without_prefix(metrics: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(item) for item in value or () if item is not None]


def _first(value: Any) -> str | None:
    return next(iter(_listed(value)), None)


def _plain(value: Any) -> Any:
    """YAML keeps these types apart."""
    return value if isinstance(value, bool | int | float | str) else str(value)
