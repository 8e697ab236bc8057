"""Pairs of texts for `train_seq2seq.py`: read from files, checked line by line, and turned into ids."""

import csv
import gzip
import json
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset, load_dataset_builder, load_from_disk
from datasets.exceptions import DatasetsError
from transformers import PreTrainedTokenizerBase

from dragoman.surrogates import check_characters

logger = logging.getLogger("train_seq2seq")
DEFAULT_COLUMNS = ("source", "target")
Columns = tuple[str, str]
Rows = Iterable[tuple[str, Any, Any]]  # where it stands ("file:line"), source, target


class DataError(ValueError):
    """Something in the data that its owner has to mend; the message says where."""


def read(data: Any, split: str, needed: bool, limit: int | None) -> Dataset | None:
    """A part of what the `DataArguments` of train_seq2seq.py name, as far as it is needed."""
    if not needed:
        return None
    name = {"train": "train", "validation": "eval", "test": "predict"}[split]
    if limit is not None and limit < 1:
        raise ValueError(f"--max_{name}_samples must be at least 1, not {limit}.")
    columns = (data.source_column, data.target_column) if data.source_column and data.target_column else None
    if columns is None and (data.source_column or data.target_column):
        raise ValueError("Name both --source_column and --target_column, or neither.")
    file, target_file = getattr(data, f"{split}_file"), getattr(data, f"{split}_target_file")
    if file is not None:
        pairs = read_pairs(file, target_file, columns)
    elif data.dataset is not None:
        pairs = read_split(data.dataset, split, columns)
    else:
        raise ValueError(f"--do_{name} needs --{split}_file or --dataset.")
    return pairs if limit is None else pairs.select(range(min(limit, len(pairs))))


def read_pairs(path: str, target_path: str | None = None, columns: Columns | None = None) -> Dataset:
    """A dataset with the columns `source` and `target`.

    By suffix, each with `.gz` too: `.tsv` or `.txt`, with a header if `columns` are named, else without (source first,
    target second); `.csv` with a header; `.jsonl`, `.json`. With `target_path` both are plain text, a text a line.
    """
    reader = READERS.get(Path(path.removesuffix(".gz")).suffix.lower())
    if target_path is not None:
        return _collect(_parallel_rows(path, target_path), path)
    if reader is None:
        known = ", ".join(READERS)
        raise DataError(f"{path}: unknown suffix; known are {known} (or with .gz). Plain text needs a target file.")
    return _collect(reader(path, columns), path)


def read_split(folder: str, split: str, columns: Columns | None = None) -> Dataset:
    """The same from a folder written by `DatasetDict.save_to_disk`, or one of data files that `datasets` can load."""
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: no such folder.")
    saved = any((Path(folder) / name).exists() for name in ("dataset_dict.json", "state.json"))
    try:
        splits = load_from_disk(folder) if saved else _load_files(folder, columns or DEFAULT_COLUMNS)
    except DatasetsError as error:
        raise DataError(f"{folder}: {error.__cause__ or error}") from error
    if not isinstance(splits, DatasetDict):
        splits = DatasetDict(train=splits)
    if split not in splits:
        raise DataError(f"{folder}: no split {split!r}; there are {', '.join(splits)}.")
    source, target = _positions(splits[split].column_names, columns or DEFAULT_COLUMNS, f"{folder}, {split}")
    names = splits[split].column_names
    rows = enumerate(splits[split].select_columns([names[source], names[target]]), start=1)
    return _collect(((f"{folder}, {split}, row {n}", r[names[source]], r[names[target]]) for n, r in rows), folder)


def _load_files(folder: str, columns: Columns) -> DatasetDict:
    builder = load_dataset_builder(folder)
    if builder.name != "csv":
        return load_dataset(folder)
    # Else "NA" is read as nothing, and "1" as a number.
    as_texts: dict[str, Any] = {"converters": dict.fromkeys(columns, str), "keep_default_na": False}
    if all(".tsv" in Path(path).suffixes for paths in builder.config.data_files.values() for path in paths):
        as_texts["quoting"] = csv.QUOTE_NONE  # as in a TSV file by itself
    return load_dataset(folder, **as_texts)


def _collect(rows: Rows, name: str) -> Dataset:
    sources: list[str] = []
    targets: list[str] = []
    empty: list[str] = []
    for place, source, target in rows:
        for column, text in zip(DEFAULT_COLUMNS, (source, target), strict=True):
            if not isinstance(text, str | None):
                raise DataError(f"{place}: the {column} is not a string but {text!r:.40}.")
            try:
                check_characters(text or "")
            except ValueError as error:
                raise DataError(f"{place}: {error}") from error
        if not (source or "").strip() or not (target or "").strip():
            empty.append(place)
        sources.append(source)
        targets.append(target)
    if empty:
        raise DataError(f"{empty[0]}: source or target is empty (rows like this: {len(empty)}); remove such rows.")
    if not sources:
        raise DataError(f"{name}: no pairs in it.")
    return Dataset.from_dict({"source": sources, "target": targets})


def _lines(path: str) -> Iterator[str]:
    """Lines without their ends, of a file that may be compressed."""
    number = 0
    try:
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                line = raw.decode("utf-8").rstrip("\r\n")
                yield line.removeprefix("\ufeff") if number == 1 else line
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:{number}: not UTF-8 ({error.reason}).") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: not a whole gzip file ({error}).") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}.") from error
    if number == 0:
        raise DataError(f"{path}: the file is empty.")


def _positions(header: list[str], columns: Columns, place: str) -> tuple[int, int]:
    for column in columns:
        if column not in header:
            raise DataError(f"{place}: no column {column!r}; the columns are {', '.join(header)}.")
    return header.index(columns[0]), header.index(columns[1])


def _table_rows(path: str, records: Iterator[tuple[int, list[str]]], columns: Columns | None) -> Rows:
    source, target = 0, 1
    if columns is not None:
        number, header = next(records, (0, []))
        if not header:
            raise DataError(f"{path}: no pairs in it.")
        source, target = _positions(header, columns, f"{path}:{number}")
    needed = max(source, target) + 1
    for number, record in records:
        if len(record) < needed:
            hint = "" if columns else ": source, tab, target; plain text needs a target file"
            raise DataError(f"{path}:{number}: {len(record)} column(s) where at least {needed} are needed{hint}.")
        yield f"{path}:{number}", record[source], record[target]


def _tsv_rows(path: str, columns: Columns | None) -> Rows:
    records = ((number, line.split("\t")) for number, line in enumerate(_lines(path), start=1))
    return _table_rows(path, records, columns)


def _csv_rows(path: str, columns: Columns | None) -> Rows:
    reader = csv.reader((line + "\n" for line in _lines(path)), strict=True)
    records = ((reader.line_num, record) for record in reader if record)
    try:
        yield from _table_rows(path, records, columns or DEFAULT_COLUMNS)
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not CSV ({error}).") from error


def _json_rows(path: str, columns: Columns | None) -> Rows:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not a JSON object on one line ({error.msg}).") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}:{number}: not a JSON object on one line.")
        names = columns or DEFAULT_COLUMNS
        _positions(list(record), names, f"{path}:{number}")
        yield f"{path}:{number}", record[names[0]], record[names[1]]


def _parallel_rows(path: str, target_path: str) -> Rows:
    for number, (source, target) in enumerate(zip_longest(_lines(path), _lines(target_path)), start=1):
        if source is None or target is None:
            shorter, longer = (path, target_path) if source is None else (target_path, path)
            raise DataError(f"{shorter} ends after {number - 1} lines, {longer} goes on: the files are not parallel.")
        yield f"{target_path if source.strip() else path}:{number}", source, target


READERS: dict[str, Callable[[str, Columns | None], Rows]] = {
    ".tsv": _tsv_rows,
    ".txt": _tsv_rows,
    ".csv": _csv_rows,
    ".jsonl": _json_rows,
    ".json": _json_rows,
}


def encode_for_training(
    pairs: Dataset, tokenizer: PreTrainedTokenizerBase, max_source_length: int, max_target_length: int
) -> Dataset:
    """`input_ids` and `labels`. Longer pairs are left out: a cut pair would teach to stop halfway."""
    encoded = _encode(pairs, tokenizer)
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
