"""The faults that benchmarks/mutation.py plants: they fit the sources, and red is told from green. The suite is not run."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from mutation_faults import listed, read_listed
from mutation_operators import generate, mutants_of
from mutation_running import FIRST, SUITE, TOKENIZERS, files_for
from support import ROOT


def test_every_listed_fault_fits() -> None:
    """A refactoring that moves a line must move its fault too."""
    faults = listed()
    assert len({fault.name for fault in faults}) == len(faults) >= 60
    for fault in faults:
        compile(fault.text, fault.file, "exec")
        assert fault.text != (ROOT / fault.file).read_text("utf-8")


def test_a_listed_fault_that_fits_nowhere_or_twice(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("a = 1\nb = 1\n")
    assert read_listed("one.py\n# a fault\n- a = 1\n+ a = 2\n", tmp_path)[0].text == "a = 2\nb = 1\n"
    for old, times in (("c", 0), ("= 1", 2)):
        with pytest.raises(ValueError, match=rf"'a fault': one\.py holds {times} times what it replaces: {old}"):
            read_listed(f"one.py\n# a fault\n- {old}\n+ d\n", tmp_path)


def test_generated_faults_are_those_of_the_seed() -> None:
    faults = generate(60, seed=5)
    assert faults == generate(60, seed=5)
    assert len(set(faults) & set(generate(60, seed=6))) < 30
    assert len(set(faults)) == 60
    for fault in faults:
        compile(fault.text, fault.file, "exec")
    modeling = {path.relative_to(ROOT).as_posix() for path in (ROOT / "modeling").glob("[!_]*.py")}
    counts = Counter(fault.file for fault in faults)
    turns = {counts[file] for file in [*modeling, "dragoman/trainer.py"]}
    assert max(turns) - min(turns) <= 1  # evenly
    assert all(any(file.startswith(wing) for file in counts) for wing in ("configuration", "tokenization"))
    assert len({fault.kind for fault in faults}) > 8


SOURCE = '''
def f(x: int = 3, *, öl: "int" = 0) -> "tuple[int, 1]":
    """One 1."""
    if x < 0:
        raise ValueError(f"{x + 1} is not 2")
    öl += x
    return g(x, mask, bias=1) if x and not öl else [
        öl * x]
'''


def test_what_is_changed_and_what_is_left_alone() -> None:
    """No docstring, annotation or error; also behind letters of several bytes, and over a line's end."""
    found = mutants_of("f.py", SOURCE)
    assert sorted(fault.name for fault in found) == sorted([
        "line 2: 3 → 4", "line 2: 3 → 2", "line 2: 0 → 1", "line 2: 0 → -1", "line 4: x < 0 → x >= 0",
        "line 4: x < 0 → x <= 0", "line 4: 0 → 1", "line 4: 0 → -1", "line 6: öl += x → pass",
        "line 7: x and (not öl) → not (x and (not öl))", "line 7: x and (not öl) → x or not öl", "line 7: not öl → öl",
        "line 7: g() without bias=1", "line 7: g() with None for mask", "line 7: g() with mask before x",
        "line 7: 1 → 2", "line 7: 1 → 0", "line 8: öl * x → öl / x",
    ])  # fmt: skip
    texts = {fault.name: fault.text for fault in found}
    assert texts["line 8: öl * x → öl / x"] == SOURCE.replace("öl * x", "(öl / x)")
    assert texts["line 7: g() with mask before x"] == SOURCE.replace("g(x, mask, bias=1)", "(g(mask, x, bias=1))")


def test_the_tests_named_exist() -> None:
    for file in [*FIRST, "tokenization/piece_learning.py"]:
        assert (ROOT / file).is_file()
        assert all((ROOT / test).is_file() for test in files_for(file))
        assert set(files_for(file)) >= {
            f"tests/test_{name}.py" for name in (TOKENIZERS if file.startswith("tokenization/") else SUITE)
        }


PROJECT = """
[tool.setuptools.package-dir]
toy = "sources"
[tool.pytest.ini_options]
addopts = "--import-mode=importlib"
"""
TEST = """
import subprocess, sys, toy

def test_before():
    pass

def test_double():
    assert toy.double(3) == 6

def test_elsewhere():
    subprocess.run([sys.executable, "-c", "import toy; assert toy.double(0) != 1"], check=True)
"""
PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import mutation, mutation_running
from mutation_faults import Mutant
mutation_running.A_TEST_MAY_TAKE = 3
runner = mutation_running.Runner(Path(sys.argv[3]), 60.0, Path(sys.argv[2]), lambda file: ["tests/test_toy.py"])
bodies = {"wrong": "return x + 2", "equal": "return x + x", "only elsewhere": "return x * 2 or 1",
          "endless": "while x: pass", "broken": ")"}
mutants = [Mutant(name, "listed", "sources/__init__.py", f"def double(x):\\n    {body}\\n")
           for name, body in bodies.items()]
mutants.append(mutation.UNTOUCHED)
for mutant, outcome in mutation.run_all(runner, mutants, 2):
    print(mutant.name, outcome.failed, outcome.passed, sep="|")
"""


def test_a_fault_is_caught_and_an_equivalent_survives(tmp_path: Path) -> None:
    toy, work = tmp_path / "toy", tmp_path / "work"
    for folder in (toy / "tests", toy / "sources", work):
        folder.mkdir(parents=True)
    (toy / "pyproject.toml").write_text(PROJECT)
    (toy / "tests" / "test_toy.py").write_text(TEST)
    (toy / "sources" / "__init__.py").write_text("def double(x):\n    return 2 * x\n")
    command = [sys.executable, "-c", PROGRAM, str(ROOT / "benchmarks"), str(toy), str(work)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    file = "tests/test_toy.py"
    assert dict(line.split("|", 1) for line in printed.splitlines()) == {
        "wrong": f"{file}::test_double|1",
        "equal": "None|3",
        "only elsewhere": f"{file}::test_elsewhere|2",
        "endless": f"{file}::test_double|1",
        "broken": f"{file}|0",
        "nothing planted": "None|3",
    }
