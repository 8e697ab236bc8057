"""Verdicts as lines of a table, printed as they come."""

from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from .verdicts import Verdict

STYLES = {"pass": "green", "FAIL": "bold red", "not offered": "dim"}


def print_verdicts(title: str, verdicts: Iterable[Verdict]) -> int:
    """Print, and return the exit status: 1 if a line failed. Colours are for terminals; elsewhere lines stay whole."""
    console = Console(highlight=False, emoji=False)
    console.print(Text(title, style="bold"))
    failed = 0
    for verdict in verdicts:
        failed += verdict.status == "FAIL"
        measured = "" if verdict.deviation is None else f"{verdict.deviation:.1e} of {verdict.limit:.0e}"
        line = Text(f"{verdict.number:2}  {verdict.name:<22}  ")
        line.append(f"{verdict.status:<11}", style=STYLES[verdict.status]).append(f"  {measured:<17}  ")
        line.append(verdict.note)
        console.print(line, soft_wrap=not console.is_terminal)
    console.print(f"{failed} failed" if failed else "no line failed", style="bold red" if failed else "bold green")
    return min(failed, 1)
