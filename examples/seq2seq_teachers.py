"""Checkpoints that another model is to learn from."""

from typing import Any

from transformers import AutoModelForSeq2SeqLM, AutoTokenizer


def load_teachers(folders: list[str], tokenizer: Any) -> list[Any]:
    """Raises ValueError for one of another vocabulary."""
    for folder in folders:
        if vocabularies(AutoTokenizer.from_pretrained(folder)) != vocabularies(tokenizer):
            raise ValueError(f"--teachers: {folder} has another vocabulary than the model that is to learn from it.")
    return [AutoModelForSeq2SeqLM.from_pretrained(folder) for folder in folders]


def vocabularies(tokenizer: Any) -> tuple[dict[str, int], dict[str, int]]:
    """Of what it reads, and of what it writes."""
    read = tokenizer.get_vocab()
    tokenizer._switch_to_target_mode()
    written = tokenizer.get_vocab()
    tokenizer._switch_to_input_mode()
    return read, written
