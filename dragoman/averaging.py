"""The mean of several checkpoints of one training run."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    TrainerState,
)
from transformers.models.auto import modeling_auto
from transformers.trainer_utils import sort_checkpoints

from .modeling.checkpoint_files import check_files, shard_names

NOT_COMPARED = ("transformers_version", "dragoman_version", "_name_or_path")  # fields that change no weight


def average_checkpoints(
    folders: str | Path | Sequence[str | Path],
    *,
    last: int | None = None,
    best: int | None = None,
    metric_for_best_model: str | None = None,
    greater_is_better: bool | None = None,
) -> PreTrainedModel:
    """A model whose every weight is ``Σᵢ wᵢ / n`` over n checkpoints (Vaswani et al., 2017, section 6.1).

    ``folders`` are the checkpoints, or a Trainer's ``output_dir`` with ``last=n`` or ``best=n`` of those saved in it.
    The sum is taken in float64, one checkpoint at a time in memory beside it; the mean has the dtype of the weights.
    What is no floating-point number (counters) and the generation config are the last one's.

    The best are those of the highest, or lowest, ``metric_for_best_model`` in ``trainer_state.json``, by default the
    one the Trainer itself chose its best by, else ``eval_loss``; ``greater_is_better`` as TrainingArguments has it.

    Raises:
        ValueError: for too few checkpoints, unknown metrics, or checkpoints that differ in configuration, names or
            shapes: the differences are named.
        OSError: for a folder without whole safetensors weights.
    """
    chosen = select_checkpoints(folders, last, best, metric_for_best_model, greater_is_better)
    check_alike(chosen)
    total: dict[str, Tensor] = {}
    for folder in chosen:
        model: Any = None  # the one before leaves memory first
        model = load(folder)
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                total[name] = total.get(name, 0.0) + tensor.double()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name in total:
                tensor.copy_(total.pop(name) / len(chosen))
    return model


def select_checkpoints(
    folders: str | Path | Sequence[str | Path],
    last: int | None = None,
    best: int | None = None,
    metric_for_best_model: str | None = None,
    greater_is_better: bool | None = None,
) -> list[Path]:
    """The folders that `average_checkpoints` takes the mean of, in the order of their steps."""
    if not isinstance(folders, str | Path):
        if last is not None or best is not None:
            raise ValueError("last=... and best=... choose from a Trainer's output_dir: pass that instead of a list.")
        if not folders:
            raise ValueError("There are no checkpoints to average: the list of folders is empty.")
        return [Path(folder) for folder in folders]
    if (last is None) == (best is None):
        raise ValueError(f"Choose from the checkpoints in {folders}: last=10, or best=5.")
    if best is None and (metric_for_best_model is not None or greater_is_better is not None):
        raise ValueError(
            f"metric_for_best_model={metric_for_best_model!r}, greater_is_better={greater_is_better!r} choose the "
            f"best, and last={last} the last: pass best={last}, or leave them out."
        )
    count = last if best is None else best
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"{'last' if best is None else 'best'}={count!r} must be a whole number above 0.")
    if not Path(folders).is_dir():
        raise ValueError(f"{folders}: no such folder.")
    found = [Path(folder) for folder in sort_checkpoints(str(folders)) if folder.rpartition("-")[2].isdigit()]
    if len(found) < count:
        raise ValueError(
            f"{count} checkpoints wanted, but {folders} has {len(found)} (checkpoint-*): ask for fewer, or train with "
            "a larger save_total_limit and more frequent saving."
        )
    if best is None:
        return of_one_run(found[-count:])
    values, greater = read_metric(found, metric_for_best_model, greater_is_better)
    numbers = [i for i, value in enumerate(values) if not math.isnan(value)]
    if len(numbers) < count:
        raise ValueError(f"{count} checkpoints wanted, but only {len(numbers)} in {folders} have a number.")
    order = sorted(numbers, key=lambda i: -values[i] if greater else values[i])
    return of_one_run([found[i] for i in sorted(order[:count])])


def of_one_run(folders: list[Path]) -> list[Path]:
    """The same folders. Raises ValueError where one logged another loss than the last had at the same step."""

    def losses(folder: Path) -> dict[int, str]:
        file = folder / "trainer_state.json"
        history = json.loads(file.read_text("utf-8")).get("log_history", []) if file.is_file() else []
        return {entry["step"]: str(entry["loss"]) for entry in history if "loss" in entry}  # nan is nan

    final = losses(folders[-1])
    for folder in folders[:-1]:
        if any(loss != final.get(step, loss) for step, loss in losses(folder).items()):
            raise ValueError(
                f"{folder} and {folders[-1]} are of two training runs: their losses differ. Delete those of the run "
                "that is not wanted, or pass a list of folders to average_checkpoints()."
            )
    return folders


def read_metric(folders: list[Path], metric: str | None, greater: bool | None) -> tuple[list[float], bool]:
    """Its value at each checkpoint, and whether more of it is better."""
    file = folders[-1] / "trainer_state.json"
    if not file.is_file():
        raise ValueError(f"{file} is missing, which tells the best checkpoints: use last=...")
    state = TrainerState.load_from_json(str(file))
    history = {(name, entry["step"]): value for entry in state.log_history for name, value in entry.items()}
    if metric is None:
        chosen = (name for (name, step), value in history.items() if is_best(state, name, step, value))
        metric = next(chosen, "eval_loss")
    metric = metric if metric.startswith("eval_") else f"eval_{metric}"
    values = {step: value for (name, step), value in history.items() if name == metric}
    steps = [int(folder.name.rpartition("-")[2]) for folder in folders]
    if not values.keys() & set(steps):
        known = sorted({name for name, _ in history if name.startswith("eval_")})
        raise ValueError(
            f"{file} has no {metric} at any of the steps {steps} (it knows "
            f"{', '.join(known) or 'no evaluation'}): train with eval_strategy and save_strategy alike, or use last=..."
        )
    if greater is None:
        greater = not metric.endswith("loss")  # as TrainingArguments do
        if state.best_metric is not None and values.get(state.best_global_step) == state.best_metric:
            greater = state.best_metric == max(value for value in values.values() if not math.isnan(value))
    return [values.get(step, math.nan) for step in steps], greater  # what ends a sitting is not evaluated


def is_best(state: TrainerState, name: str, step: int, value: Any) -> bool:
    return name.startswith("eval_") and step == state.best_global_step and value == state.best_metric


def check_alike(folders: list[Path]) -> None:
    """Raises ValueError naming what differs from the first one, without loading a weight."""
    first: tuple[dict[str, Any], dict[str, Any]] | None = None
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder.")
        config = AutoConfig.from_pretrained(folder).to_dict()
        if config.get("quantization_config"):
            raise ValueError(f"{folder} is quantized: average the checkpoints that it was made from.")
        fields = {name: value for name, value in config.items() if name not in NOT_COMPARED}
        found = fields, read_shapes(folder)
        first = first or found
        for what, ours, theirs in zip(("configuration", "weights"), first, found, strict=True):
            differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
            if differing:
                shown = ", ".join(f"{name} ({ours.get(name)} and {theirs.get(name)})" for name in differing[:3])
                raise ValueError(
                    f"{folders[0]} and {folder} differ in their {what}: {shown}"
                    f"{f' and {len(differing) - 3} more' if len(differing) > 3 else ''}. Only checkpoints of one "
                    "training run can be averaged."
                )


def read_shapes(folder: Path) -> dict[str, list[int]]:
    """Of all weights, by name, from the headers of the files."""
    check_files(folder)
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if not single.is_file() and not index.is_file():
        raise OSError(f"{folder} has no model.safetensors: is it a checkpoint?")
    shapes: dict[str, list[int]] = {}
    for file in [single] if single.is_file() else [folder / name for name in shard_names(index)]:
        with safe_open(file, "pt") as weights:
            shapes |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    return shapes


def load(folder: Path) -> PreTrainedModel:
    """As the class that saved it, of those that transformers, or dragoman by it, has for its configuration."""
    config = AutoConfig.from_pretrained(folder)
    name = (config.architectures or [None])[0]
    for auto in vars(modeling_auto).values():
        mapping = getattr(auto, "_model_mapping", None) or {}
        kinds = mapping.get(type(config), ())
        for kind in kinds if isinstance(kinds, tuple) else (kinds,):
            if kind.__name__ == name:
                return kind.from_pretrained(folder)
    raise ValueError(
        f"{folder / 'config.json'} has architectures={config.architectures!r}, and no such class is known for "
        f"{config.model_type!r}: write there the class that the weights are of, such as T5ForConditionalGeneration."
    )


def copy_tokenizer(folder: Path, target: Path) -> None:
    """If the Trainer saved one there, its ``processing_class``."""
    if (folder / "tokenizer_config.json").is_file():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except (ValueError, OSError) as error:
            raise ValueError(f"The tokenizer in {folder} cannot be read: {error}") from error
        tokenizer.save_pretrained(target)
