"""The layout that travels with every checkpoint: import direction, packages, sizes, versions."""

import ast
import importlib
import statistics
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoConfig
from transformers.dynamic_module_utils import get_relative_imports

import dragoman
from support import ROOT

WINGS = ("configuration", "modeling", "tokenization")
FILES = sorted(path for wing in (*WINGS, "dragoman") for path in (ROOT / wing).rglob("*.py"))
TRAVELLING = [path for path in FILES if path.parent.name in WINGS and path.name != "__init__.py"]

# A file imports only from tiers above its own line.
TIERS = [
    ["validation"],
    ["file_validation"],
    ["base_configuration"],
    ["configuration_dragoman", "configuration_dragoman_recurrent"],
    ["presets"],
    ["linear", "dropout", "few_keys"],
    ["norms", "feed_forward", "position_encodings", "position_biases", "loss", "checkpoint_files", "int8_arithmetic"],
    ["packing", "pooling", "classification_loss", "recurrent_attention", "recurrent_layers", "recurrent_state"],
    ["embeddings", "residual", "packed_attention", "padding", "encoder_outputs", "int8_loading"],
    ["attention"],
    ["building", "initialization", "int8_modules", "encoder_decoder_generation", "language_modeling_head"],
    ["few_row_linears"],
    [
        "encoder",
        "decoder",
        "vocabulary_resizing",
        "checkpoint_loading",
        "checkpoint_saving",
        "int8_models",
        "source_attention",
        "recurrent_encoder",
        "recurrent_decoder",
    ],
    ["decoding_coverage", "decoding_step", "encoder_decoder_model"],
    ["generation_dragoman"],
    ["modeling_dragoman"],
    ["modeling_conditional_generation", "modeling_sequence_classification", "modeling_dragoman_recurrent"],
]
ALLOWED = {"torch", "transformers", "tokenizers", "huggingface_hub"} | sys.stdlib_module_names


def imports(path: Path) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import of a file, and whether it stands inside a function."""
    tree = ast.parse(path.read_text("utf-8"))
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, id(node) not in top


def tier(module: str) -> int:
    for number, names in enumerate(TIERS):
        if module in names:
            return number
    raise AssertionError(f"{module} has no tier: say where it stands")


@pytest.mark.parametrize("path", TRAVELLING, ids=lambda path: path.stem)
def test_travelling_imports(path: Path) -> None:
    wing = path.parent.name
    for node, nested in imports(path):
        where = f"{path.name}:{node.lineno}"
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
            assert all(module.split(".")[0] in ALLOWED for module in modules), where
            continue
        assert node.module, f"{where}: import names from a concrete module"
        if node.level == 0:
            assert node.module.split(".")[0] in ALLOWED, f"{where}: {node.module}"
            if wing == "configuration":
                assert "torch" not in node.module, where
            continue
        other = wing if node.level == 1 else node.module.split(".")[0]
        assert node.level <= 2, where
        module = node.module.split(".")[-1]
        assert (ROOT / other / f"{module}.py").is_file(), f"{where}: not a concrete module"
        lazily = nested and module == "presets" and path.stem.startswith("configuration_dragoman")
        assert lazily or not nested, f"{where}: import inside a function"
        if wing == "tokenization":
            assert other in ("tokenization", "configuration"), where
        elif not lazily:
            assert tier(module) < tier(path.stem), f"{where}: {path.stem} must not import {module}"
    words = {node.id for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Name)}
    assert not words & {"importlib", "__import__"}
    # transformers finds relative imports by a regular expression, in docstrings too: it must find what Python does
    relative = {f"{'.' * (node.level - 1)}{node.module}" for node, _ in imports(path) if getattr(node, "level", 0)}
    assert set(get_relative_imports(path)) == relative


def test_file_names_are_unique() -> None:
    names = [path.name for path in TRAVELLING]
    assert len(names) == len(set(names))


def test_files_are_short() -> None:
    examples = [path for folder in ("examples", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    lengths = {
        path: len(path.read_text("utf-8").splitlines()) for path in [*FILES, *examples] if path.name != "__init__.py"
    }
    assert max(lengths.values()) <= 250, max(lengths, key=lambda path: lengths[path])
    assert statistics.median(lengths.values()) < 130


def test_what_a_benchmark_takes_from_the_examples_it_can_find() -> None:
    """Alone: pytest adds the folder of the examples to the path, Python only that of the script."""
    examples = {path.stem for path in (ROOT / "examples").glob("*.py")}
    for path in (ROOT / "benchmarks").glob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        first = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
        first |= {name.name for node in tree.body if isinstance(node, ast.Import) for name in node.names}
        assert not first & examples, path.name  # only after sys.path has it
        later = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)} & examples
        assert not later or "sys.path.append" in path.read_text("utf-8"), path.name


def test_every_package_is_listed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    folders = {ROOT / folder for folder in project["tool"]["setuptools"]["package-dir"].values()}
    assert folders == {path.parent for path in FILES}
    assert set(project["tool"]["setuptools"]["packages"]) == set(project["tool"]["setuptools"]["package-dir"])


def test_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["version"] == dragoman.__version__
    assert f"## {dragoman.__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert f"version: {dragoman.__version__}" in (ROOT / "CITATION.cff").read_text("utf-8")


def test_public_names() -> None:
    for name in dragoman.__all__:
        assert getattr(dragoman, name).__doc__ or name == "__version__", name


def test_registering_twice_is_harmless() -> None:
    importlib.reload(dragoman)
    assert type(AutoConfig.for_model("dragoman")).__name__ == "DragomanConfig"
