"""Averages of weights: over checkpoints against the mean in float64, over steps against the recursion, resuming."""

import copy
import json
import math
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from dragoman.modeling.decoding_coverage import is_untouched
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    AutoTokenizer,
    BartConfig,
    BartForSequenceClassification,
    Seq2SeqTrainer,
    T5Config,
    TrainerCallback,
)
from typer.testing import CliRunner

import dragoman
from dragoman import ExponentialMovingAverageCallback, average_checkpoints
from dragoman.__main__ import app
from ladder import SIDES
from support import build, tiny
from test_token_training import StopAt, trainer

SAVING: dict[str, Any] = {
    "save_strategy": "steps",
    "eval_strategy": "steps",
    "save_steps": 2,
    "eval_steps": 2,
    "max_steps": 8,
    "save_total_limit": 9,
    "learning_rate": 1e-2,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Trainer's folder with checkpoint-2, -4, -6 and -8."""
    folder = tmp_path_factory.mktemp("run")
    trainer(folder, **SAVING).train()
    shutil.copytree(folder / "checkpoint-8", folder / "checkpoint-9-kept")  # no checkpoint of the Trainer's
    return folder


def mean(folders: list[Path]) -> dict[str, torch.Tensor]:
    weights = [load_file(folder / "model.safetensors") for folder in folders]
    return {name: sum(w[name].double() for w in weights).div(len(weights)).float() for name in weights[0]}


def test_the_last_checkpoints(run: Path, tmp_path: Path) -> None:
    model = average_checkpoints(run, last=3)
    expected = mean([run / f"checkpoint-{step}" for step in (4, 6, 8)])
    state = model.state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0, msg=name)
    assert not torch.equal(
        state["model.encoder.embed_tokens.weight"], mean([run / "checkpoint-8"])["model.encoder.embed_tokens.weight"]
    )
    assert model.get_input_embeddings().weight is model.lm_head.weight  # still tied
    assert type(model) is dragoman.DragomanForConditionalGeneration
    assert not model.training
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(AutoModelForSeq2SeqLM.from_pretrained(tmp_path).state_dict(), state, rtol=0, atol=0)
    alone = average_checkpoints([run / "checkpoint-4"]).state_dict()
    for name, tensor in load_file(run / "checkpoint-4" / "model.safetensors").items():
        torch.testing.assert_close(alone[name], tensor, rtol=0, atol=0)


def rewrite_metric(run: Path, to: Path, name: str, values: dict[int, float], best: int | None) -> Path:
    shutil.copytree(run, to)
    path = to / "checkpoint-8" / "trainer_state.json"
    state = json.loads(path.read_text())
    for entry in state["log_history"]:
        if "eval_loss" in entry and entry["step"] in values:
            entry[name] = values[entry["step"]]
    if best is not None:
        state |= {"best_metric": values[best], "best_global_step": best}
    path.write_text(json.dumps(state))
    return to


def test_the_best_checkpoints(run: Path, tmp_path: Path) -> None:
    """By the loss unless the Trainer chose by another metric, or the caller does; lower or higher as either says."""
    folder = rewrite_metric(run, tmp_path / "a", "eval_loss", {2: 1.0, 4: 3.0, 6: 2.0, 8: 4.0}, None)
    rewritten = {2: 5.0, 4: 7.0, 6: 6.0, 8: 5.5}

    def chosen(best: int = 2, **options: Any) -> list[int]:
        folders = dragoman.averaging.select_checkpoints(folder, best=best, **options)
        return [int(path.name.rpartition("-")[2]) for path in folders]

    assert chosen() == [2, 6]
    assert chosen(metric_for_best_model="loss", greater_is_better=True) == [4, 8]
    folder = rewrite_metric(folder, tmp_path / "b", "eval_bleu", rewritten, 4)
    assert chosen() == chosen(metric_for_best_model="bleu") == [4, 6]
    assert chosen(metric_for_best_model="eval_loss") == [2, 6]
    folder = rewrite_metric(folder, tmp_path / "c", "eval_wer", {2: 0.1, 4: 0.3, 6: 0.25, 8: 0.15}, 2)
    assert chosen() == [2, 8]
    assert chosen(1, metric_for_best_model="eval_bleu") == [4]
    found = average_checkpoints(folder, best=2).state_dict()
    for name, tensor in mean([run / "checkpoint-2", run / "checkpoint-8"]).items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
    folder = rewrite_metric(folder, tmp_path / "d", "eval_wer", {2: math.nan, 4: 0.3, 6: 0.25, 8: 0.15}, 8)
    assert chosen(metric_for_best_model="wer", greater_is_better=False) == chosen() == [6, 8]
    with pytest.raises(ValueError, match=r"4 checkpoints wanted, but only 3 in .* have a number"):
        chosen(4)
    folder = rewrite_metric(folder, tmp_path / "e", "eval_ter", {2: math.nan, 4: 17.0, 6: 16.0, 8: 15.0}, 4)
    assert chosen() == [4, 6]
    folder = rewrite_metric(folder, tmp_path / "f", "eval_cer", {2: 0.5, 6: 0.4, 8: 0.3}, 8)  # the clock's: none at 4
    assert chosen() == [6, 8]
    folder = tmp_path / "d"
    with pytest.raises(ValueError, match="none: no such folder"):
        average_checkpoints([run / "checkpoint-2", tmp_path / "none"])
    with pytest.raises(
        ValueError, match=r"has no eval_chrf at any of the steps \[2, 4, 6, 8\] \(it knows eval_bleu, eval_"
    ):
        chosen(metric_for_best_model="chrf")


def test_shards_counters_and_other_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A classifier of transformers, in several files; and with a buffer that counts, which is the last one's."""

    class Counting(BartForSequenceClassification):
        def __init__(self, config: BartConfig) -> None:
            super().__init__(config)
            self.register_buffer("count", torch.tensor(0))

    states = []
    for i in range(3):
        torch.manual_seed(i)
        model = BartForSequenceClassification(BartConfig(vocab_size=61, **SIDES))
        model.save_pretrained(tmp_path / str(i), max_shard_size="20KB")
        model = Counting.from_pretrained(tmp_path / str(i))
        model.count.fill_(i)
        model.save_pretrained(tmp_path / f"counting-{i}")
        states.append(BartForSequenceClassification.from_pretrained(tmp_path / str(i)).state_dict())
    assert (tmp_path / "0" / "model.safetensors.index.json").is_file()
    found = average_checkpoints([tmp_path / str(i) for i in range(3)])
    assert type(found) is BartForSequenceClassification
    assert isinstance(AutoModelForSequenceClassification.from_config(found.config), type(found))
    for name, tensor in found.state_dict().items():
        expected = (sum(state[name].double() for state in states) / 3).float()
        torch.testing.assert_close(tensor, expected, rtol=0, atol=0, msg=name)
    monkeypatch.setattr("dragoman.averaging.load", Counting.from_pretrained)
    assert average_checkpoints([tmp_path / f"counting-{i}" for i in range(3)]).count == 2


@pytest.mark.parametrize("kind", [AutoModelForTextEncoding, AutoModel, AutoModelForSequenceClassification])
@pytest.mark.parametrize("family", ["dragoman", "t5"])
def test_the_class_is_the_checkpoints(kind: Any, family: str, tmp_path: Path) -> None:
    config = tiny() if family == "dragoman" else T5Config(vocab_size=37, d_model=8, d_kv=4, d_ff=8, num_layers=1)
    for i in range(2):
        torch.manual_seed(i)
        kind.from_config(config).save_pretrained(tmp_path / str(i))
    model = average_checkpoints([tmp_path / "0", tmp_path / "1"])
    assert type(model) is type(kind.from_pretrained(tmp_path / "0"))
    expected, found = mean([tmp_path / "0", tmp_path / "1"]), model.state_dict()
    torch.testing.assert_close({name: found[name] for name in expected}, expected)


@pytest.mark.parametrize("named", [["DragomanForSpeech"], None])
def test_a_class_that_nobody_knows(named: list[str] | None, tmp_path: Path) -> None:
    build(tiny()).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"architectures": named}))
    with pytest.raises(ValueError, match=rf"architectures={re.escape(repr(named))}, and no such class is known for"):
        average_checkpoints([tmp_path])


def test_half_precision_is_summed_in_float64(tmp_path: Path) -> None:
    model = build(tiny()).bfloat16()
    with torch.no_grad():
        for i, shift in enumerate((0.0, 256.0, -256.0)):
            model.model.encoder.norm.weight.fill_(1.0 + 2**-7 + shift)
            model.save_pretrained(tmp_path / str(i))
    found = average_checkpoints([tmp_path / str(i) for i in range(3)])
    assert found.dtype == torch.bfloat16
    weights = [load_file(tmp_path / str(i) / "model.safetensors")["model.encoder.norm.weight"] for i in range(3)]
    expected = torch.stack([weight.double() for weight in weights]).mean(0)
    torch.testing.assert_close(found.model.encoder.norm.weight, expected.bfloat16(), rtol=0, atol=0)


def test_refusals(run: Path, tmp_path: Path) -> None:
    deeper, wider = tmp_path / "deeper", tmp_path / "wider"
    base = tmp_path / "base"
    build(tiny()).save_pretrained(base)
    build(tiny(decoder_num_hidden_layers=3)).save_pretrained(deeper)
    build(tiny(vocab_size=38)).save_pretrained(wider)
    with pytest.raises(
        ValueError, match=r"differ in their configuration: decoder_num_hidden_layers \(2 and 3\)\. Only"
    ):
        average_checkpoints([base, deeper])
    with pytest.raises(ValueError, match=r"base and .*wider differ in their configuration: vocab_size \(37 and 38\)"):
        average_checkpoints([base, base, wider])
    shutil.copy(base / "config.json", wider / "config.json")
    with pytest.raises(ValueError, match=r"differ in their weights: .*\(\[37, 32\] and \[38, 32\]\)"):
        average_checkpoints([base, wider])
    (wider / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"has no model\.safetensors: is it a checkpoint\?"):
        average_checkpoints([wider])
    for arguments, options, message in (
        (run, {}, "Choose from the checkpoints in .*: last=10, or best=5"),
        (run, {"last": 2, "best": 2}, "Choose from"),
        (run, {"last": 0}, "last=0 must be a whole number above 0"),
        (run, {"last": 2, "metric_for_best_model": "bleu"}, "metric_for_best_model='bleu', .*: pass best=2, or leave"),
        (run, {"last": 2, "greater_is_better": True}, "greater_is_better=True choose the best, and last=2 the last"),
        (run, {"last": 5}, r"5 checkpoints wanted, but .* has 4 \(checkpoint-\*\): ask for fewer, or train with"),
        ([], {}, "the list of folders is empty"),
        ([run], {"last": 1}, "pass that instead of a list"),
        (tmp_path / "none", {"last": 1}, "no such folder"),
    ):
        with pytest.raises(ValueError, match=message):
            average_checkpoints(arguments, **options)  # type: ignore[arg-type]


def test_two_runs_in_one_folder(run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "both"))
    again = trainer(tmp_path / "other", **{**SAVING, "max_steps": 4, "seed": 1})
    again.train()
    shutil.rmtree(folder / "checkpoint-4")
    shutil.copytree(tmp_path / "other" / "checkpoint-4", folder / "checkpoint-4")
    for chosen in ({"last": 3}, {"best": 4}):
        with pytest.raises(ValueError, match=r"checkpoint-4 and .*checkpoint-8 are of two training runs"):
            average_checkpoints(folder, **chosen)  # type: ignore[arg-type]
    average_checkpoints([folder / "checkpoint-4", folder / "checkpoint-8"])  # who names them, means them
    for state in run.glob("checkpoint-?/trainer_state.json"):  # a loss that is no number is of no other run
        file = tmp_path / "nan" / state.relative_to(run)
        shutil.copytree(state.parent, file.parent)
        file.write_text(re.sub(r'"loss": [^,\n]+', '"loss": NaN', state.read_text()))
    assert len(dragoman.averaging.select_checkpoints(tmp_path / "nan", last=4)) == 4
    (folder / "checkpoint-8" / "trainer_state.json").unlink()
    with pytest.raises(ValueError, match=r"trainer_state\.json is missing, which tells the best"):
        average_checkpoints(folder, best=1)


def test_the_command_line(run: Path, tmp_path: Path) -> None:
    to = tmp_path / "mean"
    printed = CliRunner().invoke(app, ["average", str(run), str(to), "--last", "2"])
    assert printed.exit_code == 0, printed.output
    assert "The mean of checkpoint-6, checkpoint-8 is in" in printed.output
    found = load_file(to / "model.safetensors")
    torch.testing.assert_close(found, mean([run / "checkpoint-6", run / "checkpoint-8"]), rtol=0, atol=0)
    assert AutoTokenizer.from_pretrained(to)("abc")["input_ids"]
    again = CliRunner().invoke(app, ["average", str(run), str(to), "--last", "2"])
    assert again.exit_code == 1
    assert "exists: name a new folder" in again.stderr
    shutil.copytree(run, tmp_path / "broken")
    (tmp_path / "broken" / "checkpoint-8" / "tokenizer_config.json").write_text("{")
    refused = CliRunner().invoke(app, ["average", str(tmp_path / "broken"), str(tmp_path / "half"), "--last", "2"])
    assert refused.exit_code == 1
    assert "The tokenizer in" in refused.stderr
    assert not (tmp_path / "half").exists()
    rated = str(rewrite_metric(run, tmp_path / "rated", "eval_wer", {2: 0.1, 4: 0.3, 6: 0.25, 8: 0.15}, None))
    for direction, step in ((["--smaller-is-better"], 2), ([], 4)):
        to = tmp_path / f"best {step}"
        best = CliRunner().invoke(app, ["average", rated, str(to), "--best", "1", "--metric", "wer", *direction])
        assert f"The mean of checkpoint-{step} is in" in best.output


# ---- exponential moving average ----


class Watch(TrainerCallback):
    """Raw weights of every step, in float64, and how a decay would average them."""

    def __init__(self, decay: float) -> None:
        self.decay, self.average, self.step = decay, {}, 0

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.step += 1
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        for name, parameter in model.named_parameters():
            now = parameter.detach().double()
            self.average[name] = decay * self.average.get(name, now) + (1 - decay) * now


def test_the_moving_average_is_the_recursion_and_leaves_training_alone(tmp_path: Path) -> None:
    options = {**SAVING, "dropout": 0.1, "save_steps": 4}
    plain = trainer(tmp_path / "plain", **options)
    plain.train()
    run, watch = trainer(tmp_path / "run", **options), Watch(0.6)
    run.add_callback(watch)
    run.add_callback(ExponentialMovingAverageCallback(decay=0.6))
    run.train()
    for name, parameter in run.model.named_parameters():
        torch.testing.assert_close(parameter.double(), watch.average[name], rtol=1e-5, atol=1e-6, msg=name)
    raw = [load_file(tmp_path / which / "checkpoint-8" / "model.safetensors") for which in ("plain", "run")]
    torch.testing.assert_close(raw[0], raw[1], rtol=0, atol=0)
    losses = [[e["eval_loss"] for e in r.state.log_history if "eval_loss" in e] for r in (plain, run)]
    assert len(losses[0]) == len(losses[1]) == 4
    assert all(a != b for a, b in zip(*losses, strict=True))  # while training, the average is evaluated
    assert run.evaluate()["eval_loss"] == losses[1][-1]


class Late(TrainerCallback):
    """Asks for an evaluation after all others were asked, and keeps what a prediction step saw."""

    def __init__(self, watch: Watch) -> None:
        self.watch, self.saw = watch, []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        control.should_evaluate |= state.global_step == 3
        if state.global_step == 6:  # a look at the model that leaves it as it is, where a checkpoint is saved
            model.eval()

    def on_prediction_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        off = [(p - self.watch.average[name]).abs().max().item() for name, p in model.named_parameters()]
        self.saw.append((state.global_step, max(off)))
        assert is_untouched(model)  # else generation would be slow


@pytest.mark.parametrize("generates", [False, True])
def test_every_evaluation_while_training_is_of_the_average(generates: bool, tmp_path: Path) -> None:
    options = {**SAVING, "dropout": 0.1, "save_steps": 6, "eval_steps": 4, "predict_with_generate": generates}
    options |= {"tokens_per_batch": None, "trainer_class": Seq2SeqTrainer, "per_device_eval_batch_size": 8}
    for name, between in {"plain": [], "run": [ExponentialMovingAverageCallback(decay=0.6)]}.items():
        run, watch = trainer(tmp_path / name, **options), Watch(0.6)
        run.eval_dataset = {"a": run.eval_dataset, "b": run.eval_dataset}
        late = Late(watch)
        for callback in (watch, *between, late):
            run.add_callback(callback)
        run.train()
    assert {step for step, _ in late.saw} == {3, 4, 8}
    assert max(off for _, off in late.saw) < 1e-5
    entries = [{n: v for n, v in e.items() if n.startswith("eval_")} for e in run.state.log_history]
    a, b = ([e[f"eval_{name}_loss"] for e in entries if f"eval_{name}_loss" in e] for name in "ab")
    assert len(a) == 3
    assert a == b
    raw = [load_file(tmp_path / which / "checkpoint-6" / "model.safetensors") for which in ("plain", "run")]
    torch.testing.assert_close(raw[0], raw[1], rtol=0, atol=0)
    after = {name: parameter.clone() for name, parameter in run.model.named_parameters()}
    run.model.train().eval()
    torch.testing.assert_close(dict(run.model.named_parameters()), after, rtol=0, atol=0)  # nobody follows any more


def test_the_moving_average_resumes_exactly(tmp_path: Path) -> None:
    options = {**SAVING, "dropout": 0.1, "eval_steps": 3, "save_steps": 4, "max_steps": 6}
    whole = trainer(tmp_path / "whole", **options)
    whole.add_callback(ExponentialMovingAverageCallback(0.9))
    whole.train()
    stopped = trainer(tmp_path / "part", **options)
    stopped.add_callback(ExponentialMovingAverageCallback(0.9))
    stopped.add_callback(StopAt(4))
    stopped.train()
    moved = tmp_path / "moved"
    shutil.move(tmp_path / "part", moved)
    resumed = trainer(tmp_path / "rest", **options)
    resumed.add_callback(ExponentialMovingAverageCallback(0.9))
    resumed.train(resume_from_checkpoint=str(moved / "checkpoint-4"))
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    without = trainer(tmp_path / "plain", **options)
    without.add_callback(StopAt(4))
    without.train()
    late = trainer(tmp_path / "plain", **options)
    late.add_callback(ExponentialMovingAverageCallback())
    reason = r"was trained without ExponentialMovingAverageCallback, or saved without its optimizer \(save_only_model"
    with pytest.raises(ValueError, match=reason):
        late.train(resume_from_checkpoint=True)


def test_what_a_moving_average_refuses(tmp_path: Path) -> None:
    for decay in (0, 1.0, -0.5):
        with pytest.raises(ValueError, match=f"decay={decay} must be between 0 and 1, such as 0.999"):
            ExponentialMovingAverageCallback(decay)
    run = trainer(tmp_path, **SAVING, load_best_model_at_end=True)
    run.add_callback(ExponentialMovingAverageCallback())
    with pytest.raises(ValueError, match="load_best_model_at_end=True would end with the weights of a checkpoint"):
        run.train()
    run = trainer(tmp_path, **{**SAVING, "save_strategy": "best", "metric_for_best_model": "loss"})
    run.add_callback(ExponentialMovingAverageCallback())
    with pytest.raises(ValueError, match=r'save_strategy="best" would keep weights that were not measured'):
        run.train()
    run = trainer(tmp_path, **SAVING)
    run.model.bfloat16()
    run.add_callback(ExponentialMovingAverageCallback())
    with pytest.raises(ValueError, match=r"weights in torch\.bfloat16 cannot hold the small changes"):
        run.train()


def test_an_average_that_missed_steps_is_not_resumed(tmp_path: Path) -> None:
    for stop, averaged in ((2, True), (4, False)):
        run = trainer(tmp_path, **SAVING)
        run.add_callback(StopAt(stop))
        if averaged:
            run.add_callback(ExponentialMovingAverageCallback())
        run.train(resume_from_checkpoint=stop > 2)
    run = trainer(tmp_path, **SAVING)
    run.add_callback(ExponentialMovingAverageCallback())
    with pytest.raises(ValueError, match="of step 4, holds the average of step 2: between them"):
        run.train(resume_from_checkpoint=True)
    again = trainer(tmp_path / "twice", **{**SAVING, "max_steps": 2})
    again.add_callback(ExponentialMovingAverageCallback())
    for _ in range(2):  # begun anew, with the optimizer that there is
        again.train()


class Stop(TrainerCallback):
    """Breaks training off: in an evaluation, or in a step, after its gradient."""

    def __init__(self, in_evaluation: bool) -> None:
        self.in_evaluation = in_evaluation

    def on_prediction_step(self, *_: Any, **__: Any) -> None:
        if self.in_evaluation:
            raise KeyboardInterrupt

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self.in_evaluation and state.global_step == 3:
            raise KeyboardInterrupt


class Steps(TrainerCallback):
    """Keeps the weights after each step, and after each save."""

    def __init__(self) -> None:
        self.trained: dict[int, dict[str, torch.Tensor]] = {}
        self.saved: dict[int, dict[str, torch.Tensor]] = {}

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.trained[state.global_step + 1] = weights_of(model)

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.saved[state.global_step] = weights_of(model)


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def break_off(folder: Path, in_evaluation: bool) -> tuple[Any, Steps]:
    run, steps = trainer(folder, **{**SAVING, "save_steps": 8}), Steps()
    for callback in (steps, ExponentialMovingAverageCallback(0.9), Stop(in_evaluation)):
        run.add_callback(callback)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    return run.model, steps


@pytest.mark.parametrize("in_evaluation", [True, False])
@pytest.mark.parametrize("averaged", [True, False])
def test_another_training_takes_the_model_over(in_evaluation: bool, averaged: bool, tmp_path: Path) -> None:
    """From the weights that trained; the one that was broken off neither shows its average nor brings its own back."""
    model, first = break_off(tmp_path / "first", in_evaluation)
    runs = []
    for name in ("second", "alone"):
        run, steps = trainer(tmp_path / name, **SAVING), Steps()
        if name == "second":
            run.model_wrapped = run.model = model
        else:
            run.model.load_state_dict(list(first.trained.values())[-1], strict=False)  # head and vectors are tied
        for callback in (steps, *[ExponentialMovingAverageCallback(0.6)] * averaged):
            run.add_callback(callback)
        run.train()
        runs.append((run, steps))
    (second, steps), (alone, expected) = runs
    torch.testing.assert_close(steps.trained, expected.trained, rtol=0, atol=0)
    torch.testing.assert_close(steps.saved, expected.saved, rtol=0, atol=0)
    losses = [[e["eval_loss"] for e in run.state.log_history if "eval_loss" in e] for run in (second, alone)]
    assert losses[0] == losses[1]
    torch.testing.assert_close(weights_of(model.eval()), weights_of(alone.model), rtol=0, atol=0)


def test_a_training_that_was_broken_off_in_an_evaluation_gets_its_weights_back(tmp_path: Path) -> None:
    model, steps = break_off(tmp_path, in_evaluation=True)
    assert any(not torch.equal(tensor, steps.trained[2][name]) for name, tensor in weights_of(model).items())
    saved = model.state_dict()
    for name, tensor in steps.trained[2].items():
        torch.testing.assert_close(saved[name], tensor, rtol=0, atol=0, msg=name)


def test_what_is_loaded_after_a_training_was_broken_off_stays(tmp_path: Path) -> None:
    model, steps = break_off(tmp_path, in_evaluation=True)
    first = {name: tensor + 1 for name, tensor in steps.trained[1].items()}
    model.load_state_dict(first, strict=False)
    for found in (weights_of(model), weights_of(model.train()), weights_of(model.eval())):
        torch.testing.assert_close(found, first, rtol=0, atol=0)


class Copies(TrainerCallback):
    def __init__(self) -> None:
        self.copies: list[Any] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == 2:
            self.copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]  # as workers by spawn get it


def test_copies_of_a_model_that_trains_are_models_of_their_own(tmp_path: Path) -> None:
    run, copies = trainer(tmp_path, **SAVING), Copies()
    for callback in (ExponentialMovingAverageCallback(0.9), copies):
        run.add_callback(callback)
    run.train()
    for copied in copies.copies:
        before = weights_of(copied)
        assert not copied.eval().training
        assert copied.train().get_encoder().training
        copied.state_dict()
        torch.testing.assert_close(weights_of(copied), before, rtol=0, atol=0)


def test_a_first_step_whose_gradients_overflow(tmp_path: Path) -> None:
    """fp16's scaler leaves such steps out, and the optimizer has nothing yet where its first would find a state."""
    run = trainer(tmp_path, **SAVING, optim="adamw_torch")
    calls = iter(range(100))
    next(run.model.parameters()).register_hook(lambda gradient: gradient * (math.inf if next(calls) < 2 else 1))
    accelerator, skipped = run.accelerator, Skipped()
    accelerator.scaler = torch.amp.GradScaler("cpu")
    accelerator.unscale_gradients = lambda *_: [
        accelerator.scaler.unscale_(o.optimizer) for o in accelerator._optimizers
    ]
    for callback in (skipped, ExponentialMovingAverageCallback(0.6)):
        run.add_callback(callback)
    run.train()
    assert skipped.steps == [1, 2]
    assert all(torch.isfinite(tensor).all() for tensor in weights_of(run.model).values())


class Skipped(TrainerCallback):
    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        if optimizer.step_was_skipped:
            self.steps.append(state.global_step + 1)
