"""``python -m dragoman``: the command line, one function a command."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from huggingface_hub.errors import StrictDataclassError
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from safetensors import SafetensorError

from .configuration.base_configuration import VERSION

app = typer.Typer(help="Dragoman on the command line.", no_args_is_help=True, add_completion=False)


@contextmanager
def in_one_line(*errors: type[Exception]) -> Iterator[None]:
    """Such an error is printed in one line, and the exit status is 1; transformers keeps quiet."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except errors as error:
        Console(stderr=True, soft_wrap=True, emoji=False).print(f"[red]{escape(str(error))}[/red]")
        raise typer.Exit(1) from error


@app.command()
def check(
    model: Annotated[str, typer.Argument(help="A preset, an encoder-decoder class of transformers, or a folder.")],
    more: Annotated[list[int] | None, typer.Argument(hidden=True)] = None,  # the rest of --only 1 6 8
    only: Annotated[list[int] | None, typer.Option(help="Lines to check, by number: --only 1 6 8.")] = None,
    fields: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="A field of the configuration.")
    ] = None,
) -> None:
    """Check the invariants that an encoder-decoder must hold. Exits with 1 if one does not."""
    from transformers.utils import logging

    from .checking import check as check_lines
    from .checking.reports import print_verdicts

    if more and not only:
        raise typer.BadParameter(f"{' '.join(map(str, more))}: to pick lines, say --only {' '.join(map(str, more))}.")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    overrides = dict(map(parse_field, fields or []))
    try:
        verdicts = check_lines(model, [*only, *(more or [])] if only else None, overrides)
    except (ValueError, OSError, SafetensorError) as error:
        raise typer.BadParameter(str(error)) from error
    raise typer.Exit(print_verdicts(model, verdicts))


def parse_field(text: str) -> tuple[str, Any]:
    """``name=value``: the value as JSON where it is some, as text otherwise."""
    name, separator, value = text.partition("=")
    if not separator:
        raise typer.BadParameter(f"--set {text}: expected field=value.")
    try:
        return name, json.loads({"True": "true", "False": "false", "None": "null"}.get(value, value))
    except json.JSONDecodeError:
        return name, value


@app.command()
def verify(folder: Annotated[Path, typer.Argument(help="A checkpoint on this machine.")]) -> None:
    """Is the code beside a checkpoint what this version writes, and nothing else there that could run?

    Exit status 0: yes. 1: no, and the table says why. 2: there is no such folder.
    """
    from .verification import verify as find_out

    console = Console(emoji=False)
    try:
        findings = find_out(folder)
    except NotADirectoryError as error:
        Console(stderr=True, emoji=False).print(f"[red]{escape(str(error))}[/red]")
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


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A checkpoint on this machine: safetensors, or CTranslate2.")],
    target: Annotated[Path, typer.Argument(help="A new folder.")],
    to: Annotated[
        str, typer.Option(help="dragoman; the model_type of a family: marian, bart, t5, ...; or ctranslate2.")
    ] = "dragoman",
) -> None:
    """Convert a checkpoint of another family to Dragoman, or back, and compare the two (not those of CTranslate2).

    Exit status 0: it is done. 1: they do not compute the same, or it cannot be done; nothing is left behind.
    """
    from .conversion.families import ConversionError
    from .conversion.folders import convert_folder

    with in_one_line(ConversionError, ValueError, OSError, ImportError, StrictDataclassError):
        conversion = convert_folder(source, target, to)
    print(f"{conversion.source} -> {conversion.target}: {conversion.parameters:,} parameters in {target}")
    print(conversion.comparison or "not compared: the engine of CTranslate2 computes it")


@app.command()
def average(
    output_dir: Annotated[Path, typer.Argument(help="Of a Trainer, with the checkpoint-* folders that it saved.")],
    to: Annotated[Path, typer.Argument(help="A new folder.")],
    last: Annotated[int | None, typer.Option(help="Average the last so many checkpoints.")] = None,
    best: Annotated[int | None, typer.Option(help="Or the best so many.")] = None,
    metric: Annotated[str | None, typer.Option(help="What they are the best by. Else the Trainer's choice.")] = None,
    greater: Annotated[
        bool | None,
        typer.Option("--greater-is-better/--smaller-is-better", help="Else as the Trainer chose, or by its name."),
    ] = None,
) -> None:
    """Average the weights of checkpoints of one training run into a new one."""
    from .averaging import average_checkpoints, copy_tokenizer, select_checkpoints

    with in_one_line(ValueError, OSError, StrictDataclassError):
        if to.exists() and (not to.is_dir() or any(to.iterdir())):
            raise ValueError(f"{to} exists: name a new folder.")
        chosen = select_checkpoints(output_dir, last, best, metric, greater)
        model = average_checkpoints(chosen)
        copy_tokenizer(chosen[-1], to)  # first: it may not be readable
        model.save_pretrained(to)
    print(f"The mean of {', '.join(folder.name for folder in chosen)} is in {to}")


@app.command()
def explain(
    checkpoint: Annotated[str, typer.Argument(help="A classifier, or a model that writes.")],
    text: Annotated[str, typer.Argument(help="What it reads.")],
    target: Annotated[
        str | None, typer.Option(help="A class, or a text to write. Default: the model's answer.")
    ] = None,
    method: Annotated[str, typer.Option(help="Or integrated_gradients, attention, ...")] = "leave_one_out",
    units: Annotated[str, typer.Option(help="Or tokens.")] = "words",
    tgt_lang: Annotated[str | None, typer.Option(help="To write in, if a Dragoman tokenizer knows several.")] = None,
    html: Annotated[Path | None, typer.Option(help="Also write a page that needs nothing but itself.")] = None,
) -> None:
    """Which words of a text made the model say that: colours the text by what each word added.

    Exit status 1: there is no such checkpoint, class or method, and the message says what there is; or no folder for
    the page.
    """
    from .explanation import explain as find_words
    from .highlighting import legend, to_html, to_terminal

    with in_one_line(ImportError, OSError, RuntimeError, TypeError, ValueError, SafetensorError, StrictDataclassError):
        attribution = find_words(checkpoint, text, target, tgt_lang, method=method, units=units)
        if html is not None:
            html.write_text(to_html(attribution), "utf-8")
    console = Console(soft_wrap=True, emoji=False)
    console.print(f"[bold]{escape(attribution.target)}[/bold] ({attribution.method}, {attribution.value:.3f})")
    console.print(to_terminal(attribution))
    console.print(legend(attribution))
    for word in attribution.ranked()[:5]:
        console.print(f"{word.score:+.3f}  {escape(word.text)}")
    if html is not None:
        console.print(f"Written: {escape(str(html))}")


if __name__ == "__main__":
    app(prog_name="python -m dragoman")
