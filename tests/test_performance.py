"""The pages say what the result files and the code hold; the table judges its bars and loses no cell to another."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from dragoman.modeling.int8_arithmetic import is_worth_packing
from torch import nn

import generate
import performance
import table
import turns
from dragoman import DragomanForConditionalGeneration, presets
from support import ROOT


def test_the_page_is_that_of_the_results() -> None:
    page = (ROOT / "docs" / "performance.md").read_text("utf-8")
    assert page == performance.render()
    assert "{" not in page
    assert page.count("| Dragoman, packed |") >= 2


def result(**ratios: float) -> dict[str, Any]:
    rows = {name: {"ratio": ratio, "lowest": 1.5, "highest": 3.25, "foreign": 0.0} for name, ratio in ratios.items()}
    return {"conditions": {"date": "then", "rounds": 3}, "engines": rows, "failed": {"T5": "ended with 1"}}


def test_a_row_holds_median_and_range() -> None:
    assert performance.writing({"a case": result(Marian=1.0, ours=2.0), "train": result()}).splitlines() == [
        "date then, rounds 3:",
        "",
        "| times as fast as Marian | ours |",
        "|:--|--:|",
        "| a case | 2.00 (1.50-3.25) |",
        "",
        "Missing: T5, a case: it ended with 1.",
    ]


def test_bars_missed_and_unmeasured_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    bars = [table.Bar("a", "Dragoman", bar, 2.0) for bar in (1.5, 1.6)] + [table.Bar("b", "Dragoman", 1.0, 2.0)]
    monkeypatch.setattr(table, "BARS", bars)
    text, missed = table.judge({"a": result(Marian=1.0, Dragoman=1.5)})
    assert missed == 2
    assert [line.split(" | ")[-2] for line in text.splitlines()[2:]] == ["yes", "NO", "NOT MEASURED"]


def test_every_bar_has_its_cell() -> None:
    assert {bar.cell for bar in table.BARS} <= table.whole_table(1, {}).keys()


def test_a_failing_cell_costs_no_other_and_resuming_measures_it_alone(tmp_path: Path) -> None:
    file, calls = tmp_path / "cells.json", []

    def good() -> dict[str, Any]:
        calls.append("good")
        return {"value": 1}

    def bad() -> dict[str, Any]:
        raise ValueError("no")

    found, failures = turns.run_cells({"bad": bad, "good": good}, file, {}, lambda name, _: name)
    assert (found.keys(), failures) == ({"good"}, {"bad": "no"})
    found, failures = turns.run_cells({"bad": good, "good": good}, file, found, lambda name, _: name)
    assert (list(found), failures, calls) == (["good", "bad"], {}, ["good", "good"])


@pytest.mark.parametrize(
    ("arguments", "measured"),
    [
        ([], ["a 1", "a 2", "b"]),
        (["--resume"], ["a 2"]),
        (["--only", "a"], ["a 1", "a 2"]),
        (["--resume", "--only", "a"], ["a 2"]),
    ],
)
def test_what_is_chosen_is_measured_anew_and_what_is_not_is_kept(
    arguments: list[str], measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = {name: lambda: {"new": True} for name in ("a 1", "a 2", "b")}
    (tmp_path / "table.json").write_text(json.dumps({name: {"new": False} for name in ("a 1", "b")}), "utf-8")
    monkeypatch.setattr(table, "whole_table", lambda *_: cells)
    monkeypatch.setattr(table, "show", lambda name, _: name)
    monkeypatch.setattr(table, "BARS", [])
    monkeypatch.setattr("sys.argv", ["table.py", "--results", str(tmp_path), *arguments])
    with pytest.raises(SystemExit, match="0"):
        table.main()
    found = json.loads((tmp_path / "table.json").read_text("utf-8"))
    assert [name for name in cells if found.get(name, {}).get("new")] == measured
    assert found.keys() == cells.keys()


def test_outputs_too_simple_to_compare_are_refused() -> None:
    case = generate.Case(1, 8, 8, 1, 50, batch=2, tokens=4)
    sound = [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert "same for different" in generate.check(case, {"Marian": sound, "T5": [sound[0]] * 2})["T5"]
    for rows, message in (([[1] * 4, sound[1]], "repeats itself"), ([sound[0]] * 2, "same for different")):
        with pytest.raises(ValueError, match=message):
            generate.check(case, {"Marian": sound, "Dragoman, int8": rows})


def test_how_much_the_documentation_says_is_held_twice() -> None:
    with torch.device("meta"):
        model = DragomanForConditionalGeneration(presets.transformer_base(vocab_size=32000))
    shapes = [module.weight.shape for module in model.modules() if isinstance(module, nn.Linear)]
    twice = sum(shape.numel() for shape in shapes if is_worth_packing(*shape))
    every = sum(shape.numel() for shape in shapes)  # the vectors of the tokens are the head's
    text = " ".join((ROOT / "docs" / "quantization.md").read_text("utf-8").split())
    assert (
        f"{every / 1e6:.1f} million weights of the preset `transformer_base` (32,000 tokens) {twice / 1e6:.1f} million"
        in text
    )
    assert f"takes {(every + twice) / every / 4:.0%}".replace("%", " %") in text
