"""docs/attention.md: its code runs as a notebook, its links and quotations are true, its translation says the same."""

import ast
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from attention_notebook import make_notebook
from support import ROOT

DOCS = ROOT / "docs"
ENGLISH, CHINESE = DOCS / "attention.md", DOCS / "attention.zh-TW.md"
MEASURED = {"road_to_attention.md"} | {  # written, pictures and page, by examples/road_to_attention.py --report
    f"images/road_{name}.png" for name in ("accuracy", "alignments", "speed", "heads", "depth")
}
LINK = r"\[`([\w.]+)`\]\(([^)]+\.py)\)"
BOTH = pytest.mark.parametrize("page", [ENGLISH, CHINESE], ids=lambda page: page.stem)


def fences(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


def definition(path: Path, name: str) -> str:
    """The source lines of the function, class or method ``name``."""
    text = path.read_text("utf-8")
    node: Any = ast.parse(text)
    for part in name.split("."):
        found = [child for child in ast.iter_child_nodes(node) if getattr(child, "name", None) == part]
        assert found, f"{path.name} defines no {name}"
        node = found[0]
    return "\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno])


def test_notebook_is_the_page() -> None:
    """Else: python examples/attention_notebook.py."""
    assert nbformat.read(DOCS / "attention.ipynb", as_version=4) == make_notebook(ENGLISH.read_text("utf-8"))


def test_notebook_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(DOCS / "attention.ipynb", as_version=4)
    nbformat.validate(notebook)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert all(said in printed for said in ("D = 1024: variance", "without residuals", "→"))
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2


@BOTH
def test_names_are_defined_where_the_page_says(page: Path) -> None:
    names = re.findall(LINK, page.read_text("utf-8"))
    assert len(names) > 20
    for name, target in names:
        assert definition(DOCS / target, name)


@BOTH
def test_quotations_stand_in_the_function_named_before_them(page: Path) -> None:
    text = page.read_text("utf-8")
    quotations = list(re.finditer(r"```py\n(.*?)```", text, re.DOTALL))
    assert len(quotations) == 4
    for quotation in quotations:
        named = re.findall(LINK, text[: quotation.start()])[-2:]
        sources = [definition(DOCS / target, name).splitlines() for name, target in named]
        lines = [line.strip() for line in quotation[1].splitlines()]
        assert any([line for line in map(str.strip, source) if line in lines] == lines for source in sources), (
            quotation[1]
        )


@BOTH
def test_links_lead_somewhere(page: Path) -> None:
    links = set(re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")))
    assert links >= MEASURED
    missing = {link for link in links if not (DOCS / link).exists()}
    measured = (DOCS / "road_to_attention.md").exists()
    assert missing <= (set() if measured else MEASURED)
    drawn = (ROOT / "examples" / "road_report.py").read_text("utf-8")
    assert all(Path(link).name in drawn for link in MEASURED)


def test_translation_says_the_same() -> None:
    for language in ("python", "py", "math"):
        assert fences(ENGLISH, language) == fences(CHINESE, language)
    english, chinese = (page.read_text("utf-8") for page in (ENGLISH, CHINESE))
    for pattern in (r"(?m)^#+ ", r"\*\*\S"):  # headings, questions
        assert len(re.findall(pattern, english)) == len(re.findall(pattern, chinese))
    other = {"attention.md", "attention.zh-TW.md"}

    def links(text: str) -> list[str]:
        return sorted(set(re.findall(r"\]\(([^)]+)\)", text)) - other)

    assert links(english) == links(chinese)
    assert sorted(re.findall(LINK, english)) == sorted(re.findall(LINK, chinese))
