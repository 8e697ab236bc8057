"""``python -m dragoman``: the commands."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .configuration.configuration_dragoman import VERSION
from .verification import verify as look_into

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Tools for Dragoman checkpoints.")


@app.callback()
def main() -> None:
    """Without this, typer makes a single command the whole program."""


@app.command()
def verify(folder: Annotated[Path, typer.Argument(help="A checkpoint on this machine.")]) -> None:
    """Is the code beside a checkpoint what this version writes, and nothing else there that could run?

    Exit status 0: yes. 1: no, and the table says why. 2: there is no such folder.
    """
    console = Console()
    try:
        findings = look_into(folder)
    except NotADirectoryError as error:
        Console(stderr=True).print(f"[red]{escape(str(error))}[/red]")
        raise typer.Exit(2) from error
    table = Table("File", "Kind", "Verdict")
    for finding in findings:
        verdict = (
            "[green]as it should be[/green]" if finding.problem is None else f"[red]{escape(finding.problem)}[/red]"
        )
        table.add_row(escape(finding.path), finding.kind, verdict)
    console.print(table)
    problems = sum(finding.problem is not None for finding in findings)
    if problems:
        console.print(f"[red]Refused by dragoman {VERSION}: {problems} of {len(findings)} findings are problems.[/red]")
        raise typer.Exit(1)
    console.print(f"[green]All {len(findings)} files are what dragoman {VERSION} writes.[/green]")


if __name__ == "__main__":
    app()
