"""Checkpoints that `train_seq2seq.py` goes on or learns from, and whether they go with tokenizer and lengths."""

from pathlib import Path
from typing import Any

from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.trainer_utils import get_last_checkpoint

from dragoman import DragomanTrainingArguments
from dragoman.pipelines import UNBOUNDED


def choose_checkpoint(args: DragomanTrainingArguments) -> str | None:
    """To go on from. Raises ValueError if there is none; or one though none is wanted: it would outlive new ones."""
    wanted, folder = args.resume_from_checkpoint, args.output_dir
    if not args.do_train and wanted in ("true", "True") and Path(folder, "config.json").is_file():
        return folder  # what training ended with: an average, or the best one
    found = get_last_checkpoint(folder) if Path(folder).is_dir() else None
    if wanted in ("true", "True") and found is None:
        raise ValueError(f"--resume_from_checkpoint true: {folder} has no checkpoint-* to go on from.")
    if args.do_train and wanted is None and found is not None:
        raise ValueError(f"{found} is of a run before: name a new --output_dir, or --resume_from_checkpoint true.")
    if wanted not in ("true", "True"):
        return wanted
    # The state is written last, and a run may have been killed before.
    states = Path(folder).glob("checkpoint-*/trainer_state.json")
    whole = {int(steps): path.parent for path in states if (steps := path.parent.name.rpartition("-")[2]).isdigit()}
    if not whole:
        raise ValueError(f"{found} was cut off while it was written, and there is none before it: begin anew.")
    return str(whole[max(whole)])


def load_teachers(folders: list[str], tokenizer: Any) -> list[Any]:
    """Raises ValueError for one of another vocabulary."""
    for folder in folders:
        if vocabularies(AutoTokenizer.from_pretrained(folder)) != vocabularies(tokenizer):
            raise ValueError(f"--teachers: {folder} has another vocabulary than the model that is to learn from it.")
    return [AutoModelForSeq2SeqLM.from_pretrained(folder) for folder in folders]


def vocabularies(tokenizer: Any) -> tuple[dict[str, int], dict[str, int]]:
    """Of what it reads, and of what it writes."""
    read = tokenizer.get_vocab()
    if not hasattr(tokenizer, "_switch_to_target_mode"):
        return read, read
    tokenizer._switch_to_target_mode()
    written = tokenizer.get_vocab()
    tokenizer._switch_to_input_mode()
    return read, written


def check_same_ids(tokenizer: Any, folder: str) -> None:
    """Raises ValueError for a tokenizer that calls something else by the numbers of the one saved with a model."""
    if not Path(folder, "tokenizer_config.json").is_file():
        return
    for saved, given in zip(vocabularies(AutoTokenizer.from_pretrained(folder)), vocabularies(tokenizer), strict=True):
        for token, number in given.items():
            if saved.get(token, number) != number:
                raise ValueError(
                    f"--tokenizer_name_or_path: {token!r} is token {number} there, and {saved[token]} of the model in "
                    f"{folder}, which was trained with another vocabulary."
                )


def check_fits(model: Any, tokenizer: Any, max_source_length: int, max_target_length: int) -> None:
    """Raises ValueError for what would fail after hours, at the first long text or rare token, or not at all."""
    if getattr(model, "is_int8", False):
        raise ValueError("A Trainer takes no int8 model, not even to evaluate: score.py does, or dequantize() it.")
    sides = len(model.get_input_embeddings().weight), len(model.get_output_embeddings().weight)
    for side, vocabulary, size in zip(("source", "target"), vocabularies(tokenizer), sides, strict=True):
        token, last = max(vocabulary.items(), key=lambda item: item[1])
        if last >= size:
            raise ValueError(f"The tokenizer's {token!r} is {side} token {last}, and the model has {size} of them.")
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None or getattr(model.config, "position_encoding", None) in UNBOUNDED:
        return
    for name, limit in (("max_source_length", max_source_length), ("max_target_length", max_target_length)):
        if limit > positions:
            raise ValueError(f"--{name} {limit}: the model has {positions} positions; pass --{name} {positions}.")
