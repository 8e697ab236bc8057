"""The fast loops give what the stock ones give, for every model and argument they cover; the rest falls back."""

import ast
import copy
import functools
import inspect
import itertools
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from dragoman.modeling import decoding_step, few_row_linears, generation_dragoman
from dragoman.modeling.attention import Attention
from dragoman.modeling.decoding_step import DecodingStep
from dragoman.modeling.few_row_linears import FewRowLinear
from dragoman.modeling.generation_dragoman import DecodingLoops
from dragoman.modeling.linear import Linear
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, GenerationMixin, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.generation.streamers import BaseStreamer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from dragoman import DragomanConfig, DragomanForConditionalGeneration
from support import OPTIONS, SCHEMES, batch, build, configured, describe, pairwise, tiny

LENGTH = 10
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 7, "num_return_sequences": 2},
    "beam": {"num_beams": 3, "num_return_sequences": 2},
    "beam sampling": {"num_beams": 3, "do_sample": True},
}
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
both = pytest.mark.parametrize("mode", [{}, {"num_beams": 3}], ids=["greedy", "beam"])
Model = DragomanForConditionalGeneration


def prepare(config: DragomanConfig, seed: int = 17, dtype: torch.dtype = torch.float64) -> tuple[Model, dict[str, Any]]:
    model = build(config, seed).to(dtype)
    with torch.no_grad():
        for layer in model.model.decoder.layers:  # the source decides, not the token before
            layer.cross_attn.v_proj.weight.mul_(3)
            layer.cross_attn.o_proj.weight.mul_(3)
            layer.feed_forward.down_proj.weight.mul_(3)
    model.generation_config.max_length = None
    model.generation_config.max_new_tokens = LENGTH
    inputs = batch(config)
    del inputs["labels"]
    return model, inputs


class Runs:
    """Runs generate() with the fast loops and without, and counts who ran."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.patch = monkeypatch
        self.covered: list[bool] = []
        self.decide = generation_dragoman.is_covered

    def _spy(self, *arguments: Any) -> bool:
        self.covered.append(self.decide(*arguments))
        return self.covered[-1]

    def fast(self, model: Model, **kwargs: Any) -> Any:
        torch.manual_seed(0)
        self.covered.clear()
        self.patch.setattr(generation_dragoman, "is_covered", self._spy)
        return model.generate(**kwargs)

    def stock(self, model: Model, **kwargs: Any) -> Any:
        torch.manual_seed(0)
        self.patch.setattr(generation_dragoman, "is_covered", lambda *_: False)
        return model.generate(**kwargs)

    def same(self, model: Model, expected: Any = None, **kwargs: Any) -> Any:
        found = self.fast(model, **kwargs)
        assert self.covered == [True]
        expected = self.stock(model, **kwargs) if expected is None else expected
        if isinstance(found, Tensor):
            assert found.tolist() == expected.tolist()
            return found
        assert found.keys() == expected.keys()
        for name in found.keys() - {"past_key_values"}:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-6)
        return found


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(monkeypatch)


def varied(ids: Tensor) -> bool:
    """Sources differ in what they give, and half of a row's tokens from each other."""
    rows = [[token for token in row if token > 2] for row in ids.tolist()]
    return len(set(map(tuple, rows))) > len(rows) / 2 and all(len(set(row)) >= len(row) / 2 for row in rows)


@modes
@pytest.mark.parametrize("options", pairwise(OPTIONS), ids=describe)
def test_every_model(options: dict[str, Any], mode: dict[str, Any], runs: Runs) -> None:
    model, inputs = prepare(configured(options))
    assert varied(runs.same(model, **inputs, no_repeat_ngram_size=1, suppress_tokens=[0, 1], **mode))


FIELDS: dict[str, dict[str, Any]] = {
    "head_dim": {"head_dim": 6},
    "embedding_norm": {"embedding_norm": True},
    "final_norm": {"final_norm": True},
    "no final_norm": {"final_norm": False, "norm_placement": "pre"},
    "attention_scale": {"attention_scale": 1.0},
    "attention_bias": {"attention_bias": True, "feed_forward_bias": False, "norm_bias": False},
    "logits": {"logits_bias": True, "logits_scale": 0.7, "scale_embedding": False},
    "relative per layer": {"position_encoding": "relative", "relative_attention_per_layer": True},
    "offset": {"position_encoding": "learned", "position_offset": 2},
    "yarn": {
        "position_encoding": "rotary",
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0},
    },
    "one head": {"decoder_num_attention_heads": 1, "decoder_num_key_value_heads": 1},
    "more layers": {"decoder_num_hidden_layers": 4, "encoder_num_hidden_layers": 1, "hidden_act": "gelu"},
}


@both
@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS.keys())
def test_every_other_field(fields: dict[str, Any], mode: dict[str, Any], runs: Runs) -> None:
    model, inputs = prepare(tiny(**fields))
    assert varied(runs.same(model, **inputs, no_repeat_ngram_size=1, suppress_tokens=[0, 1], **mode))


MODELS = {
    scheme: prepare(tiny(position_encoding=scheme, decoder_num_key_value_heads=2, tie_word_embeddings=False))
    for scheme in SCHEMES
}
SEARCH = st.fixed_dictionaries(
    {"num_beams": st.sampled_from([2, 3, 5])},
    optional={
        "length_penalty": st.sampled_from([-1.0, 0.0, 0.7, 2.0]),
        "early_stopping": st.sampled_from([True, False, "never"]),
        "num_return_sequences": st.sampled_from([1, 2]),
        "do_sample": st.booleans(),
    },
)
CHOICE = st.fixed_dictionaries({}, optional={"do_sample": st.booleans()})
DRAWS = st.fixed_dictionaries({"do_sample": st.just(True), "num_return_sequences": st.sampled_from([2, 3])})
ARGUMENTS = st.fixed_dictionaries(
    {"max_new_tokens": st.integers(1, 40)},
    optional={
        "min_new_tokens": st.integers(1, 6),
        "repetition_penalty": st.sampled_from([0.8, 1.3]),
        "encoder_repetition_penalty": st.just(1.2),
        "no_repeat_ngram_size": st.sampled_from([1, 2]),
        "bad_words_ids": st.just([[5], [7, 8]]),
        "suppress_tokens": st.just([3, 4]),
        "temperature": st.sampled_from([0.5, 1.7]),
        "top_k": st.sampled_from([3, 50]),
        "top_p": st.sampled_from([0.5, 0.9]),
        "min_p": st.just(0.05),
        "typical_p": st.just(0.8),
        "eos_token_id": st.sampled_from([[2], [2, 9, 11, 20], [5, 6, 7, 8, 12, 13, 14]]),
        "forced_bos_token_id": st.just(17),
        "forced_eos_token_id": st.just(19),
        "exponential_decay_length_penalty": st.just((3, 1.3)),
        "decoder_start_token_id": st.sampled_from([7, [[11], [12], [13], [14]]]),
        "decoder_input_ids": st.just(torch.tensor([[1, 9, 8], [1, 5, 6], [1, 30, 3], [1, 4, 12]])),
        "renormalize_logits": st.booleans(),
        "remove_invalid_values": st.booleans(),
        "prefix_allowed_tokens_fn": st.just(lambda row, ids: [2, *range(row % 4 + 3, 37, 2)]),
        "return_dict_in_generate": st.booleans(),
        "output_scores": st.booleans(),
        "output_logits": st.booleans(),
    },
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(SCHEMES), st.one_of(SEARCH, CHOICE, DRAWS), ARGUMENTS)
def test_every_argument(scheme: str, mode: dict[str, Any], arguments: dict[str, Any]) -> None:
    model, inputs = MODELS[scheme]
    if not arguments.get("return_dict_in_generate"):
        arguments = {name: value for name, value in arguments.items() if not name.startswith("output_")}
    with pytest.MonkeyPatch.context() as patch:
        runs = Runs(patch)
        try:
            expected = runs.stock(model, **inputs, **mode, **arguments)
        except (RuntimeError, ValueError) as error:  # no token is left to draw, or transformers refuses
            with pytest.raises(type(error)):
                runs.fast(model, **inputs, **mode, **arguments)
        else:
            runs.same(model, expected, **inputs, **mode, **arguments)


class Ends(StoppingCriteria):
    """Ends row i after 2 + 3i tokens: of beams, by their place."""

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return input_ids.shape[1] > 2 + 3 * torch.arange(len(input_ids))


@pytest.mark.parametrize("copies", [1, 3])
def test_finished_rows_are_left_out(copies: int, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = MODELS["rotary"]
    widths: list[int] = []
    step = DecodingStep.__call__
    monkeypatch.setattr(DecodingStep, "__call__", lambda self, ids: widths.append(len(ids)) or step(self, ids))
    mode = {"do_sample": copies > 1, "num_return_sequences": copies, "max_new_tokens": 3 * 4 * copies}
    found = runs.same(model, **inputs, **mode, stopping_criteria=StoppingCriteriaList([Ends()]), eos_token_id=36)
    assert found.shape[1] > 10
    assert [widths[0], widths[-1]] == [4 * copies, copies]
    assert sorted(set(widths), reverse=True) == [4 * copies, 3 * copies, 2 * copies, copies]
    scores = {"return_dict_in_generate": True, "output_scores": True}
    widths.clear()
    runs.same(model, **inputs, **mode, **scores, stopping_criteria=StoppingCriteriaList([Ends()]), eos_token_id=36)
    assert set(widths) == {4 * copies}  # asked for, scores of finished rows are real ones
    widths.clear()
    monkeypatch.setattr(model.generation_config, "eos_token_id", None)
    runs.same(model, **inputs, **mode, stopping_criteria=StoppingCriteriaList([Ends()]))
    assert set(widths) == {4 * copies}  # without an end token the loop goes on writing them


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("early_stopping", [True, False])
def test_finished_sources_are_left_out_of_beam_search(
    scheme: str, early_stopping: bool, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = MODELS[scheme]
    widths: list[int] = []
    step = DecodingStep.__call__
    monkeypatch.setattr(DecodingStep, "__call__", lambda self, ids: widths.append(len(ids)) or step(self, ids))
    mode = {"num_beams": 3, "early_stopping": early_stopping, "max_new_tokens": 40}
    runs.same(model, **inputs, **mode, no_repeat_ngram_size=2, eos_token_id=list(range(2, 12)))
    assert widths[0] == 12
    assert widths[-1] < 12
    assert all(width % 3 == 0 for width in widths)


@modes
@pytest.mark.parametrize("scheme", ["relative", "rotary"])
def test_the_cache_is_handed_over(scheme: str, mode: dict[str, Any], runs: Runs) -> None:
    model, inputs = MODELS[scheme]
    arguments = {**inputs, **mode, "return_dict_in_generate": True, "no_repeat_ngram_size": 2}
    found, expected = runs.fast(model, **arguments), runs.stock(model, **arguments)
    assert found.sequences.tolist() == expected.sequences.tolist()
    caches = [result.past_key_values for result in (found, expected)]
    assert caches[0].is_updated == caches[1].is_updated
    for half in ("self_attention_cache", "cross_attention_cache"):
        for ours, stock in zip(*(getattr(cache, half).layers for cache in caches), strict=True):
            torch.testing.assert_close((ours.keys, ours.values), (stock.keys, stock.values))


@modes
def test_the_callers_cache_is_filled(mode: dict[str, Any], runs: Runs) -> None:
    model, inputs = MODELS["rotary"]
    caches = []
    for generate in (runs.fast, runs.stock):
        caches.append(EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache(config=model.config)))
        generate(model, **inputs, **mode, no_repeat_ngram_size=2, past_key_values=caches[-1])
    assert runs.covered == [True]
    for half in ("self_attention_cache", "cross_attention_cache"):
        for ours, stock in zip(*(getattr(cache, half).layers for cache in caches), strict=True):
            torch.testing.assert_close((ours.keys, ours.values), (stock.keys, stock.values))


def test_a_scaling_of_its_own(runs: Runs) -> None:
    model, inputs = prepare(tiny(dropout=0.0, position_encoding="rotary"))
    for layer in model.model.decoder.layers:
        layer.cross_attn.scaling *= 3
    arguments = {**inputs, "return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 4}
    found, expected = runs.fast(model, **arguments), runs.stock(model, **arguments)
    assert runs.covered == [True]
    torch.testing.assert_close(found.logits, expected.logits)


@modes
def test_what_is_returned_may_be_trained_on(mode: dict[str, Any], runs: Runs) -> None:
    """The step runs in inference mode, and none of it comes out."""
    model, inputs = MODELS["rotary"]
    arguments = {**inputs, **mode, "return_dict_in_generate": True, "output_logits": True, "output_scores": True}
    found = runs.fast(model, **arguments)
    assert runs.covered == [True]
    cache = found.past_key_values
    halves = (cache.self_attention_cache, cache.cross_attention_cache)
    tensors = [tensor for half in halves for layer in half.layers for tensor in (layer.keys, layer.values)]
    for name in found.keys() - {"past_key_values"}:
        value = found[name]
        tensors += value if isinstance(value, tuple) else [value]
    assert not any(tensor.is_inference() for tensor in tensors)


@modes
def test_single_precision(mode: dict[str, Any], runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel in use, before packing and after: scores as close as rounding allows, and the same tokens."""
    model, inputs = prepare(tiny(tie_word_embeddings=False, attention_bias=True, gated_feed_forward=True))
    model.float()
    arguments = {"no_repeat_ngram_size": 1, "suppress_tokens": [0, 1], "max_new_tokens": 20}
    expected = runs.stock(model, **inputs, **mode, **arguments)
    packed: list[bool] = []
    pack = FewRowLinear.pack
    monkeypatch.setattr(FewRowLinear, "pack", lambda self, rows: pack(self, rows) or packed.append(self.packed))
    monkeypatch.setattr(few_row_linears, "WORTH_ONEDNN", 0)
    monkeypatch.setattr(few_row_linears, "WORTH_PACKING", 0)
    monkeypatch.setattr(decoding_step, "STEPS_WORTH_PACKING", 10)  # the sources are shorter
    found = runs.fast(model, **inputs, **mode, **arguments)
    assert runs.covered == [True]
    assert found.tolist() == expected.tolist()
    assert varied(found)
    assert packed == [few_row_linears.ONEDNN] * (1 + 2 * 6)
    monkeypatch.setattr(few_row_linears, "ONEDNN", False)  # as where torch lacks it
    assert runs.fast(model, **inputs, **mode, **arguments).tolist() == expected.tolist()
    assert not any(packed[13:])


@pytest.mark.parametrize(("length", "limit", "expected"), [(16, 40, 1), (15, 40, 16), (16, 15, None)])
def test_weights_are_copied_when_it_pays(
    length: int, limit: int, expected: int | None, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once for a text that promises to be long, late for one that turns out so, and not for a short one."""
    model, _ = prepare(tiny(max_position_embeddings=64))
    steps: list[int] = []
    call, pack = DecodingStep.__call__, FewRowLinear.pack
    monkeypatch.setattr(DecodingStep, "__call__", lambda self, ids: steps.append(0) or call(self, ids))
    packed: set[int] = set()
    monkeypatch.setattr(FewRowLinear, "pack", lambda self, rows: packed.add(len(steps)) or pack(self, rows))
    runs.fast(model, input_ids=torch.randint(3, 30, (2, length)), max_new_tokens=limit, min_new_tokens=limit - 1)
    assert runs.covered == [True]
    assert packed == ({expected} if expected else set())


@pytest.mark.parametrize("seed", range(8))
@both
def test_single_precision_differs_only_at_a_tie(seed: int, mode: dict[str, Any], runs: Runs) -> None:
    model, inputs = prepare(tiny(position_encoding=SCHEMES[seed % 6]), seed, torch.float32)
    arguments = {**inputs, **mode, "return_dict_in_generate": True, "output_scores": True, "no_repeat_ngram_size": 2}
    found, expected = runs.fast(model, **arguments), runs.stock(model, **arguments)
    rows = 1 if not mode else mode["num_beams"]
    for row, (ours, stock) in enumerate(zip(found.sequences, expected.sequences, strict=True)):
        differs = (ours[: len(stock)] != stock[: len(ours)]).nonzero()
        if len(differs):
            step = int(differs[0]) - 1
            best = expected.scores[step][row * rows : (row + 1) * rows].flatten().topk(2 * rows).values
            assert -best.diff().min() < 1e-4


def test_linear_layers_for_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Joined or one by one, with a bias or without, by either kernel, packed or not: their outputs side by side."""
    layers = [nn.Linear(256, 300), nn.Linear(256, 512, bias=False)]
    with torch.no_grad():
        for rows, limit in itertools.product((1, 2, 7, 33), (0, few_row_linears.WORTH_JOINING)):
            monkeypatch.setattr(few_row_linears, "WORTH_JOINING", limit)
            monkeypatch.setattr(few_row_linears, "WORTH_ONEDNN", 2**30 if rows == 2 else 2**17)
            x = torch.randn(rows, 256)
            expected = torch.cat([layer(x) for layer in layers], dim=-1)
            fast = FewRowLinear(*layers)
            torch.testing.assert_close(fast(x), expected)
            fast.pack(rows)
            assert fast.packed == few_row_linears.ONEDNN
            torch.testing.assert_close(fast(x), expected)
        mixed = FewRowLinear(layers[0], nn.Sequential(layers[1]))
        mixed.pack(7)
        assert not mixed.packed
        torch.testing.assert_close(mixed(x), expected)


@both
def test_no_weight_is_remembered(mode: dict[str, Any], runs: Runs) -> None:
    """Also where a change leaves no trace in torch's version counter."""
    model, inputs = prepare(tiny(), dtype=torch.float32)
    first = runs.same(model, **inputs, **mode)
    for parameter in model.model.decoder.layers.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    assert runs.same(model, **inputs, **mode).tolist() != first.tolist()


@both
def test_wrapped_layers_are_called_as_they_are(mode: dict[str, Any], runs: Runs) -> None:
    peft = pytest.importorskip("peft")
    model, inputs = prepare(tiny())
    plain = runs.same(model, **inputs, **mode)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=targets, r=4, init_lora_weights=False)).double()
    assert runs.same(adapted, **inputs, **mode).tolist() != plain.tolist()
    with adapted.disable_adapter():
        assert runs.same(adapted, **inputs, **mode).tolist() == plain.tolist()


class Coarse(nn.Module):
    """A layer of somebody else's, as quantisation puts in the place of a linear one."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return F.linear(x, (self.linear.weight * 4).round() / 4, self.linear.bias)


@both
def test_replaced_layers_are_called_as_they_are(mode: dict[str, Any], runs: Runs) -> None:
    model, inputs = prepare(tiny(tie_word_embeddings=False))
    plain = runs.same(model, **inputs, **mode)
    for layer in model.model.decoder.layers:
        for part in (layer.self_attn, layer.cross_attn, layer.feed_forward):
            for name, child in list(part.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(part, name, Coarse(child))
    model.lm_head = Coarse(model.lm_head)
    assert runs.same(model, **inputs, **mode).tolist() != plain.tolist()
    assert all(module.calls for module in model.modules() if isinstance(module, Coarse))


class Kept(Coarse):
    """One that keeps what it has computed once."""

    kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = (self.linear.weight.detach() * 4).round() / 4
        return F.linear(x, self.kept, self.linear.bias)


def test_what_a_replaced_layer_keeps_may_be_trained_with(runs: Runs) -> None:
    model, inputs = prepare(tiny(tie_word_embeddings=False))
    layer = model.model.decoder.layers[0].feed_forward
    layer.down_proj = Kept(layer.down_proj)
    runs.fast(model, **inputs)
    assert runs.covered == [True]
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert layer.up_proj.weight.grad.abs().sum() > 0


def test_a_patched_class_falls_back(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = prepare(tiny(position_encoding="rotary"))
    plain = runs.fast(model, **inputs).tolist()

    def weaker(part: type[nn.Module], name: str) -> None:
        function = getattr(part, name)

        @functools.wraps(function)
        def patched(self: Any, *args: Any, **kwargs: Any) -> Any:
            found = function(self, *args, **kwargs)
            if isinstance(found, tuple):
                return (found[0] * 0.3, *found[1:])
            if isinstance(found, Tensor):
                return found * 0.3
            found.logits = found.logits.roll(1, -1)
            return found

        with monkeypatch.context() as patch:
            patch.setattr(part, name, patched)
            found = runs.fast(model, **inputs).tolist()
            assert runs.covered == [False]
            assert found == runs.stock(model, **inputs).tolist() != plain

    weaker(Attention, "forward")
    weaker(Linear, "forward")
    weaker(Model, "forward")
    weaker(Model, "apply_head")


@both
def test_loops_called_by_others(mode: dict[str, Any], runs: Runs) -> None:
    """Whose arguments come by place; and generate() without its no_grad, as of transformers' own models."""
    model, inputs = prepare(tiny(position_encoding="rotary"))
    loop = "_beam_search" if "num_beams" in mode else "_sample"

    def own(model: Any, input_ids: Tensor, **given: Any) -> Any:
        first = [given.pop(name) for name in ("logits_processor", "stopping_criteria", "generation_config")]
        return getattr(model, loop)(input_ids, *first, **given)

    expected = runs.stock(model, **inputs, **mode)
    torch.manual_seed(0)
    assert model.generate(**inputs, **mode, custom_generate=own).tolist() == expected.tolist()
    torch.manual_seed(0)
    unwrapped: Any = type(model).generate
    outputs = unwrapped.__wrapped__(model, **inputs, **mode, output_scores=True, return_dict_in_generate=True)
    assert outputs.sequences.tolist() == expected.tolist()
    assert outputs.scores[0].requires_grad


@both
def test_labels_that_a_trainer_hands_over(mode: dict[str, Any], runs: Runs) -> None:
    """transformers keeps them from the model."""
    model, inputs = prepare(tiny())
    expected = runs.stock(model, **inputs, **mode)
    runs.same(model, expected, **inputs, **mode, labels=inputs["input_ids"])


def test_streamer_and_prefix(runs: Runs) -> None:
    class Collect(BaseStreamer):
        def __init__(self) -> None:
            self.values: list[int] = []

        def put(self, value: Tensor) -> None:
            self.values += value.flatten().tolist()

        def end(self) -> None:
            self.values.append(-1)

    model, inputs = MODELS["alibi"]
    one = {name: tensor[:1] for name, tensor in inputs.items()}
    prefix = torch.tensor([[1, 9, 8, 7]])
    streamer = Collect()
    found = runs.fast(model, **one, decoder_input_ids=prefix, streamer=streamer)
    assert runs.covered == [True]
    assert streamer.values == [*found[0].tolist(), -1]
    assert found.tolist() == runs.stock(model, **one, decoder_input_ids=prefix).tolist()


@both
def test_a_prefix_of_many_tokens(mode: dict[str, Any], runs: Runs) -> None:
    """Longer than the room that the stores begin with; and what is written later is, too."""
    for scheme in SCHEMES:
        model, inputs = MODELS[scheme]
        prefix = torch.randint(3, 37, (4, decoding_step.ROOM + 2), generator=torch.Generator().manual_seed(0))
        runs.same(model, **inputs, decoder_input_ids=prefix, **mode)
        runs.same(model, **inputs, max_new_tokens=decoding_step.ROOM + 5, eos_token_id=None, **mode)


@both
def test_errors_are_the_same(mode: dict[str, Any], runs: Runs) -> None:
    model, inputs = prepare(tiny(max_position_embeddings=12, position_encoding="sinusoidal"))
    for run in (runs.fast, runs.stock):
        with pytest.raises(ValueError, match=r"target position 12 does not fit max_position_embeddings = 12"):
            run(model, **inputs, max_new_tokens=20, min_new_tokens=20, **mode)


class Subclass(Model):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().forward(*args, **kwargs)
        if outputs.logits is not None:
            outputs.logits = outputs.logits.flip(-1)
        return outputs


def hooked(find: Callable[[Model], nn.Module]) -> Callable[[Model, dict[str, Any]], None]:
    def change(model: Model, _: dict[str, Any]) -> None:
        find(model).register_forward_hook(lambda module, args, y: y * 0.5 if isinstance(y, Tensor) else None)

    return change


class Steered(Model):
    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        return inputs | {"decoder_input_ids": inputs["decoder_input_ids"].flip(0)}


class Forgetful(Model):
    def _update_model_kwargs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        arguments = super()._update_model_kwargs_for_generation(*args, **kwargs)
        return arguments | {"attention_mask": torch.ones_like(arguments["attention_mask"])}


class OtherHead(Model):
    def apply_head(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().apply_head(*args, **kwargs)
        outputs.logits = outputs.logits.flip(-1)
        return outputs


def own_forward(model: Model, _: dict[str, Any]) -> None:
    """As accelerate does to offload."""
    part = model.model.decoder.layers[1]
    forward = part.forward
    part.forward = lambda *args, **kwargs: forward(*args, **kwargs)  # type: ignore[method-assign]


def partial_forward(model: Model, _: dict[str, Any]) -> None:
    model.forward = functools.partial(model.forward)  # type: ignore[method-assign]


def filled_cache(model: Model, inputs: dict[str, Any]) -> None:
    cache = EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache(config=model.config))
    ids = torch.tensor([[1, 5, 6]] * 4)
    with torch.no_grad():
        model(**inputs, decoder_input_ids=ids[:, :2], past_key_values=cache)
    inputs |= {"past_key_values": cache, "decoder_input_ids": ids}


FALLS_BACK: dict[str, Any] = {
    "hook on a layer": hooked(lambda model: model.model.decoder.layers[0]),
    "hook on a projection": hooked(lambda model: model.model.decoder.layers[0].cross_attn.v_proj),
    "hook on a dropout": hooked(lambda model: model.model.decoder.layers[0].self_attn_residual.dropout),
    "hook on the head": hooked(lambda model: model.lm_head),
    "hook on the base": hooked(lambda model: model.model),
    "forward of its own": own_forward,
    "forward without a name": partial_forward,
    "compiled layer": lambda model, _: model.model.decoder.layers[0].compile(backend="eager"),
    "eager attention": lambda model, _: model.set_attn_implementation("eager"),
    "training": lambda model, _: model.train(),
    "a subclass": lambda model, _: setattr(model, "__class__", Subclass),
    "a subclass with inputs of its own": lambda model, _: setattr(model, "__class__", Steered),
    "a subclass that updates its own way": lambda model, _: setattr(model, "__class__", Forgetful),
    "a subclass with a head of its own": lambda model, _: setattr(model, "__class__", OtherHead),
    "dropout that was left on": lambda model, _: model.model.decoder.layers[1].feed_forward_residual.dropout.train(),
    "something in place of dropout": lambda model, _: setattr(
        model.model.decoder.layers[0].feed_forward, "dropout", nn.Tanh()
    ),
    "another class of layer": lambda model, _: setattr(
        model.model.decoder.layers[0].feed_forward,
        "__class__",
        type("Other", (type(model.model.decoder.layers[0].feed_forward),), {}),
    ),
    "another class of positions": lambda model, _: setattr(
        model.model.decoder.rotary, "__class__", type("Other", (type(model.model.decoder.rotary),), {})
    ),
    "a cache with something in it": filled_cache,
    "several prompts for one source": lambda _, inputs: inputs.update(
        input_ids=inputs["input_ids"][:1],
        attention_mask=inputs["attention_mask"][:1],
        decoder_input_ids=torch.tensor([[1, 9], [1, 5], [1, 6]]),
    ),
    "left padding": lambda _, inputs: inputs.update(decoder_input_ids=torch.tensor([[0, 1, 4]] * 3 + [[1, 5, 6]])),
    "positions": lambda _, inputs: inputs.update(decoder_position_ids=torch.tensor([[3]] * 4)),
    "no cache": lambda _, inputs: inputs.update(use_cache=False),
    "static cache": lambda _, inputs: inputs.update(cache_implementation="static"),
    "attentions": lambda _, inputs: inputs.update(output_attentions=True, return_dict_in_generate=True),
    "hidden states": lambda _, inputs: inputs.update(output_hidden_states=True, return_dict_in_generate=True),
}


@pytest.mark.parametrize("change", FALLS_BACK.values(), ids=FALLS_BACK.keys())
def test_what_falls_back(change: Callable[[Model, dict[str, Any]], None], runs: Runs) -> None:
    model, inputs = prepare(tiny(dropout=0.0, position_encoding="rotary"))
    change(model, inputs)
    twin = copy.deepcopy(inputs)
    found, expected = runs.fast(model, **inputs), runs.stock(model, **twin)
    assert runs.covered == [False]
    found, expected = (x if isinstance(x, Tensor) else x.sequences for x in (found, expected))
    assert found.tolist() == expected.tolist()


def test_another_sdpa_falls_back(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = prepare(tiny(dropout=0.0, position_encoding="rotary"))
    plain = runs.fast(model, **inputs)

    def half(*args: Any, **kwargs: Any) -> Any:
        output, weights = sdpa_attention_forward(*args, **kwargs)
        return output / 2, weights

    monkeypatch.setattr(AttentionInterface, "_global_mapping", AttentionInterface._global_mapping | {"sdpa": half})
    found = runs.fast(model, **inputs)
    assert runs.covered == [False]
    assert found.tolist() == runs.stock(model, **inputs).tolist() != plain.tolist()


def test_a_prefix_of_peft_falls_back_and_is_used(runs: Runs) -> None:
    peft = pytest.importorskip("peft")
    model, inputs = prepare(tiny(share_embeddings=False, tie_word_embeddings=False), dtype=torch.float32)
    plain = runs.fast(model, **inputs)
    sizes = {"num_virtual_tokens": 4, "num_attention_heads": 4, "num_layers": 2, "token_dim": 32}
    tuned = peft.get_peft_model(model, peft.PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", **sizes)).eval()
    for parameter in tuned.prompt_encoder.parameters():
        parameter.data.normal_(0, 3)
    found = runs.fast(tuned, **inputs)
    assert runs.covered == [False]
    assert found.tolist() == runs.stock(tuned, **inputs).tolist() != plain.tolist()
    with tuned.disable_adapter():
        runs.same(model, plain, **inputs)


def test_hooks_on_the_encoder_change_nothing(runs: Runs) -> None:
    model, inputs = prepare(tiny())
    model.model.encoder.layers[0].register_forward_hook(lambda module, args, y: (y[0] * 0.5, y[1]))
    runs.same(model, **inputs)


def test_autocast_falls_back(runs: Runs) -> None:
    model, inputs = prepare(tiny(), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        runs.fast(model, **inputs)
    assert runs.covered == [False]


def test_assistants(runs: Runs) -> None:
    """The assistant is rolled back, which the step cannot be; the assisted model calls no loop of ours."""
    model, inputs = prepare(tiny())
    one = {"input_ids": inputs["input_ids"][:1]}
    expected = runs.fast(model, **one).tolist()
    assert runs.covered == [True]
    assert runs.fast(model, **one, assistant_model=copy.deepcopy(model)).tolist() == expected
    assert not any(runs.covered)


def own_names(function: Any) -> Iterator[str]:
    """What a function reads from ``self``."""
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
            yield node.attr


@pytest.mark.parametrize("loop", ["_sample", "_beam_search"])
def test_transformers_loops_are_those_we_know(loop: str) -> None:
    """They see a stand-in for the model: a new name they read from it has to be looked at."""
    known = {
        "config get_compiled_call _valid_auto_compile_criteria __call__ _prefill _optimize_model_for_decode "
        "_has_unfinished_sequences prepare_inputs_for_generation _update_model_kwargs_for_generation",
        "_reorder_cache _flatten_beam_dim _unflatten_beam_dim _get_top_k_continuations __class__ "
        "_get_running_beams_for_next_iteration _update_finished_beams _check_early_stop_heuristic "
        "_beam_search_has_unfinished_sequences",
    }
    stock = getattr(GenerationMixin, loop)
    unknown = set(own_names(stock)) - set(" ".join(known).split())
    assert not unknown, f"transformers' {loop} has changed and reads {unknown} too: see modeling/generation_dragoman.py"
    arguments = "self input_ids logits_processor stopping_criteria generation_config synced_gpus streamer model_kwargs"
    unknown = set(inspect.signature(stock).parameters) - set(arguments.split())
    assert not unknown, f"transformers' {loop} takes {unknown} too: see ARGUMENTS in modeling/decoding_coverage.py"
    overridden = {name for name in vars(DecodingLoops) if hasattr(GenerationMixin, name)} - set(vars(object))
    used = set(own_names(GenerationMixin._sample)) | set(own_names(GenerationMixin._beam_search)) | {"__module__"}
    assert overridden - {"__call__"} <= used, "an override that no loop calls any more"
