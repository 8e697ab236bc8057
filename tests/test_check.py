"""The check passes for what is right, and each line goes red for the fault it is there for."""

import dataclasses
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dragoman.modeling import decoder, encoder, modeling_dragoman_recurrent, packing, recurrent_layers
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForSeq2SeqLM,
    MarianConfig,
    MarianMTModel,
    Seq2SeqTrainer,
)
from typer.testing import CliRunner

import dragoman
from dragoman import DragomanForConditionalGeneration
from dragoman.__main__ import app
from dragoman.checking import LINES, Subject, Verdict, check, find_subject, judge, subjects, training
from dragoman.checking.attention import uncompiled
from dragoman.checking.measuring import flat_gradient
from dragoman.checking.verdicts import LIMITS, Evidence
from ladder import SIDES
from support import ROOT, SCHEMES

Patch = pytest.MonkeyPatch
FORWARD = DragomanForConditionalGeneration.forward
QUICK = [number for number in LINES if number not in (1, 12)]


def alone(model: str, **overrides: Any) -> Subject:
    """Without the second process."""
    return dataclasses.replace(find_subject(model, overrides), overrides=None)


def red(subject: Subject, lines: list[int] = QUICK) -> dict[int, Verdict]:
    verdicts = [judge(subject, number) for number in lines]
    return {verdict.number: verdict for verdict in verdicts if verdict.status == "FAIL"}


PRESETS = [("tiny", "rotary"), ("modern_base", "rotary"), ("transformer_base", "sinusoidal")]
OURS = PRESETS + [("tiny", scheme) for scheme in SCHEMES if scheme != "rotary"]


@pytest.mark.parametrize(("preset", "scheme"), OURS)
def test_ours_pass(preset: str, scheme: str) -> None:
    verdicts = [judge(alone(preset, position_encoding=scheme), number) for number in QUICK]
    assert [v for v in verdicts if v.status == "FAIL"] == []
    assert {v.number for v in verdicts if v.status == "not offered"} == set()


def test_a_start_that_is_the_pad_token_passes() -> None:
    """As in what was converted from Marian and Pegasus: a target of that one token is not to be told from padding."""
    verdicts = [judge(alone("tiny", pad_token_id=0, decoder_start_token_id=0), number) for number in QUICK]
    assert [v for v in verdicts if v.status == "FAIL"] == []


RECURRENT: list[dict[str, Any]] = [
    {"attention": "none"},
    {"attention": "additive"},
    {"attention": "dot", "cell": "lstm"},
    {"attention": "general", "input_feeding": True},
    {"attention": "concat", "cell": "lstm", "bidirectional": False, "num_hidden_layers": 1},
]


@pytest.mark.parametrize("options", RECURRENT, ids=lambda options: options["attention"])
def test_recurrent_models_pass(options: dict[str, Any]) -> None:
    """What they do not have is said."""
    verdicts = {number: judge(alone("dragoman_recurrent", **options), number) for number in QUICK}
    assert [v for v in verdicts.values() if v.status == "FAIL"] == []
    notes = {v.number: v.note for v in verdicts.values() if v.status == "not offered"}
    assert notes.keys() == {5, 8}
    assert notes[5] == "no packed path"
    assert ("it attends to nothing" if options["attention"] == "none" else "sdpa (its class refuses it)") in notes[8]
    assert "without greedy, static cache (cache_implementation='static' is for keys and values" in verdicts[6].note


@pytest.mark.parametrize("options", [RECURRENT[1], *(pytest.param(o, marks=pytest.mark.slow) for o in RECURRENT[2:])])
def test_recurrent_models_train_and_evaluate_exactly(options: dict[str, Any]) -> None:
    for number in (1, 12):
        verdict = judge(alone("dragoman_recurrent", **options), number)
        assert verdict.status == "pass", verdict.note


def test_a_recurrent_folder(tmp_path: Path) -> None:
    config = dragoman.DragomanRecurrentConfig(vocab_size=40, hidden_size=32, dropout=0.3, initializer_range=0.5)
    dragoman.DragomanRecurrentForConditionalGeneration(config).save_pretrained(tmp_path)
    subject = find_subject(str(tmp_path))
    assert subject.ours
    assert red(dataclasses.replace(subject, overrides=None)) == {}


def states_of_the_last_column(patch: Patch) -> None:
    """Where a row is shorter, its state is read off its padding."""
    forward = recurrent_layers.RecurrentLayers.forward

    def careless(self: Any, x: Tensor, mask: Any = None, state: Any = None) -> Any:
        return forward(self, x, None, state)

    patch.setattr(recurrent_layers.RecurrentLayers, "forward", careless)


def weights_left_out(patch: Patch) -> None:
    patch.setattr(modeling_dragoman_recurrent, "records_attention", lambda selection: False)


@pytest.mark.parametrize(
    ("plant", "lines"),
    [(states_of_the_last_column, {2, 3, 4, 6, 11}), (weights_left_out, {8})],
    ids=["states of the last column", "weights left out"],
)
def test_a_fault_of_a_recurrent_model(plant: Callable[[Patch], None], lines: set[int], monkeypatch: Patch) -> None:
    plant(monkeypatch)
    assert set(red(alone("dragoman_recurrent"))) == lines


@pytest.mark.parametrize(("preset", "scheme"), [OURS[0], *(pytest.param(*o, marks=pytest.mark.slow) for o in OURS[1:])])
def test_accumulation_passes_for_ours(preset: str, scheme: str) -> None:
    verdict = judge(alone(preset, position_encoding=scheme), 1)
    assert verdict.status == "pass", verdict.note
    assert verdict.deviation < LIMITS["step"]


def test_lines_are_judged_in_single_precision_wherever_they_run(monkeypatch: Patch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    verdict = judge(alone("tiny", position_encoding="rotary"), 12)
    assert verdict.status == "pass", verdict.note


@pytest.mark.parametrize("scheme", ["rotary", "relative"])
def test_evaluation_passes_for_ours(scheme: str) -> None:
    verdict = judge(alone("tiny", position_encoding=scheme), 12)
    assert verdict.status == "pass", verdict.note
    assert re.search(r"stock Seq2SeqTrainer \d\.\de-0[12]", verdict.note)


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "scheme"), OURS)
def test_two_processes(preset: str, scheme: str) -> None:
    subject = find_subject(preset, {"position_encoding": scheme})
    assert judge(subject, 1).status == "pass", judge(subject, 1).note
    assert judge(subject, 12).status == "pass", judge(subject, 12).note


@pytest.mark.slow
def test_two_processes_of_others_are_told_apart() -> None:
    bart = find_subject("BartForConditionalGeneration")
    assert "8.08 in 2 processes of 2x4" in judge(bart, 1).note
    assert "2 processes of 3 1.1e+00" in judge(bart, 12).note
    m2m = judge(find_subject("m2m_100"), 1)  # its collator makes no decoder input: an error, in both processes alike
    assert "label_smoothing_factor: ValueError" in m2m.note


class TestPeers:
    """What others are known to do is found. An upstream fix is to turn this red."""

    def test_bart(self) -> None:
        bart = alone("BartForConditionalGeneration")
        found = red(bart)
        assert set(found) == {3, 8}
        assert "sdpa: empty cross, decoder, encoder attentions in forward, greedy, 3 beams" in found[8].note
        accumulation = judge(bart, 1)
        ratios = [float(ratio) for ratio in re.findall(r"(\d+\.\d+) in", accumulation.note)]
        assert ratios == pytest.approx([4, 8], rel=0.05)
        assert "label_smoothing_factor" not in accumulation.note

    @pytest.mark.parametrize(("model", "lines"), [("MarianMTModel", {3, 8}), ("t5", {8}), ("t5gemma", {8})])
    def test_others(self, model: str, lines: set[int]) -> None:
        found = red(alone(model))
        assert set(found) == lines
        assert ("IndexError" in found[8].note) == (model == "t5")  # flex attention takes its bias for one a row

    @pytest.mark.slow
    @pytest.mark.parametrize("model", ["MarianMTModel", "t5", "mbart", "pegasus", "m2m_100"])
    def test_accumulation(self, model: str) -> None:
        ratios = re.findall(r"(\d+\.\d+) in", judge(alone(model), 1).note)
        assert [float(ratio) for ratio in ratios] == pytest.approx([4, 8], rel=0.1)

    @pytest.mark.slow
    def test_t5gemma_accumulates_as_it_should(self) -> None:
        assert judge(alone("t5gemma"), 1).status == "pass"


def change_inputs(patch: Patch, change: Callable[[dict[str, Any]], None]) -> None:
    def forward(self: Any, *arguments: Any, **inputs: Any) -> Any:
        change(inputs)
        return FORWARD(self, *arguments, **inputs)

    forward.__signature__ = inspect.signature(FORWARD)  # type: ignore[attr-defined]  # Trainer and generate() read it
    patch.setattr(DragomanForConditionalGeneration, "forward", forward)


def plain_mean(patch: Patch) -> None:
    change_inputs(patch, lambda inputs: inputs.pop("num_items_in_batch", None))


def mean_over_columns(patch: Patch) -> None:
    """Padding counts as tokens to learn."""

    def count(inputs: dict[str, Any]) -> None:
        if inputs.get("labels") is not None:
            inputs["num_items_in_batch"] = inputs["labels"].numel()

    change_inputs(patch, count)


def positions_by_column(patch: Patch) -> None:
    for stack in (encoder, decoder):
        patch.setattr(stack, "positions_of", lambda mask, length, device: torch.arange(length)[None])


def rows_by_number(patch: Patch) -> None:
    """Each row is scaled by its place in the batch."""
    forward = dragoman.DragomanModel.forward

    def scaled(self: Any, *arguments: Any, **inputs: Any) -> Any:
        outputs = forward(self, *arguments, **inputs)
        states = outputs.last_hidden_state
        outputs.last_hidden_state = states * (1 + 1e-4 * torch.arange(len(states)))[:, None, None].to(states.dtype)
        return outputs

    patch.setattr(dragoman.DragomanModel, "forward", scaled)


def positions_run_on(patch: Patch) -> None:
    """In a packed row."""
    for stack in (encoder, decoder):
        patch.setattr(stack, "packed_positions", lambda ends, length: torch.arange(length)[None])


def sequences_see_their_neighbours(patch: Patch) -> None:
    """Those of a packed row."""

    def pack_as_one(x: Tensor, queries: Tensor, keys: Tensor, **others: Any) -> Any:
        return packing.pack(x, queries[[0, -1]], keys[[0, -1]], **{**others, "longest": (None, None)})

    for stack in (encoder, decoder):
        patch.setattr(stack, "pack", pack_as_one)


def cache_never_filled(patch: Patch) -> None:
    change_inputs(patch, lambda inputs: inputs.pop("past_key_values", None))


def untied_when_loaded(patch: Patch) -> None:
    load = DragomanForConditionalGeneration.from_pretrained.__func__

    def untied(cls: Any, *arguments: Any, **kwargs: Any) -> Any:
        model = load(cls, *arguments, **kwargs)
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        return model

    patch.setattr(DragomanForConditionalGeneration, "from_pretrained", classmethod(untied))


def rounded_when_saved(patch: Patch) -> None:
    save = DragomanForConditionalGeneration.save_pretrained

    def rounded(self: Any, *arguments: Any, **kwargs: Any) -> None:
        for parameter in self.parameters():
            parameter.data = parameter.data.bfloat16().float()
        save(self, *arguments, **kwargs)

    patch.setattr(DragomanForConditionalGeneration, "save_pretrained", rounded)


def attentions_left_out(patch: Patch) -> None:
    def forward(self: Any, *arguments: Any, **inputs: Any) -> Any:
        if self.config._attn_implementation == "sdpa":
            inputs["output_attentions"] = False
        return FORWARD(self, *arguments, **inputs)

    forward.__signature__ = inspect.signature(FORWARD)  # type: ignore[attr-defined]  # the packing collator reads it
    patch.setattr(DragomanForConditionalGeneration, "forward", forward)


def change_attentions(patch: Patch, change: Callable[[Any], None]) -> None:
    def forward(self: Any, *arguments: Any, **inputs: Any) -> Any:
        output = FORWARD(self, *arguments, **inputs)
        if output.get("cross_attentions"):
            change(output)
        return output

    forward.__signature__ = inspect.signature(FORWARD)  # type: ignore[attr-defined]
    patch.setattr(DragomanForConditionalGeneration, "forward", forward)


def attentions_of_one_layer(patch: Patch) -> None:
    def cut(output: Any) -> None:
        output.decoder_attentions = output.decoder_attentions[:1]

    change_attentions(patch, cut)


def attentions_of_the_other_side(patch: Patch) -> None:
    def swap(output: Any) -> None:
        output.cross_attentions = output.decoder_attentions

    change_attentions(patch, swap)


def attentions_of_the_first_step(patch: Patch) -> None:
    generate = DragomanForConditionalGeneration.generate

    def cut(self: Any, *arguments: Any, **inputs: Any) -> Any:
        output = generate(self, *arguments, **inputs)
        if inputs.get("output_attentions"):
            output.decoder_attentions = output.decoder_attentions[:1]
        return output

    patch.setattr(DragomanForConditionalGeneration, "generate", cut)


def labels_not_shifted(patch: Patch) -> None:
    def unshifted(inputs: dict[str, Any]) -> None:
        if inputs.get("labels") is not None and inputs.get("decoder_input_ids") is None:
            inputs["decoder_input_ids"] = inputs["labels"].clamp(min=0)

    change_inputs(patch, unshifted)


def labels_shifted_twice(patch: Patch) -> None:
    def twice(inputs: dict[str, Any]) -> None:
        if (labels := inputs.get("labels")) is not None:
            start = torch.ones_like(labels[:, :1])
            inputs["decoder_input_ids"] = torch.cat([start, labels[:, :-1].clamp(min=0)], dim=1)
            inputs["labels"] = torch.cat([labels[:, 1:], torch.full_like(start, -100)], dim=1)

    change_inputs(patch, twice)


def future_seen(patch: Patch) -> None:
    causal = decoder.create_causal_mask

    def open_mask(config: Any, x: Tensor, mask: Tensor | None, cache: Any, **kwargs: Any) -> Any:
        if config._attn_implementation == "flex_attention":
            return causal(config, x, mask, cache, **kwargs)
        seen = x.shape[1] + (0 if cache is None else cache.get_seq_length())
        return torch.ones(len(x), 1, x.shape[1], seen, dtype=torch.bool)

    patch.setattr(decoder, "create_causal_mask", open_mask)


def source_mask_dropped(patch: Patch) -> None:
    def forget(inputs: dict[str, Any]) -> None:
        if inputs.get("attention_mask") is not None:
            inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])

    change_inputs(patch, forget)


def source_mask_read_off_the_ids(patch: Patch) -> None:
    """Whatever the mask says: what is not the pad token is seen."""

    def guess(inputs: dict[str, Any]) -> None:
        if inputs.get("input_ids") is not None and inputs.get("attention_mask") is not None:
            inputs["attention_mask"] = (inputs["input_ids"] != 0).long()

    change_inputs(patch, guess)


def batches_weighed_alike(patch: Patch) -> None:
    patch.setattr(training, "evaluating_trainer", lambda subject: Seq2SeqTrainer)


FAULTS: list[tuple[Callable[[Patch], None], set[int]]] = [
    (plain_mean, {1}),
    (mean_over_columns, {2, 5, 9}),
    (positions_by_column, {3}),
    (rows_by_number, {4, 5}),
    (positions_run_on, {5}),
    (sequences_see_their_neighbours, {5}),
    (cache_never_filled, {6}),
    (untied_when_loaded, {7}),
    (rounded_when_saved, {7}),
    (attentions_left_out, {8}),
    (attentions_of_one_layer, {8}),
    (attentions_of_the_other_side, {8}),
    (attentions_of_the_first_step, {8}),
    (labels_not_shifted, {9}),
    (labels_shifted_twice, {5, 9}),
    (future_seen, {2, 3, 4, 5, 6, 8, 9, 10}),
    (source_mask_dropped, {2, 3, 4, 5, 6, 11}),
    (source_mask_read_off_the_ids, {2, 11}),
    (batches_weighed_alike, {12}),
]


@pytest.mark.parametrize(("plant", "lines"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_planted_fault_turns_its_lines_red(
    plant: Callable[[Patch], None], lines: set[int], monkeypatch: Patch
) -> None:
    subject = alone("tiny", position_encoding="learned")
    plant(monkeypatch)
    assert set(red(subject, sorted({*QUICK, *lines}))) == lines


def test_every_line_has_a_fault_planted() -> None:
    assert set().union(*(lines for _, lines in FAULTS)) == set(LINES)


def test_nothing_passes_by_being_uniform(monkeypatch: Patch) -> None:
    def constant(model: nn.Module) -> None:
        for parameter in model.parameters():
            nn.init.zeros_(parameter)

    monkeypatch.setattr(subjects, "draw_weights", constant)
    found = red(alone("tiny"))
    assert set(found) == set(QUICK)
    assert all("control: " in verdict.note for verdict in found.values())


def test_rounding_is_told_from_a_fault(monkeypatch: Patch) -> None:
    """Of a folder, what goes in float64 passes, and the note says so; a fault of the same size stays. Of ours, all do."""
    forward = dragoman.DragomanModel.forward

    def disturbed(size: float, narrow: bool) -> Callable[..., Any]:
        def noisy(self: Any, *arguments: Any, **inputs: Any) -> Any:
            outputs = forward(self, *arguments, **inputs)
            states = outputs.last_hidden_state
            if not narrow or states.dtype == torch.float32:
                outputs.last_hidden_state = states * (1 + size * len(states))
            return outputs

        return noisy

    for narrow in (True, False):
        monkeypatch.setattr(dragoman.DragomanModel, "forward", disturbed(1e-5, narrow))
        assert judge(alone("tiny"), 4).status == "FAIL"
        verdict = judge(dataclasses.replace(alone("tiny"), small=False), 4)
        assert verdict.status == ("pass" if narrow else "FAIL")
        assert ("in float64; in fp32 4" in verdict.note) == narrow


def test_a_crash_is_a_finding_and_a_refusal_is_not(monkeypatch: Patch) -> None:
    for error, status in ((ValueError("no\nway"), "FAIL"), (NotImplementedError("no way"), "not offered")):

        def raising(*_: Any, error: Exception = error, **__: Any) -> Any:
            raise error

        subject = alone("tiny")
        monkeypatch.setattr(DragomanForConditionalGeneration, "forward", raising)
        verdict = judge(subject, 10)
        monkeypatch.undo()
        assert verdict.status == status
        assert verdict.note == ("ValueError: no" if status == "FAIL" else "no way")


def test_a_parameter_without_a_gradient_has_zeros() -> None:
    """An expert may get tokens in one batch, and none in another."""
    experts = nn.ModuleList(nn.Linear(2, 1, bias=False) for _ in range(2))
    experts[1](torch.tensor([[3.0, 4.0]])).sum().backward()
    assert flat_gradient(experts).tolist() == [0, 0, 3, 4]


def test_evidence() -> None:
    evidence = Evidence()
    evidence.compare("one", torch.ones(2), torch.ones(2), "logits")
    assert evidence.verdict(4, "x").status == "pass"
    evidence.compare("wider", torch.ones(3), torch.ones(2), "logits")
    evidence.compare("nothing", torch.tensor([1.0, float("nan")]), torch.ones(2), "logits")
    verdict = evidence.verdict(4, "x")
    assert (verdict.status, verdict.deviation, verdict.limit) == ("FAIL", float("inf"), 1e-5)
    assert "nothing (not finite)" in verdict.note
    assert Evidence().verdict(1, "x").status == "not offered"


class TestSubjects:
    def test_a_checkpoint_keeps_its_weights(self, tmp_path: Path) -> None:
        config = dragoman.presets.tiny(vocab_size=40, hidden_size=32, dropout=0.3)
        model = DragomanForConditionalGeneration(config)
        model.save_pretrained(tmp_path)
        subject = find_subject(str(tmp_path))
        loaded = subject.build(None)
        torch.testing.assert_close(loaded.lm_head.weight, model.lm_head.weight, rtol=0, atol=0)
        assert loaded.config.dropout == 0
        assert red(dataclasses.replace(subject, overrides=None), [1, 2, 3, 4, 6, 7, 9, 10, 11]) == {}
        with pytest.raises(ValueError, match="checked as it is"):
            find_subject(str(tmp_path), {"dropout": 0.1})

    def test_a_classifier_is_not_judged_by_a_new_decoder(self, tmp_path: Path) -> None:
        config = dragoman.presets.tiny(vocab_size=40, hidden_size=32)
        dragoman.DragomanForSequenceClassification(config).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"\(DragomanForSequenceClassification\) cannot be checked"):
            find_subject(str(tmp_path))

    def test_dropout_is_off_even_if_asked_for(self) -> None:
        model = find_subject("tiny", {"dropout": 0.5}).build(None)
        assert model.config.dropout == 0

    def test_weights_of_another_configuration(self, tmp_path: Path) -> None:
        config = MarianConfig(**SIDES, vocab_size=20, pad_token_id=0, decoder_start_token_id=0)
        MarianMTModel(config).save_pretrained(tmp_path)
        config.decoder_ffn_dim *= 2
        config.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"decoder\.layers\.0\.fc1\.bias is \(\d+,\), and .* by its config"):
            find_subject(str(tmp_path))

    def test_a_class_that_another_process_does_not_know(self, tmp_path: Path) -> None:
        class OwnConfig(MarianConfig):
            model_type = "own"

        class OwnModel(MarianMTModel):
            config_class = OwnConfig

        AutoConfig.register("own", OwnConfig)
        AutoModelForSeq2SeqLM.register(OwnConfig, OwnModel)
        try:
            model = OwnModel(OwnConfig(**SIDES, vocab_size=20, pad_token_id=0, decoder_start_token_id=0, init_std=0.5))
            model.save_pretrained(tmp_path)
            verdict = judge(find_subject(str(tmp_path)), 12)
            assert "without 2 processes (another one does not know its class)" in verdict.note
            assert "Error" not in verdict.note
        finally:
            CONFIG_MAPPING._extra_content.pop("own")
            MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING._extra_content.pop(OwnConfig)

    def test_an_int8_folder_has_no_gradients_to_check(self, tmp_path: Path) -> None:
        config = dragoman.presets.tiny(vocab_size=40, hidden_size=32)
        dragoman.quantize(dragoman.DragomanForConditionalGeneration(config)).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="is quantized, and has no gradients: check the checkpoint that it was"):
            find_subject(str(tmp_path))

    def test_shrinking_keeps_what_is_no_size(self) -> None:
        full, small = dragoman.presets.modern_base(), find_subject("modern_base").build(None).config
        kept = ("norm_type", "norm_placement", "position_encoding", "hidden_act", "gated_feed_forward", "final_norm")
        assert [getattr(full, name) for name in kept] == [getattr(small, name) for name in kept]
        assert small.decoder_num_key_value_heads * 2 == small.decoder_num_attention_heads
        assert small.encoder_num_hidden_layers != small.decoder_num_hidden_layers
        assert find_subject("deep_encoder").build(None).config.decoder_num_hidden_layers == 1
        gemma = find_subject("t5gemma").build(None).config
        assert [len(side.layer_types) for side in (gemma.encoder, gemma.decoder)] == [3, 2]
        assert find_subject("MarianMTModel").pad == 47  # its pad token is the last of the vocabulary

    def test_implementations_have_the_same_weights(self) -> None:
        subject = find_subject("t5")
        first, second = subject.build("eager").state_dict(), subject.build("sdpa").state_dict()
        for name in first:
            torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
        with uncompiled():
            assert torch.compiler.is_compiling() is False

    @pytest.mark.parametrize(
        ("model", "overrides", "message"),
        [
            ("tinny", {}, r"'tinny' is neither a preset .* Did you mean tiny"),
            ("BartForConditionalGenration", {}, "Did you mean BartForConditionalGeneration"),
            ("bart", {"d_modle": 8}, r"BartConfig has no field 'd_modle'\. Did you mean d_model"),
            ("tiny", {"positions": 1}, "has no field 'positions'"),
            ("dragoman_recurrent", {"atention": "dot"}, r"no field 'atention'\. Did you mean attention"),
            ("dragoman_recurrent", {"attention": "dott"}, "attention"),
            ("tiny", {"position_encoding": "rotatory"}, "position_encoding"),
            ("qwen2_audio", {}, "no encoder-decoder"),
            ("marian", {"activation_function": "foo"}, "marian cannot be built: KeyError: 'foo'"),
            ("t5", {"num_heads": 0}, "t5 cannot be built: ZeroDivisionError"),
            ("tiny", {"vocab_size": 3}, "tiny has 3 tokens, all of them special"),
            ("tiny", {"position_encoding": "learned", "max_position_embeddings": 16}, "rows here have up to 17 tokens"),
        ],
    )
    def test_clear_errors(self, model: str, overrides: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            find_subject(model, overrides)

    def test_an_unknown_line(self) -> None:
        with pytest.raises(ValueError, match="no line 13: they are numbered 1 to 12"):
            check("tiny", [2, 13])


class TestCommandLine:
    def run(self, *arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["check", *arguments])
        return result.exit_code, re.sub(r"[│╭╮╰╯─\s]+", " ", result.output)

    def test_exit_status(self) -> None:
        status, printed = self.run("tiny", "--only", "2", "10", "11")
        assert status == 0
        assert re.findall(r" (\d+) [a-z ]+ pass", printed) == ["2", "10", "11"]
        status, printed = self.run("bart", "--only", "2", "--only", "3")
        assert status == 1
        assert re.search(r" 3 pad side FAIL .* of 1e-05 .*source", printed)
        status, printed = self.run("nllb-moe", "--only", "5")
        assert (status, "not offered" in printed) == (0, True)

    def test_fields(self) -> None:
        status, printed = self.run("tiny", "--set", "position_encoding=alibi", "--set", "tie_word_embeddings=False",
                                   "--only", "3")  # fmt: skip
        assert (status, "pass" in printed) == (0, True)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["nothing"], "neither a preset"),
            (["tiny", "--set", "hidden=3"], "has no field 'hidden'"),
            (["tiny", "--set", "hidden_size"], "expected field=value"),
            (["tiny", "--only", "13"], "no line 13"),
            (["tiny", "4"], "say --only 4"),
        ],
    )
    def test_what_cannot_be_checked(self, arguments: list[str], message: str) -> None:
        status, printed = self.run(*arguments)
        assert status == 2
        assert message in printed

    def test_damaged_weights(self, tmp_path: Path) -> None:
        model = MarianMTModel(MarianConfig(**SIDES, vocab_size=20, pad_token_id=0, decoder_start_token_id=0))
        model.save_pretrained(tmp_path)
        weights = tmp_path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-40])
        status, printed = self.run(str(tmp_path), "--only", "2")
        assert status == 2
        assert "Invalid value" in printed

    def test_as_a_program(self) -> None:
        command = [sys.executable, "-m", "dragoman", "check", "bart", "--only", "8", "10"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert result.returncode == 1
        assert len(result.stdout.splitlines()) == 4  # a title, two lines, a sum
        assert result.stderr == ""


def test_importing_dragoman_stays_light() -> None:
    program = "import sys, dragoman; assert 'dragoman.checking' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_the_page_shows_every_line_and_its_example_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "correctness.md").read_text("utf-8")
    for number, (name, _) in LINES.items():
        assert page.count(f"\n| {number} {name} |") == 3
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    tmp_path.joinpath("test_mine.py").write_text(example)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py::test_invariant[10]"]
    assert "1 passed" in subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout


@pytest.mark.slow
def test_peers_outside_transformers(monkeypatch: Patch) -> None:
    pytest.importorskip("x_transformers")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from peers import PEERS

    expected = {"nn.Transformer": {3}, "x-transformers, rotary": set(), "x-transformers, absolute": {3}}
    assert {name: set(red(adapt())) for name, adapt in PEERS.items()} == expected
