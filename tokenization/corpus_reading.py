"""Where the text to learn from comes in: iterables of strings or files of lines, read once, checked on the way."""

import os
from collections.abc import Iterable, Iterator

FileNames = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


def checked_texts(texts: Iterable[str], name: str) -> Iterator[str]:
    """Passes `texts` on; raises TypeError for an item that is not a string, ValueError if there was no text at all."""
    if isinstance(texts, str | bytes):
        raise TypeError(f"{name} is a single {type(texts).__name__}; pass an iterable of strings")
    empty = True
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{index}] is {type(text).__name__}, not a string")
        empty = empty and not text
        yield text
    if empty:
        raise ValueError(f"no text to learn from: {name} holds nothing")


def read_lines(files: FileNames) -> Iterator[str]:
    """Lines of UTF-8 files without their ends; raises ValueError naming the file (and line) that cannot be read."""
    for path in [files] if isinstance(files, str | os.PathLike) else files:
        number = 0
        with open(path, "rb") as lines:
            for number, raw in enumerate(lines, start=1):
                try:
                    line = raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise ValueError(f"{os.fspath(path)}, line {number}: not UTF-8 ({error.reason})") from error
                yield line.rstrip("\r\n").removeprefix("\ufeff" if number == 1 else "")
        if number == 0:
            raise ValueError(f"{os.fspath(path)} is empty")
