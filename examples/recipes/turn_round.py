"""Pairs whose targets are turned round, for a model that writes them from the end.

    python examples/recipes/turn_round.py train.tsv valid.tsv --output-dir runs/turned
    python examples/recipes/run.py cmudict runs/turned --output runs/cmudict-turned
    python examples/recipes/score.py runs/cmudict/seed-0 g2p valid.tsv --backwards runs/cmudict-turned/seed-0

`source<TAB>target` a line, the words of the target in reverse order. Needs dragoman[examples].
"""

from pathlib import Path
from typing import Annotated

import typer
from scored_files import fail, read_pairs
from writing import turned


def main(
    files: Annotated[list[Path], typer.Argument()],
    output_dir: Annotated[Path, typer.Option(help="Where files of the same names are written to.")],
) -> None:
    """Turn round the targets of files."""
    for path in files:
        output = output_dir / path.name.removesuffix(".gz")
        if output.resolve() == path.resolve():
            fail(f"{path} would be written over: name another --output-dir.")
        pairs = read_pairs(path)
        output_dir.mkdir(parents=True, exist_ok=True)
        with output.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{source}\t{turned(target)}\n" for source, target in pairs)


if __name__ == "__main__":
    typer.run(main)
