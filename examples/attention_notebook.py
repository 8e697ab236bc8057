"""Writes docs/attention.ipynb from docs/attention.md: the page's runnable blocks become cells, the rest text.

::

    python examples/attention_notebook.py
"""

import re
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PAGE = Path(__file__).resolve().parent.parent / "docs" / "attention.md"


def make_notebook(page: str) -> nbformat.NotebookNode:
    """Without outputs, and with cells numbered in order, so that a page has exactly one notebook."""
    parts = re.split(r"```python\n(.*?)```\n", page, flags=re.DOTALL)  # text, code, text, code, … text
    cells = []
    for number, part in enumerate(parts):
        text = part.strip()
        if number % 2:
            cells.append(new_code_cell(text, id=f"cell-{number}"))
        elif text:  # Jupyter has no fence for formulas
            text = re.sub(r"```math\n(.*?)```", r"$$\n\1$$", text, flags=re.DOTALL)
            cells.append(new_markdown_cell(text, id=f"cell-{number}"))
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return new_notebook(cells=cells, metadata=kernel)


def write_notebook(page: Path = PAGE) -> None:
    nbformat.write(make_notebook(page.read_text("utf-8")), page.with_suffix(".ipynb"))


if __name__ == "__main__":
    write_notebook()
