"""The files that score.py reads, one kind a task."""

import gzip
import sys
import zlib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NoReturn

import typer

sys.path.append(str(Path(__file__).resolve().parent.parent))  # the other examples


class Task(StrEnum):
    G2P = "g2p"
    TRANSLITERATION = "transliteration"
    BLEU = "bleu"
    CLASSIFICATION = "classification"


@dataclass
class Test:
    sources: list[str]
    references: list[list[str]]  # of each source, one or more


def fail(message: str) -> NoReturn:
    typer.echo(f"score: {message}", err=True)
    raise typer.Exit(1)


def read_lines(path: Path) -> list[str]:
    if not path.is_file():
        fail(f"{path}: no such file.")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = raw.decode("utf-8").removeprefix("\ufeff").split("\n")
    except UnicodeDecodeError as error:
        fail(f"{path}: not UTF-8 ({error.reason} at byte {error.start}).")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        fail(f"{path}: not a whole gzip file ({error}).")
    lines = [line.rstrip("\r") for line in lines[: -1 if lines[-1] == "" else None]]
    if not lines:
        fail(f"{path}: the file is empty.")
    return lines


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """The first two columns."""
    pairs = []
    for number, line in enumerate(read_lines(path), start=1):
        parts = line.split("\t")[:2]
        if len(parts) != 2 or not all(part.strip() for part in parts):
            fail(f"{path}:{number}: expected two columns, found {line!r:.60}.")
        pairs.append((parts[0], parts[1]))
    return pairs


def read_test(task: Task, path: Path, references: Path | None) -> Test:
    if references is not None:
        if task != Task.BLEU:
            fail(f"--references is for bleu; {task} reads both columns from {path}.")
        sources, targets = read_lines(path), read_lines(references)
        if len(sources) != len(targets):
            fail(f"{path} has {len(sources)} lines, {references} has {len(targets)}: they are not parallel.")
        for number, source in enumerate(sources, start=1):
            if not source.strip():
                fail(f"{path}:{number}: the line is empty.")
        return Test(sources, [[target] for target in targets])
    if task == Task.CLASSIFICATION:
        from sentiment_data import labelled  # with whose trainer the formats are shared

        try:
            rows = labelled(read_lines(path), path)
        except ValueError as error:
            fail(str(error))
        return Test([text for text, _ in rows], [[label] for _, label in rows])
    if task == Task.G2P:
        words: dict[str, list[str]] = {}
        for word, pronunciation in read_pairs(path):
            words.setdefault(word, []).append(pronunciation)
        return Test(list(words), list(words.values()))
    pairs = read_pairs(path)
    return Test([source for source, _ in pairs], [[target] for _, target in pairs])
