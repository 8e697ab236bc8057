"""The measured story: tasks by hand, equal budgets, verdicts on made-up results, pictures, and a whole small run."""

import itertools
import json
import math
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, Seq2SeqTrainer

import processor_clock
import recall_tasks
import road_measurements
import road_pictures
import road_tasks
import road_to_attention
import road_verdicts
from processor_clock import ProcessorClock
from pronounce import is_held_out, read_dictionary
from recall_tasks import FIRST, SYMBOLS, VOCABULARY, BatchStream, make_batch, whole_batch
from road_models import LAYERS, MODELS, NAMES, build_config, build_model, count_parameters, find_hidden_size
from road_report import ASKED, PICTURED, gather_results, stated_conditions, write_page
from road_verdicts import FAILS, HOLDS, judge
from support import ROOT

FIELDS = {"vocab_size": VOCABULARY, "dropout": 0.0}
PNG = b"\x89PNG"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TestTasks:
    @pytest.mark.parametrize("marked", [1, 8])
    def test_recall_repeats_what_is_marked_and_nothing_else(self, marked: int) -> None:
        batch = make_batch(f"recall-{marked}", 5, 3, seeded())
        source, target = batch["input_ids"], batch["labels"]
        assert source.shape == (3, marked + 5 + 1)
        assert target.shape == (3, marked + 1)
        for row, answer in zip(source.tolist(), target.tolist(), strict=True):
            assert row[-1] == answer[-1] == 2
            assert [token for token in row if token >= FIRST + SYMBOLS] == answer[:-1] == row[:marked]
            assert all(FIRST <= token < FIRST + SYMBOLS for token in row[marked:-1])
            assert max(answer) < VOCABULARY

    def test_copy_and_reverse(self) -> None:
        for task, step in (("copy", 1), ("reverse", -1)):
            batch = make_batch(task, 6, 4, seeded())
            for row, answer in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
                assert len(row) == 7
                assert answer == [*row[:-1][::step], 2]
                assert row[:-1] != row[:-1][::-1]  # or the two tasks are one

    def test_all_symbols_are_drawn(self) -> None:
        source = make_batch("copy", 500, 2, seeded())["input_ids"]
        assert set(source[:, :-1].flatten().tolist()) == set(range(FIRST, FIRST + SYMBOLS))
        marked = make_batch("recall-8", 1, 200, seeded())["labels"][:, :-1]
        assert set(marked.flatten().tolist()) == set(range(FIRST + SYMBOLS, VOCABULARY))

    def test_an_unknown_task_is_named(self) -> None:
        with pytest.raises(ValueError, match="no task 'sort'; choose from recall-1"):
            make_batch("sort", 4, 1, seeded())

    def test_a_stream_is_a_function_of_seed_and_index(self) -> None:
        first, second, other = (BatchStream("copy", 16, 128, seed) for seed in (0, 0, 1))
        for index in (0, 7):
            torch.testing.assert_close(first[index], second[index])
            assert first[index]["input_ids"].tolist() != other[index]["input_ids"].tolist()
        assert first[0]["input_ids"].tolist() != first[1]["input_ids"].tolist()

    def test_lengths_are_mixed_throughout_and_batches_cost_the_same(self) -> None:
        stream = BatchStream("copy", 64, 256, seed=0, count=1000)
        steps = [stream[index]["input_ids"].shape[1] - 1 for index in range(1000)]
        assert min(steps) == 4
        assert 60 <= max(steps) <= 64
        for part in (steps[:300], steps[300:]):  # four doublings, equally frequent
            for low in (4, 8, 16, 32):
                assert sum(low <= length < 2 * low for length in part) == pytest.approx(len(part) / 4, rel=0.25)
        for index in (0, 500):
            rows, columns = stream[index]["labels"].shape
            assert 128 < rows * 2 * (columns - 1) <= 256
        assert len(BatchStream("copy", 64, 8, seed=0)[900]["labels"]) == 1  # never none
        with pytest.raises(IndexError):
            stream[1000]

    def test_tuning_looks_at_all_lengths(self) -> None:
        task: Any = road_tasks.RecallTask("recall-1", longest=256, tokens=512, rows=2)
        data = task.trainer_options(0)["eval_dataset"]
        steps = [data[index]["input_ids"].shape[1] - 2 for index in range(len(data))]
        for low in (4, 16, 64):
            assert sum(low <= length < 4 * low for length in steps) >= len(steps) / 6

    def test_an_item_is_a_batch(self) -> None:
        batch = make_batch("copy", 4, 2, seeded())
        assert whole_batch([batch]) == batch
        with pytest.raises(ValueError, match="too many values"):
            whole_batch([batch, batch])


class TestBudget:
    def test_time_asleep_is_free(self) -> None:
        clock = ProcessorClock(1.0)
        begin = clock.now()
        time.sleep(0.2)
        asleep = clock.now() - begin
        while clock.now() - begin < asleep + 0.05:  # ends only if work counts
            pass
        assert asleep < 0.1

    def test_a_short_run_warms_up_as_a_long_one_does(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A share of the time: 100 steps would be all of a run that tries a rate."""
        rates: list[float] = []
        monkeypatch.setattr(processor_clock, "time", SimpleNamespace(process_time=itertools.count().__next__))
        monkeypatch.setattr(
            ProcessorClock,
            "on_step_begin",
            lambda self, *_, lr_scheduler, **__: rates.append(lr_scheduler.get_last_lr()[0]),
        )
        task: Any = road_tasks.RecallTask("recall-1", longest=4, tokens=16, rows=2)
        trainer = road_measurements.train(task, "transformer", 0, 1e-3, 0.5, 16, tmp_path)
        assert trainer.state.global_step == 30
        top = rates.index(max(rates))
        assert 2 <= top <= 4
        assert max(rates) > 0.9e-3
        assert rates[-1] < 0.1e-3

    @pytest.mark.parametrize("both_ways", [False, True])
    @pytest.mark.parametrize("fields", [FIELDS, {**FIELDS, "source_vocab_size": 30, "share_embeddings": False}])
    def test_all_models_have_as_many_parameters(self, fields: dict[str, Any], both_ways: bool) -> None:
        sizes = {name: count_parameters(build_config(name, fields, both_ways)) for name in NAMES}
        for size in sizes.values():
            assert size == pytest.approx(sizes["transformer"], rel=0.02), sizes
        assert sizes["one-head"] == sizes["transformer"]

    def test_counts_are_those_of_the_model(self) -> None:
        config = build_config("additive", FIELDS, True)
        assert count_parameters(config) == sum(p.numel() for p in build_model(config).parameters())

    def test_they_are_what_their_names_say(self) -> None:
        fixed, dot = (build_config(name, FIELDS, False) for name in ("fixed", "dot"))
        assert (fixed.attention, dot.attention, dot.bidirectional, dot.cell) == ("none", "dot", False, "gru")
        one, many = (build_config(name, FIELDS, False) for name in ("one-head", "transformer"))
        assert (one.num_attention_heads, many.num_attention_heads) == (1, 4)
        with pytest.raises(ValueError, match="no model 'lstm'; choose from fixed"):
            build_config("lstm", FIELDS, False)

    def test_the_nearest_even_size(self) -> None:
        assert find_hidden_size(10_100, lambda size: size**2) == 100  # 98² = 9,604, 102² = 10,404
        assert find_hidden_size(10_300, lambda size: size**2) == 102
        assert find_hidden_size(4, lambda size: size**2) == 2
        with pytest.raises(ValueError, match="within 2%: 4 gives 16, 6 gives 36"):
            find_hidden_size(26, lambda size: size**2)


class TestRecallIsMeasured:
    class Oracle:
        """Copies, but for the last symbol of each row, and stops too early in every other row."""

        device = torch.device("cpu")

        def generate(self, ids: torch.Tensor, max_new_tokens: int, **_: Any) -> torch.Tensor:
            written = torch.cat([torch.ones(len(ids), 1, dtype=torch.long), ids], dim=1)
            written[:, -2] = 2
            return written[:, : max_new_tokens + 1]

    def test_by_place(self) -> None:
        task: Any = road_tasks.RecallTask("copy", longest=16, tokens=64, rows=40)
        points = task.measure(self.Oracle())
        assert [(p.length, p.sources) for p in points] == [(4, 10), (8, 10), (16, 10)]
        assert [p.percent for p in points] == pytest.approx([75, 87.5, 93.75])


class TestWords:
    def test_three_parts_that_share_no_word(self, few_words: None) -> None:
        task: Any = road_tasks.read_task("words", 8, 64, 5, None, limit=50)
        assert 0 < len(task.test) <= 50
        assert all(is_held_out(word) and not road_tasks.is_for_tuning(word) for word in task.test)
        assert all(max(len(word) for word in part) <= 16 for part in [task.test])
        decoded = {task.tokenizer.decode(example["input_ids"], skip_special_tokens=True) for example in task.train}
        assert not decoded & set(task.test)
        assert task.fields["source_vocab_size"] is not None

    def test_any_listed_way_is_right(self) -> None:
        assert road_tasks.share_right(["a", "b", "c"], [["x", "a"], ["y"], ["c"]]) == pytest.approx(200 / 3)

    def test_translation_needs_pairs(self, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match="translation needs --train_file"):
            road_to_attention.main(["--task", "translation", "--output_dir", str(tmp_path)])
        file = tmp_path / "pairs.tsv"
        file.write_text("".join(f"one {n} two\teins {n} zwei\n" for n in range(400)), "utf-8")
        task: Any = road_tasks.read_task("translation", 8, 64, 5, str(file), limit=50)
        assert not {source for source in task.test if not is_held_out(source)}
        assert task.score(["one two three four"], [["one two three four"]]) == pytest.approx(100)
        with pytest.raises(ValueError, match="no task 'sorting'"):
            road_tasks.read_task("sorting", 8, 64, 5, None, None)


class TestVerdicts:
    @pytest.mark.parametrize(
        ("held", "verdict"),
        [
            ([True, True, True], HOLDS),
            ([False, True, True], "holds only beyond length 4"),
            ([True, False, True], "holds only beyond length 8"),
            ([False, False, True], "holds only beyond length 8"),
            ([True, True, False], FAILS),
            ([False, False, False], FAILS),
        ],
    )
    def test_judge(self, held: list[bool], verdict: str) -> None:
        assert judge([4, 8, 16], held) == verdict

    def test_above_is_by_a_margin_and_without_overlap(self) -> None:
        assert road_verdicts.is_above([90, 92], [85, 88])
        assert not road_verdicts.is_above([90, 92], [89, 90])  # too near
        assert not road_verdicts.is_above([95, 87], [88, 80])  # one seed the other way

    def test_spread(self) -> None:
        assert road_verdicts.spread([1, 2, 6]) == "3.0 (1.0 to 6.0)"
        assert road_verdicts.spread([5.0]) == "5.0"

    def test_claims_of_a_story_that_goes_as_told(self) -> None:
        claims = road_verdicts.claims_of_tasks(made_up(fixed=(99, 40, 7), attention=(99, 99, 99), last=(99, 99, 99)))
        verdicts = {claim.says.split(":")[0]: claim.verdict for claim in claims}
        assert verdicts["A fixed context forgets long inputs"] == HOLDS
        assert verdicts["Attention looks back"] == "holds only beyond length 4"
        assert verdicts["Self-attention needs no recurrence"] == HOLDS
        number = next(c.number for c in claims if "forgets" in c.says)
        assert "99.0 (98.0 to 100.0) to 7.0 (6.0 to 8.0)" in number

    def test_claims_of_reach_are_of_recall(self) -> None:
        curves = made_up(fixed=(99, 40, 7), attention=(100, 98.5, 99.5), last=(100, 99.5, 98))
        assert not [claim for claim in road_verdicts.claims_of_tasks(curves) if "reaches" in claim.says]
        claims = road_verdicts.claims_of_tasks({"recall-1": curves["copy"]})
        reach = [claim for claim in claims if "reaches" in claim.says]
        assert [claim.verdict for claim in reach] == [*2 * ["holds only beyond length 8"], FAILS]
        assert reach[0].number == "at 16: 99.5 (98.5 to 100.5); least, at 8: 98.5 (97.5 to 99.5)"

    def test_claims_of_a_story_that_does_not(self) -> None:
        """All lose alike: that is the task, not the fixed context. And the Transformer is behind at the end."""
        claims = road_verdicts.claims_of_tasks(made_up(fixed=(99, 60, 50), attention=(99, 60, 50), last=(99, 60, 30)))
        assert {claim.verdict for claim in claims} == {FAILS}

    def test_claims_of_speed(self) -> None:
        def record(model: str, *speeds: float) -> dict[str, Any]:
            pairs = zip((8, 64), speeds, strict=True)
            return {"model": model, "speeds": [{"length": n, "tokens_per_second": s} for n, s in pairs]}

        records = [record("fixed", 300, 300), record("additive", 100, 50), record("dot", 200, 100)]
        claims = road_verdicts.claims_of_speed([*records, record("transformer", 200, 200)])
        assert [claim.verdict for claim in claims] == [FAILS, HOLDS, "holds only beyond length 8"]
        assert claims[1].number == "2.00 times as fast at 8, 4.00 at 64"

    def test_claims_of_heads(self) -> None:
        def record(model: str, percent: float) -> dict[str, Any]:
            points = [
                {"length": 4, "percent": percent, "sources": 1},
                {"length": 8, "percent": percent - 8, "sources": 3},
            ]
            return {"task": "words", "model": model, "points": points}

        removal = {"heads": [{"lost": points} for points in (0.2, 5.0, 1.0)]}
        records = [record("transformer", 70), record("transformer", 71), record("one-head", 66), record("one-head", 65)]
        many, needed = road_verdicts.claims_of_heads(records, removal)
        assert (many.verdict, many.number) == (HOLDS, "four 64.5 (64.0 to 65.0), one 59.5 (59.0 to 60.0)")
        assert needed.verdict == FAILS
        assert needed.number.startswith("2 of 3 heads are worth 1 point or more; the most needed 5.0")
        assert road_verdicts.claims_of_heads(records, {"heads": [{"lost": 2.0}]})[1].verdict == HOLDS

    def test_claims_of_depth(self, tmp_path: Path) -> None:
        names = ("as it is", "no residual", "no norm", "no depth scaling", "neither norm nor depth scaling")
        header = ",".join(["step", *(f'"2+2 pre-norm, {name}"' for name in names)])
        rows = [f"{step},0.1,2.5,0.15,0.3,{'' if step else 'nan'}" for step in range(0, 24, 4)]
        file = tmp_path / "stability.csv"
        file.write_text("\n".join([header, *rows]) + "\n", "utf-8")
        claims = road_verdicts.claims_of_depth(road_verdicts.read_depth(file))
        assert [claim.verdict for claim in claims] == [HOLDS, FAILS, HOLDS]
        assert claims[0].number == "loss at the end 0.1 with, 2.5 without"
        assert "diverged" in claims[2].number

    def test_the_losses_of_the_library_are_readable(self) -> None:
        losses = road_verdicts.read_depth(ROOT / "docs" / "stability.csv")
        assert len(losses) == 2
        assert all(set(variants) == set(road_pictures.VARIANTS) for variants in losses.values())
        assert all(math.isfinite(variants["as it is"][-1]) for variants in losses.values())

    def test_results_of_unlike_runs_are_not_mixed(self, tmp_path: Path) -> None:
        files = [tmp_path / f"{n}.json" for n in range(3)]
        for file, minutes in zip(files, (1, 1, 2), strict=True):
            file.write_text(json.dumps({"task": "copy", "minutes": minutes, "losses": [1.0]}), "utf-8")
        assert gather_results(files[:2], [], files[0])["runs"] == 2 * [{"task": "copy", "minutes": 1}]
        with pytest.raises(ValueError, match="runs of copy were of different lengths: 1, 2 minutes"):
            gather_results(files, [], files[0])

    def test_results_of_unlike_machines_are_not_mixed(self) -> None:
        one = {"torch": "2", "transformers": "5", "threads": 1, "device": "CPU", "date": "2026-01-02"}
        assert stated_conditions([one, {**one, "date": "2026-01-01"}]).endswith("2026-01-01 to 2026-01-02")
        with pytest.raises(ValueError, match="different threads: 1, 2"):
            stated_conditions([one, {**one, "threads": 2}])


def made_up(**percents: tuple[float, ...]) -> road_verdicts.Curves:
    """Two seeds a model, a point to either side."""
    curves = {name: {n: [p - 1, p + 1] for n, p in zip((4, 8, 16), ps, strict=True)} for name, ps in percents.items()}
    models = {"fixed": "fixed", "additive": "attention", "dot": "attention", "transformer": "last"}
    return {"copy": {model: curves[name] for model, name in models.items()}}


class TestPictures:
    def test_accuracy(self, tmp_path: Path) -> None:
        curves = made_up(fixed=(99, 40, 7), attention=(99, 99, 99), last=(99, 99, 98))
        told = {"copy": {"unit": "symbols", "metric": "right, %", "chance": 6.25}}
        figure = road_pictures.draw_accuracy(curves, told, tmp_path / "accuracy.png")
        (axis,) = figure.axes
        assert (axis.get_xlabel(), axis.get_ylabel()) == ("length (symbols)", "right, %")
        assert [line.get_label() for line in axis.lines] == [*(NAMES[model] for model in MODELS), "chance"]
        assert list(axis.lines[0].get_ydata()) == [99, 40, 7]
        assert len({(line.get_color(), line.get_marker()) for line in axis.lines}) == 5
        check_picture(figure, tmp_path / "accuracy.png")

    def test_speed(self, tmp_path: Path) -> None:
        speeds = [{"length": n, "tokens_per_second": 100.0 * n} for n in (8, 16)]
        records = [{"model": model, "speeds": speeds} for model in MODELS]
        figure = road_pictures.draw_speed(records, tmp_path / "speed.png")
        assert figure.axes[0].get_ylabel() == "training speed (tokens/s)"
        assert figure.axes[0].get_xlabel().startswith("length (symbols")
        check_picture(figure, tmp_path / "speed.png")

    def test_depth(self, tmp_path: Path) -> None:
        losses = road_verdicts.read_depth(ROOT / "docs" / "stability.csv")
        figure = road_pictures.draw_depth(losses, 4, tmp_path / "depth.png")
        assert [axis.get_xlabel() for axis in figure.axes] == ["step", "step"]
        assert figure.axes[0].get_ylabel() == "loss (nats a token)"
        assert figure.axes[0].lines[0].get_xdata()[-1] == 396
        diverged = [line.get_label() for line in figure.axes[0].lines if "diverged" in line.get_label()]
        assert diverged == ["neither norm nor depth scaling: diverged"]
        check_picture(figure, tmp_path / "depth.png")

    def test_colours_and_markers_differ(self) -> None:
        looks = road_pictures.LOOKS
        assert set(looks) == set(NAMES)
        for name in ("color", "marker"):
            assert len({look[name] for look in looks.values()}) == len(looks)


def check_picture(figure: Any, file: Path) -> None:
    """It exists, and no label reaches beyond its edge."""
    assert file.read_bytes().startswith(PNG)
    figure.canvas.draw()
    bounds = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert bounds.x0 >= -0.02
    assert bounds.y0 >= -0.02
    assert bounds.x1 <= width + 0.02
    assert bounds.y1 <= height + 0.02


def test_a_head_is_taken_away_and_put_back() -> None:
    torch.manual_seed(0)
    model: Any = build_model(build_config("transformer", FIELDS, False, width=32)).eval()
    kinds = [(part, layer) for part, layer, _ in road_measurements.attention_parts(model)]
    assert kinds == [("encoder", 0), ("encoder", 1), ("decoder", 0), ("cross", 0), ("decoder", 1), ("cross", 1)]
    before = {name: x.clone() for name, x in model.state_dict().items()}
    _, _, attention = next(iter(road_measurements.attention_parts(model)))
    x = torch.randn(1, 3, 32)
    whole, _ = attention(x, mask=None)
    parts = []
    for head in range(4):
        with road_measurements.without_head(attention, head):
            parts.append(whole - attention(x, mask=None)[0])
    torch.testing.assert_close(sum(parts), whole)  # there is no bias: the output is the sum of its heads
    assert all(part.abs().max() > 0.01 for part in parts)
    removal = road_measurements.measure_heads(model, lambda: 50.0)
    assert len(removal["heads"]) == 3 * LAYERS * 4
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_measured_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def measure() -> dict[str, Any]:
        calls.append(1)
        return {"value": len(calls)}

    path, asked = tmp_path / "folder" / "result.json", {"width": 8, "minutes": 0.5}
    first = road_measurements.measured_once(path, measure, asked)
    assert first == road_measurements.measured_once(path, measure, asked)
    with pytest.raises(ValueError, match=r"result\.json is of a plan with width 8, not 9: give this one another"):
        road_measurements.measured_once(path, measure, {"width": 9, "minutes": 0.5})
    assert (first["value"], first["threads"]) == (1, torch.get_num_threads())
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]

    def fail() -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        road_measurements.measured_once(tmp_path / "other.json", fail, asked)
    assert not (tmp_path / "other.json").exists()


def test_tuning_takes_the_lowest_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = dict(zip(road_measurements.RATES, (2.0, 1.0, 3.0), strict=True))
    asked = []

    def attempt(task: Any, model: str, rate: float, *_: Any) -> dict[str, Any]:
        asked.append(rate)
        return {"rate": rate, "loss": losses[rate]}

    monkeypatch.setattr(road_measurements, "try_rate", attempt)
    task: Any = road_tasks.RecallTask("copy", 8, 64, 2)
    for _ in range(2):
        assert (
            road_measurements.tune(task, "dot", tmp_path, {"minutes": 1.0, "width": 32}) == road_measurements.RATES[1]
        )
    assert asked == list(road_measurements.RATES)


@pytest.fixture
def few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fortieth word, and those that are pictured."""
    whole = read_dictionary()
    kept = {*list(whole)[::40], *PICTURED, ASKED}
    monkeypatch.setattr(road_tasks, "read_dictionary", lambda: {word: whole[word] for word in kept})


def test_a_whole_small_run(
    few_words: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert all(is_held_out(word) for word in (*PICTURED, ASKED))
    monkeypatch.setattr(road_measurements, "RATES", (1e-3, 2e-3))
    results, docs = tmp_path / "results", tmp_path / "docs"
    plan = ["--task", "words", "recall-1", "speed", "heads", "--seeds", "0", "--output_dir", str(results)]
    plan += ["--max_minutes", "0.002", "--width", "64", "--longest", "8", "--batch_tokens", "128"]
    plan += ["--measured_rows", "5", "--measured_texts", "40", "--docs_dir", str(docs)]
    with pytest.raises(SystemExit, match="results are missing, such as"):
        road_to_attention.main([*plan, "--report"])
    road_to_attention.main(plan)
    records = {
        path.relative_to(results): path.read_bytes() for path in results.rglob("*.json") if "seed-0.json" in path.name
    }
    assert {path.parts for path in records} == {
        *(("words", f"{model}-seed-0.json") for model in NAMES),
        *(("recall-1", f"{model}-seed-0.json") for model in MODELS),
    }
    sizes = [json.loads(record)["parameters"] for path, record in records.items() if path.parts[0] == "words"]
    assert max(sizes) <= 1.04 * min(sizes)
    assert [p["length"] for p in json.loads(records[Path("recall-1/dot-seed-0.json")])["points"]] == [4, 8]
    loaded = AutoModelForSeq2SeqLM.from_pretrained(results / "words" / "dot-seed-0")
    assert loaded.config.attention == "dot"

    def refuse(self: Any) -> None:
        raise AssertionError("a result that exists was measured again")

    (results / "recall-1" / "fixed-seed-0.json").unlink()
    monkeypatch.setattr(Seq2SeqTrainer, "train", refuse)
    with pytest.raises(AssertionError, match="measured again"):
        road_to_attention.main([*plan, "--models", "fixed"])
    (results / "recall-1" / "fixed-seed-0.json").write_bytes(records[Path("recall-1/fixed-seed-0.json")])
    road_to_attention.main(plan)
    for name, value, told in (("max_minutes", "9", r"minutes 0\.002, not 9\.0"), ("width", "32", "width 64, not 32")):
        with pytest.raises(SystemExit, match=f"is of a plan with {told}: give this one another --output_dir"):
            road_to_attention.main([*plan, f"--{name}", value])
    with pytest.raises(SystemExit, match=r"heads/transformer\.json is of a plan with minutes 0\.002, not 9\.0"):
        road_to_attention.main([*plan, "--task", "heads", "--max_minutes", "9"])
    with pytest.raises(SystemExit, match="--max_minutes must be above 0, not 0"):
        road_to_attention.main([*plan, "--max_minutes", "0"])

    road_to_attention.main([*plan, "--report"])
    page = (docs / "road_to_attention.md").read_text("utf-8")
    pictures = {Path(name).name for name in re.findall(r"\]\((images/[^)]*)\)", page)}
    assert pictures == {f"road_{name}.png" for name in ("accuracy", "alignments", "speed", "heads", "depth")}
    assert all((docs / "images" / name).read_bytes().startswith(PNG) for name in pictures)
    rows = [line.split("|")[-2].strip() for line in page.splitlines() if line.startswith("| ") and "**" in line]
    assert len(rows) == 2 * 4 + 3 + 3 + 2 + 6  # tasks, reach, speed, heads, depth
    assert all(re.fullmatch(r"\*\*(holds|does not hold here|holds only beyond length \d+)\*\*", row) for row in rows)
    assert "{" not in page
    assert "recall-1, dot, seed 0" in capsys.readouterr().out


def test_the_page_says_what_was_measured() -> None:
    docs = ROOT / "docs"
    results = json.loads((docs / "road_to_attention.json").read_text("utf-8"))
    page = (docs / "road_to_attention.md").read_text("utf-8")
    assert page == write_page(results, road_verdicts.read_depth(docs / "stability.csv"))
    assert all((docs / picture).is_file() for picture in re.findall(r"\]\((images/[^)]*)\)", page))


def test_what_is_unknown_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="unknown: lstm, sorting"):
        road_to_attention.main(["--task", "sorting", "--models", "lstm", "--output_dir", str(tmp_path)])
    assert not list(tmp_path.iterdir())
    assert recall_tasks.TASKS == ("recall-1", "recall-8", "copy", "reverse")
