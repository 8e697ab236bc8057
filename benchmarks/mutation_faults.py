"""A fault planted in the sources, and the written list of them."""

from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LISTED = "listed"


class Mutant(NamedTuple):
    name: str
    kind: str  # "listed", or the operator that made it
    file: str
    text: str  # of the whole file, fault included


def read_listed(listing: str, root: Path = ROOT) -> list[Mutant]:
    """The list of mutation_faults.txt. Raises ValueError for an old text that is not in its file exactly once."""
    mutants, file, name, old = [], "", "", ""
    for line in listing.splitlines():
        mark, rest = line[:2], line[2:]
        if line.endswith(".py"):
            file = line
        elif mark == "# ":
            name = rest
        elif mark == "- ":
            old = rest
        elif mark == "+ ":
            source = (root / file).read_text("utf-8")
            if source.count(old) != 1:
                raise ValueError(f"{name!r}: {file} holds {source.count(old)} times what it replaces: {old}")
            mutants.append(Mutant(name, LISTED, file, source.replace(old, rest)))
    return mutants


def listed() -> list[Mutant]:
    return read_listed((ROOT / "benchmarks" / "mutation_faults.txt").read_text("utf-8"))
