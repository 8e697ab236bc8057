"""The benchmark for a GPU runs on the CPU too, tiny; there a cell that fails, or has no time, costs no other."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import accelerator
from accelerator_cells import QUICK, operations
from training_engines import Work, draw_batches, like_marian


def broken() -> dict[str, Any]:
    raise ValueError("no such kernel")


def test_a_failure_costs_no_other_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "accelerator.json"
    row = {"tokens/s": 1234.5, "to Marian": 1.5}
    cells = {"a": broken, "b": lambda: {"engines": {"T5": row}, "failed": {"BART": "KeyError: x"}, "graphs": 2}}
    assert accelerator.run(cells, {"torch": "2"}, 60, file) == 1
    report = json.loads(file.read_text("utf-8"))
    assert report["cells"]["a"]["error"].startswith("ValueError: no such kernel (")
    assert report["cells"]["b"]["engines"] == {"T5": row}
    assert report["not begun"] == []
    printed = capsys.readouterr().out
    assert "- error: ValueError: no such kernel" in printed
    assert "| T5 | 1,234 | 1.5 |\n\n- graphs: 2\n- BART FAILED: KeyError: x" in printed
    assert "failed: a; not begun: none" in printed


def test_cells_without_time_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert accelerator.run({"a": broken, "b": broken}, {}, -1, tmp_path / "none.json") == 0
    assert "failed: none; not begun: a, b" in capsys.readouterr().out


def test_older_kernels_are_given_what_they_know() -> None:
    def oldest(q: int, is_causal: bool = False) -> Any:
        return q, is_causal

    def older(q: int, *, scale: float, window_size: tuple[int, int]) -> Any:
        return q, scale, window_size

    options: dict[str, Any] = {"scale": 0.5, "window_size": (-1, 0), "enable_gqa": False}
    assert accelerator.adapted(oldest)(1, **options) == (1, True)
    assert accelerator.adapted(older)(1, **options) == (1, 0.5, (-1, 0))


def test_operations() -> None:
    """Every matrix that a token passes, thrice, forwards and twice backwards: two operations a weight."""
    pairs = draw_batches(Work(QUICK.sizes, "ragged", 1, rows=3))[0]
    source, target = (sum(len(pair[name]) for pair in pairs) for name in ("input_ids", "labels"))
    c, f, v = QUICK.sizes.size, QUICK.sizes.feed_forward, QUICK.sizes.vocabulary
    expected = source * (4 * c * c + 2 * c * f + 2 * c * c) + target * (6 * c * c + 2 * c * f + v * c)
    assert operations(like_marian(QUICK.sizes, 0.0), pairs) == 6 * expected


@pytest.mark.slow
def test_every_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "accelerator.json"
    monkeypatch.setattr(sys, "argv", ["accelerator.py", "--device", "cpu", "--quick", "--output", str(file)])
    with pytest.raises(SystemExit, match="0"):
        accelerator.main()
    torch.compiler.reset()
    report = json.loads(file.read_text("utf-8"))
    assert report["not begun"] == []
    assert not any(found.get("failed") for found in report["cells"].values())
    same = report["cells"]["padded and packed"]
    assert same["fp32, difference of the losses"] < 1e-6
    assert same["fp32, worst difference of a gradient"] < 1e-4
    assert all(report["cells"][f"{how}, fp32, batch 3"]["as the stock loop"] for how in ("greedy", "beam 4"))
    assert report["cells"]["greedy, static cache"]["graphs"] <= 2
    assert report["cells"]["training, compiled"]["graphs"] <= 2
