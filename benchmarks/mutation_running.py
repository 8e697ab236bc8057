"""One mutant: a copy of the package with a fault in it, and a forked process that runs the tests on the copy."""

import ast
import importlib
import json
import os
import shutil
import signal
import sys
import time
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mutation_faults import ROOT, Mutant

# Read when torch, numpy and tokenizers are imported.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}

# Most telling first. What looks at the repository itself, at the examples or at the benchmarks is left out.
SUITE = (
    "parts loss model contract option_matrix packing saving generation fast_decoding configuration trainer stability"
).split()
TOKENIZERS = "tokenizer tokenizer_sides trainer configuration".split()
FIRST = {
    "configuration/file_validation.py": "broken_folders",
    "modeling/checkpoint_files.py": "broken_folders",
    "modeling/checkpoint_loading.py": "broken_folders saving",
    "tokenization/code_sharing.py": "hub broken_folders",
    "tokenization/tokenizer_files.py": "broken_folders",
    "modeling/attention.py": "parts stability model option_matrix generation",
    "modeling/building.py": "option_matrix model parts",
    "modeling/decoder.py": "option_matrix model generation",
    "modeling/dropout.py": "dropout",
    "modeling/embeddings.py": "model option_matrix",
    "modeling/encoder.py": "model option_matrix",
    "modeling/decoding_coverage.py": "fast_decoding",
    "modeling/decoding_step.py": "fast_decoding",
    "modeling/few_row_linears.py": "fast_decoding",
    "modeling/source_attention.py": "source_attention",
    "modeling/few_keys.py": "few_keys",
    "modeling/encoder_decoder_model.py": "contract model saving",
    "modeling/encoder_decoder_generation.py": "contract generation",
    "modeling/generation_dragoman.py": "generation fast_decoding contract",
    "modeling/modeling_dragoman_recurrent.py": "recurrent contract",
    "modeling/recurrent_attention.py": "recurrent contract",
    "modeling/recurrent_decoder.py": "recurrent contract",
    "modeling/recurrent_encoder.py": "recurrent contract",
    "modeling/recurrent_layers.py": "recurrent contract",
    "modeling/recurrent_state.py": "recurrent contract",
    "modeling/initialization.py": "saving stability",
    "modeling/int8_arithmetic.py": "quantization",
    "modeling/int8_loading.py": "quantization",
    "modeling/int8_models.py": "quantization",
    "modeling/int8_modules.py": "quantization",
    "modeling/loss.py": "loss parts",
    "modeling/linear.py": "linear",
    "modeling/language_modeling_head.py": "contract loss saving option_matrix",
    "modeling/modeling_conditional_generation.py": "model saving option_matrix",
    "modeling/classification_loss.py": "classification",
    "modeling/modeling_sequence_classification.py": "classification",
    "modeling/pooling.py": "classification",
    "modeling/modeling_dragoman.py": "model generation saving trainer",
    "modeling/packed_attention.py": "packing",
    "modeling/packing.py": "packing compilation",
    "modeling/encoder_outputs.py": "contract",
    "modeling/padding.py": "model option_matrix generation packing",
    "modeling/vocabulary_resizing.py": "contract saving",
    "configuration/configuration_dragoman.py": "configuration saving",
    "configuration/presets.py": "configuration",
    "configuration/validation.py": "configuration",
    "dragoman/conversion/fsmt.py": "conversion_fsmt",
    "dragoman/conversion/m2m_100.py": "conversion_m2m_100",
    "dragoman/conversion/padding_positions.py": "conversion_m2m_100 conversion_fsmt",
    **{f"dragoman/conversion/ctranslate2_{name}.py": "ctranslate2" for name in "fields files layout".split()},
    **{f"dragoman/conversion/ctranslate2_{name}.py": "ctranslate2" for name in "reader tokens writer".split()},
    "dragoman/alignment.py": "alignment",
    "dragoman/attention_rollout.py": "attribution",
    "dragoman/attribution.py": "attribution",
    "dragoman/explained_output.py": "attribution",
    "dragoman/faithfulness.py": "attribution",
    "dragoman/highlighting.py": "explanation",
    "dragoman/plotting.py": "explanation",
    "dragoman/word_spans.py": "attribution",
    "dragoman/distillation.py": "distillation",
    "dragoman/lengths.py": "token_budget",
    "dragoman/muon.py": "muon",
    "dragoman/token_budget.py": "token_budget",
    "dragoman/trainer.py": "trainer token_training",
    "dragoman/training_arguments.py": "token_training",
    "dragoman/training_batches.py": "token_training",
    "dragoman/packing.py": "packing",
    "dragoman/averaging.py": "averaging",
    "dragoman/ensemble.py": "ensemble",
    "dragoman/exponential_moving_average.py": "averaging",
    "dragoman/pipelines.py": "pipelines",
    "dragoman/sorted_batches.py": "pipelines",
    "dragoman/target_languages.py": "pipelines",
    "dragoman/wall_clock.py": "token_training",
}
# Slow, and rarely the only ones to fail: last, unless they stand in the most telling file.
LAST = ("one_graph", "flex_attention", "new_process", "another_process", "compiled", "stock_trainers")
A_TEST_MAY_TAKE = 60  # seconds: a fault that makes a loop endless is caught too


class Outcome(NamedTuple):
    failed: str | None  # the test that caught the fault
    passed: int
    seconds: float
    cpu_seconds: float
    output: str  # the end of it


class Child(NamedTuple):
    pid: int
    folder: Path
    begin: float

    def kill(self) -> None:
        os.killpg(self.pid, signal.SIGKILL)


def files_for(file: str) -> list[str]:
    suite = TOKENIZERS if file.startswith("tokenization/") else SUITE
    return [f"tests/test_{name}.py" for name in dict.fromkeys([*FIRST.get(file, "").split(), *suite])]


class Watch:
    """A plugin of pytest: orders the tests, keeps the first that fails, and stops when time is up."""

    def __init__(self, first: str, limit: float) -> None:
        self.first = first
        self.limit = limit
        self.failed: str | None = None
        self.passed = 0

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items.sort(key=lambda item: not item.nodeid.startswith(self.first) and any(part in item.name for part in LAST))

    def pytest_collectreport(self, report: Any) -> None:
        self._keep(report)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self._keep(report)
        self.passed += report.passed and report.when == "call"

    def pytest_runtest_teardown(self, item: Any) -> None:
        if time.process_time() > self.limit:  # a busy machine must not turn caught into survived
            item.session.shouldstop = "time is up"

    def _keep(self, report: Any) -> None:
        if report.failed and self.failed is None:
            self.failed = report.nodeid


class Runner:
    """Runs mutants of the project in ``root`` under ``folder``; ``limit`` is in seconds of CPU."""

    def __init__(
        self, folder: Path, limit: float, root: Path = ROOT, files_for: Callable[[str], list[str]] = files_for
    ) -> None:
        self.folder, self.limit, self.root, self.files_for, self.count = folder, limit, root, files_for, 0
        shutil.copy(root / "pyproject.toml", folder)
        for tree in ("tests", "benchmarks"):  # tests import from both
            if (root / tree).is_dir():
                shutil.copytree(root / tree, folder / tree, ignore=shutil.ignore_patterns("__pycache__"))
        project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))
        self.packages: dict[str, str] = project["tool"]["setuptools"]["package-dir"]
        self._import_beforehand()

    def start(self, mutant: Mutant) -> Child:
        """Fork. A mutant without a file is the untouched copy; its text names the tests to run, else all are."""
        self.count += 1
        folder = self.folder / str(self.count)
        for package, source in self.packages.items():
            place, ignored = folder / package.replace(".", "/"), shutil.ignore_patterns("__pycache__")
            shutil.copytree(self.root / source, place, ignore=ignored, dirs_exist_ok=True)
            if Path(mutant.file).parent == Path(source):
                (place / Path(mutant.file).name).write_text(mutant.text, "utf-8")
        tests = mutant.text.splitlines() if mutant.text and not mutant.file else self.files_for(mutant.file)
        child = Child(os.fork(), folder, time.monotonic())
        if child.pid == 0:
            try:
                self._run(folder, tests)
            finally:
                os._exit(1)  # never back into the parent's loop
        os.setpgid(child.pid, child.pid)  # the processes that tests start end with it
        return child

    def poll(self, child: Child) -> Outcome | None:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        seconds = time.monotonic() - child.begin
        if pid == 0 and seconds < 10 * self.limit + 2 * A_TEST_MAY_TAKE:
            return None
        if pid == 0:
            child.kill()
            _, status, usage = os.wait4(child.pid, 0)
        output = (child.folder / "output.txt").read_text("utf-8", errors="replace")[-4000:]
        failed, passed = "a crash" if status else None, 0
        if (child.folder / "outcome.json").exists():
            failed, passed = json.loads((child.folder / "outcome.json").read_text("utf-8"))
        return Outcome(failed, passed, seconds, usage.ru_utime + usage.ru_stime, output)

    def _run(self, folder: Path, tests: list[str]) -> None:
        os.chdir(self.folder)
        with open(folder / "output.txt", "wb") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        sys.path.insert(0, str(folder))
        os.environ["PYTHONPATH"] = str(folder)  # of the processes that tests start
        import pytest

        options = ["-x", "-p", "no:cacheprovider", "--hypothesis-seed=0", f"--timeout={A_TEST_MAY_TAKE}"]
        watch = Watch(tests[0], self.limit)
        code = pytest.main([*options, f"--rootdir={self.folder}", *tests], [watch])
        for package in self.packages.keys() & sys.modules.keys():
            if not (file := str(sys.modules[package].__file__)).startswith(str(folder)):
                raise RuntimeError(f"{file} was tested, not the copy in {folder}")
        if code not in (0, 1, 2) or (watch.failed is None and watch.passed == 0):
            raise RuntimeError(f"pytest ended with {code}")
        (folder / "outcome.json").write_text(json.dumps([watch.failed, watch.passed]))
        sys.stdout.flush()
        os._exit(0)

    def _import_beforehand(self) -> None:
        """What sources and tests import from elsewhere, so that no child has to; they themselves stay out."""
        paths = [path for source in self.packages.values() for path in (self.root / source).glob("*.py")]
        paths += (self.root / "tests").glob("*.py")
        folders = ("tests", "examples", "benchmarks")
        own = {path.stem for folder in folders for path in (self.root / folder).glob("*.py")} | self.packages.keys()
        for node in (node for path in paths for node in ast.walk(ast.parse(path.read_text("utf-8")))):
            names: list[tuple[str, str]] = []
            if isinstance(node, ast.Import):
                names = [(alias.name, "") for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [(str(node.module), alias.name) for alias in node.names]
            for module, name in names:
                if module.split(".")[0] not in own:
                    with suppress(ImportError):  # of an extra that is not installed
                        getattr(importlib.import_module(module), name, None)  # transformers imports on first use
