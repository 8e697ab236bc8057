"""Pairs of texts for `train_seq2seq.py`, turned into ids."""

import logging

from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from dragoman import backwards
from seq2seq_data import DataError

logger = logging.getLogger("train_seq2seq")


def encode_for_training(
    pairs: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_source_length: int,
    max_target_length: int,
    both_ways: bool = False,
) -> Dataset:
    """`input_ids` and `labels`. Longer pairs are left out: a cut pair would teach to stop halfway."""
    encoded = _encode(pairs, tokenizer)
    if both_ways:
        encoded = concatenate_datasets([encoded, encoded.map(backwards, fn_kwargs={"tokenizer": tokenizer})])
    sides = zip(encoded["input_ids"], encoded["labels"], strict=True)
    kept = [n for n, (s, t) in enumerate(sides) if len(s) <= max_source_length and len(t) <= max_target_length]
    dropped = len(encoded) - len(kept)
    limits = f"{max_source_length} source or {max_target_length} target tokens"
    if not kept:
        raise DataError(f"All {dropped} training pairs are longer than {limits}: see --max_source_length.")
    if dropped:
        logger.warning(f"Left out {dropped} of {len(encoded)} training pairs: longer than {limits}.")
    return encoded.select(kept)


def encode_for_evaluation(
    pairs: Dataset, tokenizer: PreTrainedTokenizerBase, max_source_length: int, max_target_length: int, name: str
) -> Dataset:
    """Every pair, the longest first, with its `row` in the file. Long ones are cut; scores use the whole text."""
    cut = 0

    def shorten(ids: list[int], limit: int) -> list[int]:
        return ids if len(ids) <= limit else ids[: limit - 1] + ids[-1:]  # the end token stays

    rows = []
    for row, example in enumerate(_encode(pairs, tokenizer)):
        source, target = example["input_ids"], example["labels"]
        cut += len(source) > max_source_length
        ids = {"input_ids": shorten(source, max_source_length), "labels": shorten(target, max_target_length)}
        rows.append({**example, **ids, "row": row})
    if cut:
        logger.warning(f"Cut {cut} of {len(rows)} {name} sources to {max_source_length} tokens.")
    return Dataset.from_list(sorted(rows, key=lambda example: -len(example["input_ids"])))


def _encode(pairs: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    def to_ids(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        sources = tokenizer(batch["source"])["input_ids"]
        targets = tokenizer(text_target=batch["target"])["input_ids"]
        end = tokenizer.eos_token_id  # not every tokenizer puts one; mBART's puts a language behind it
        return {"input_ids": sources, "labels": [ids if end in ids[-2:] else [*ids, end] for ids in targets]}

    return pairs.map(to_ids, batched=True, desc="Tokenising")
