"""Int8: the arithmetic against exact integers, and an int8 model through everything that a model goes through."""

import copy
import json
import os
import pickle
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dragoman.modeling import int8_arithmetic, int8_loading
from dragoman.modeling.embeddings import TokenEmbedding
from dragoman.modeling.int8_arithmetic import (
    centre_correction,
    has_packed_kernel,
    largest_sums,
    missing_kernel,
    quantize_rows,
)
from dragoman.modeling.int8_modules import Int8Embedding, Int8Linear, Int8Matrix, frozen
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    Seq2SeqTrainer,
)
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

import dragoman
from dragoman import DragomanForConditionalGeneration, DragomanModel
from dragoman.verification import verify
from support import OPTIONS, ROOT, batch, build, configured, describe, gradients, pairwise, relative_error, tiny

Model = DragomanForConditionalGeneration
LARGE = (1024, 1024)  # outputs, inputs: enough to be packed, and no more
TYINGS = [(tied, shared) for tied in (True, False) for shared in (True, False)]


def linear(outputs: int, inputs: int, bias: bool = True, seed: int = 0) -> tuple[nn.Linear, Int8Linear]:
    torch.manual_seed(seed)
    layer = nn.Linear(inputs, outputs, bias=bias)
    q, scale = quantize_rows(layer.weight)
    return layer, Int8Linear(frozen(q), frozen(scale), layer.bias)


def exact(x: Tensor, q: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """What is meant, in float64: x rounded to 127ths of each row's largest, times the int8 matrix."""
    largest = x.double().abs().amax(-1, keepdim=True)
    levels = torch.where(largest > 0, (127 * x.double() / largest).round(), 0.0)
    product = levels @ q.double().T * scale.double() * largest / 127
    return product if bias is None else product + bias.double()


@pytest.fixture(scope="module")
def model() -> Model:
    return build(tiny(attention_bias=True, logits_bias=True, tie_word_embeddings=False), seed=2)


@pytest.fixture(scope="module")
def quantized(model: Model) -> Model:
    return dragoman.quantize(model)


def test_rows_are_rounded_to_their_own_scale() -> None:
    matrix = torch.tensor([[1.0, -0.5, 0.004], [0.0, 0.0, 0.0], [1e-30, 254e-30, -254e-30]])
    q, scale = quantize_rows(matrix)
    assert q.tolist() == [[127, -64, 1], [0, 0, 0], [0, 127, -127]]  # -63.5 goes to the even one
    torch.testing.assert_close(scale, torch.tensor([1 / 127, 0.0, 2e-30]))
    torch.manual_seed(0)
    matrix = torch.randn(50, 70) * torch.logspace(-6, 6, 50)[:, None]
    q, scale = quantize_rows(matrix)
    assert q.dtype == torch.int8
    assert (q.abs().amax(1) == 127).all()
    assert ((q * scale[:, None] - matrix).abs() <= 0.5001 * scale[:, None]).all()


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_row_that_is_not_finite(value: float) -> None:
    matrix = torch.ones(3, 4)
    matrix[1, 2] = value
    with pytest.raises(ValueError, match="Row 1 of a weight is not finite"):
        quantize_rows(matrix)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"), [(1, 32, 48), (5, 31, 7), (16, 512, 33), (3, 1, 1), (70, 64, 64)]
)
def test_products_are_exact(rows: int, inputs: int, outputs: int, bias: bool) -> None:
    _, layer = linear(outputs, inputs, bias)
    x = torch.randn(rows, inputs) * torch.logspace(-3, 3, rows)[:, None]
    x[rows // 2, inputs // 2 :] = 0
    expected = exact(x, layer.weight, layer.weight_scale, layer.bias)
    size = expected.abs().amax()
    torch.testing.assert_close(layer(x).double() / size, expected / size, rtol=1e-4, atol=1e-6)


def test_a_half_goes_to_the_even_one() -> None:
    identity = Int8Linear(frozen(torch.eye(5).to(torch.int8)), frozen(torch.ones(5)), None)
    x = torch.tensor([[127.0, 0.5, 1.5, -0.5, -2.5]])
    torch.testing.assert_close(identity(x), torch.tensor([[127.0, 0.0, 2.0, 0.0, -2.0]]), rtol=0, atol=1e-5)


def large_sums() -> tuple[Int8Linear, Tensor]:
    """Above 2²⁴, where not every integer is a float."""
    _, layer = linear(*LARGE)
    q = torch.randint(100, 128, LARGE, dtype=torch.int8)
    layer.weight = frozen(torch.where(torch.arange(len(q))[:, None] % 2 == 0, q, -q))
    return layer, torch.rand(5, LARGE[1]) + 1


def test_a_packed_matrix_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_packed_kernel(), "the machine that runs the tests has one"
    layer, x = large_sums()
    packed = layer(x)
    assert layer._ready is not None
    assert layer._ready.packed is not None
    monkeypatch.setattr(int8_arithmetic, "has_packed_kernel", lambda: False)
    plain = copy.deepcopy(layer)
    assert torch.equal(plain(x), packed)
    assert plain._ready is not None
    assert plain._ready.packed is None
    wanted = exact(x, layer.weight, layer.weight_scale, layer.bias)
    assert relative_error(packed, wanted) < 1e-5


def test_what_is_packed() -> None:
    """A large matrix, for more than a row, and only where it will be used again."""
    (outputs, inputs), x = LARGE, torch.randn(2, 1024)
    for layer, rows, packs in [
        (linear(outputs, inputs)[1], 2, True),
        (linear(outputs, inputs)[1], 1, False),
        (linear(outputs - 1, inputs)[1], 2, False),
        (linear(2 * outputs, inputs // 2)[1], 2, False),
        (linear(4 * outputs, inputs // 2)[1], 2, True),
        (Int8Linear.fuse([linear(outputs, inputs)[1]] * 2), 2, False),
    ]:
        layer(x[:rows, : layer.in_features])
        assert layer._ready is not None
        assert (layer._ready.packed is not None) == packs, describe_shape(layer)
        assert "packed" not in str(layer.state_dict().keys())


def describe_shape(layer: Int8Linear) -> str:
    return f"{layer.in_features} to {layer.out_features}"


def test_a_row_of_zeros_gives_the_bias() -> None:
    _, layer = linear(6, 8)
    x = torch.randn(3, 8)
    x[1] = 0
    assert torch.equal(layer(x)[1], layer.bias)
    assert layer(torch.zeros(0, 8)).shape == (0, 6)


def test_what_is_not_finite_stays_so_in_its_row() -> None:
    _, layer = linear(6, 8)
    x = torch.randn(3, 8)
    x[1, 2] = float("nan")
    assert layer(x)[1].isnan().all()
    assert layer(x)[[0, 2]].isfinite().all()


@pytest.mark.parametrize(("outputs", "inputs"), [(200, 96), LARGE])
def test_a_row_does_not_depend_on_the_others(outputs: int, inputs: int) -> None:
    _, layer = linear(outputs, inputs)
    x = torch.randn(33, inputs) * torch.logspace(-2, 2, 33)[:, None]
    together = layer(x)
    assert torch.equal(together, torch.cat([layer(row[None]) for row in x]))
    assert torch.equal(together, layer(x.view(3, 11, inputs)).view(33, outputs))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        assert torch.equal(together, layer(x))
    finally:
        torch.set_num_threads(threads)


def test_fused_layers_give_the_same_bits() -> None:
    layers = [
        linear(outputs, 24, bias, seed)[1] for seed, (outputs, bias) in enumerate([(8, True), (5, False), (24, True)])
    ]
    x = torch.randn(4, 7, 24)
    for parts in (layers, layers[1:2]):
        fused = Int8Linear.fuse(parts)
        outputs = fused(x).split([layer.out_features for layer in parts], dim=-1)
        assert all(torch.equal(output, layer(x)) for output, layer in zip(outputs, parts, strict=True))
    assert fused.bias is None


def test_as_close_to_fp32_as_torch_comes() -> None:
    """Whose kernels round all rows of a batch by one scale."""
    torch.manual_seed(0)
    layer, ours = linear(64, 256)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reference is deprecated
        config = torch.ao.quantization.per_channel_dynamic_qconfig
        theirs = torch.ao.quantization.quantize_dynamic(nn.Sequential(layer), {"": config}, torch.qint8)
    x = torch.randn(16, 256)
    wanted = layer(x)
    assert relative_error(ours(x), wanted) <= 1.05 * relative_error(theirs(x), wanted)
    assert relative_error(ours(x), wanted) < 0.015


@pytest.mark.parametrize(("outputs", "inputs"), [(6, 8), LARGE])
def test_products_follow_their_tensors(outputs: int, inputs: int) -> None:
    """What was made ready for the kernel is not kept when its tensors change."""
    _, one = linear(outputs, inputs, seed=0)
    _, other = linear(outputs, inputs, seed=1)
    x = torch.randn(3, inputs)
    wanted = other(x)
    first = one(x)
    one.load_state_dict(other.state_dict())
    assert torch.equal(one(x), wanted)
    assert not torch.equal(first, wanted)
    _, one = linear(outputs, inputs, seed=0)
    one(x)
    one.weight, one.weight_scale, one.bias = other.weight, other.weight_scale, other.bias
    assert torch.equal(one(x), wanted)


def test_what_becomes_int8_and_what_stays(model: Model, quantized: Model) -> None:
    for (name, before), (other, after) in zip(model.named_modules(), quantized.named_modules(), strict=True):
        assert name == other
        if isinstance(before, nn.Linear | TokenEmbedding):
            assert isinstance(after, Int8Embedding if isinstance(before, TokenEmbedding) else Int8Linear), name
            q, scale = quantize_rows(before.weight)
            assert torch.equal(after.weight, q)
            assert torch.equal(after.weight_scale, scale)
            assert torch.equal(after.dequantized(), q * scale[:, None])
        else:
            assert type(before) is type(after)
    others = {name: p for name, p in quantized.named_parameters() if p.dtype != torch.int8}
    assert {name.split(".")[-1] for name in others} == {"bias", "weight", "weight_scale"}
    before = dict(model.named_parameters())
    for name, parameter in others.items():
        if not name.endswith("_scale"):
            assert torch.equal(parameter, before[name])
            assert parameter.data_ptr() != before[name].data_ptr(), "a copy: training one must not move the other"


def test_the_original_stays(model: Model) -> None:
    before = copy.deepcopy(model.state_dict())
    dragoman.quantize(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    assert not hasattr(model.config, "quantization_config")
    assert not model.is_int8


@pytest.mark.parametrize("encoder_only", [False, True])
def test_embeddings_look_up_rows(encoder_only: bool) -> None:
    model = dragoman.quantize(build(tiny()))
    embedding = model.model.encoder.embed_tokens if encoder_only else model.model.decoder.embed_tokens
    ids = torch.tensor([[3, 0, 36], [5, 5, 1]])
    torch.testing.assert_close(embedding(ids), embedding.dequantized()[ids] * 32**0.5)
    with pytest.raises(IndexError, match="Token id 37 is outside the vocabulary of 37"):
        embedding(torch.tensor([[37]]))


@pytest.mark.parametrize("options", pairwise(OPTIONS), ids=describe)
def test_every_architecture(options: dict[str, Any], tmp_path: Path) -> None:
    config = configured(options)
    model = build(config)
    quantized = dragoman.quantize(model)
    inputs = batch(config)
    wanted, found = model(**inputs), quantized(**inputs)
    assert 1e-4 < relative_error(found.logits, wanted.logits) < 0.12
    quantized.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(**inputs).logits, found.logits)
    assert torch.equal(loaded(**inputs).loss, found.loss)
    dequantized = loaded.dequantize()
    assert relative_error(dequantized(**inputs).logits, wanted.logits) < 0.12


@pytest.mark.parametrize(("tied", "shared"), TYINGS)
def test_ties(tied: bool, shared: bool, tmp_path: Path) -> None:
    model = build(tiny(tie_word_embeddings=tied, share_embeddings=shared))
    dragoman.quantize(model).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    tables = [name for name, value in stored.items() if value.shape == (37, 32)]
    assert len(tables) == 3 - tied - shared
    assert sum(name.endswith("_scale") and len(value) == 37 for name, value in stored.items()) == len(tables)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    for made in (dragoman.quantize(model), loaded, copy.deepcopy(loaded)):
        head, ours, theirs = made.lm_head, made.model.decoder.embed_tokens, made.model.encoder.embed_tokens
        for name in ("weight", "weight_scale"):
            assert (getattr(head, name) is getattr(ours, name)) == tied
            assert (getattr(ours, name) is getattr(theirs, name)) == shared
    fp32 = loaded.dequantize()
    assert (fp32.lm_head.weight is fp32.model.decoder.embed_tokens.weight) == tied
    assert (fp32.model.encoder.embed_tokens.weight is fp32.model.decoder.embed_tokens.weight) == shared
    assert fp32._tied_weights_keys == model._tied_weights_keys or not tied


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def test_round_trips(quantized: Model, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantized.save_pretrained(tmp_path / "whole")
        whole = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "whole")
    assert same(quantized, whole)
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["quantization_config"] == {
        "quant_method": "dragoman_int8"
    }
    whole.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    inputs = batch(quantized.config)
    for folder in ("whole", "sharded"):
        loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / folder)
        assert same(quantized, loaded)
        assert not any(p.requires_grad for p in loaded.parameters())
        assert loaded.is_quantized
        assert loaded.dtype == torch.float32
        assert not loaded.training
        states = quantized.model(inputs["input_ids"], decoder_input_ids=inputs["input_ids"])
        base = AutoModel.from_pretrained(tmp_path / folder)
        again = base(inputs["input_ids"], decoder_input_ids=inputs["input_ids"])
        assert torch.equal(again.last_hidden_state, states.last_hidden_state)
        encoder = AutoModelForTextEncoding.from_pretrained(tmp_path / folder)
        assert torch.equal(encoder(inputs["input_ids"]).last_hidden_state, states.encoder_last_hidden_state)


def test_a_quarter_of_the_size(tmp_path: Path) -> None:
    model = build(tiny(hidden_size=128, vocab_size=2000))
    quantized = dragoman.quantize(model)
    for name, made in (("fp32", model), ("int8", quantized)):
        made.save_pretrained(tmp_path / name)
    size = {name: (tmp_path / name / "model.safetensors").stat().st_size for name in ("fp32", "int8")}
    assert size["int8"] < 0.29 * size["fp32"]
    assert quantized.get_memory_footprint() < 0.35 * model.get_memory_footprint()
    scales = sum(p.numel() for name, p in quantized.named_parameters() if name.endswith("_scale"))
    assert quantized.num_parameters() == model.num_parameters() + scales


@pytest.mark.parametrize(
    "arguments",
    [{}, {"num_beams": 3}, {"do_sample": True}, {"num_beams": 2, "do_sample": True}, {"use_cache": False}],
    ids=str,
)
def test_generation(arguments: dict[str, Any], quantized: Model, tmp_path: Path) -> None:
    quantized.save_pretrained(tmp_path)
    inputs = {name: value for name, value in batch(quantized.config).items() if name != "labels"}
    found = []
    for made in (quantized, AutoModelForSeq2SeqLM.from_pretrained(tmp_path), pickle.loads(pickle.dumps(quantized))):
        torch.manual_seed(0)
        found.append(made.generate(**inputs, max_new_tokens=15, **arguments))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert len(found[0].unique()) > 7


def test_a_batch_generates_what_its_rows_do(quantized: Model) -> None:
    inputs = batch(quantized.config)
    together = quantized.generate(inputs["input_ids"], max_new_tokens=15, num_beams=2)
    for ids, row in zip(inputs["input_ids"], together, strict=True):
        alone = quantized.generate(ids[ids != 0][None], max_new_tokens=15, num_beams=2)[0]
        assert torch.equal(alone, row[: len(alone)])


def test_copies_and_pickles(quantized: Model) -> None:
    inputs = batch(quantized.config)
    wanted = quantized(**inputs).logits
    for made in (copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized))):
        assert same(made, quantized)
        assert torch.equal(made(**inputs).logits, wanted)
    other = dragoman.quantize(build(quantized.config, seed=3))
    other(**inputs)
    other.load_state_dict(quantized.state_dict())
    assert torch.equal(other(**inputs).logits, wanted)


def test_half_precision_models_are_quantized_too() -> None:
    model = build(tiny()).to(torch.bfloat16)
    quantized = dragoman.quantize(model)
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert {p.dtype for p in quantized.parameters()} == {torch.int8, torch.float32}
    inputs = batch(model.config)
    assert relative_error(quantized(**inputs).logits, model.float()(**inputs).logits) < 0.05


def test_the_loss_needs_no_logits(quantized: Model) -> None:
    inputs = batch(quantized.config)
    without = quantized(**inputs, return_logits=False)
    assert without.logits is None
    torch.testing.assert_close(without.loss, quantized(**inputs).loss)


def train(model: Model) -> None:
    Seq2SeqTrainer(model)


REFUSALS: dict[str, tuple[Callable[[Model], object], str]] = {
    "bf16": (lambda m: m.to(torch.bfloat16), "stays in float32 on the CPU, and cannot go to torch.bfloat16"),
    "inner bf16": (lambda m: m.model.to(torch.bfloat16), "stays in float32"),
    "double": (lambda m: m.double(), "torch.float64 on cpu"),
    "half": (lambda m: m.half(), "not supported for quantized model"),
    "train": (lambda m: m.train(), "cannot be trained: train the fp32 model, then dragoman.quantize"),
    "trainer": (train, "fine-tuning on purely quantized models"),
    "resize": (lambda m: m.resize_token_embeddings(50), "cannot be resized: resize the fp32 model"),
    "twice": (dragoman.quantize, "int8 already"),
    "gradients": (
        lambda m: m(
            inputs_embeds=torch.randn(1, 3, 32, requires_grad=True),
            attention_mask=torch.ones(1, 3),
            decoder_input_ids=torch.tensor([[1]]),
        ),
        "No gradient passes through int8 weights",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str) -> None:
    model = dragoman.quantize(build(tiny()))
    inputs = batch(model.config)
    wanted = model(**inputs).logits
    call, message = REFUSALS[name]
    with pytest.raises((RuntimeError, ValueError), match=message):
        call(model)
    assert torch.equal(model(**inputs).logits, wanted), "refused halfway"
    assert not any(module.training for module in model.modules())
    model.to("cpu").eval().to(torch.float32)


def test_what_cannot_be_quantized() -> None:
    with pytest.raises(TypeError, match="takes a Transformer of Dragoman's, not a Linear"):
        dragoman.quantize(nn.Linear(2, 2))  # type: ignore[type-var]
    peft = pytest.importorskip("peft")
    adapted = build(tiny())
    adapted.add_adapter(peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"has adapters: merge them .*merge_and_unload"):
        dragoman.quantize(adapted)
    merged = peft.get_peft_model(build(tiny()), peft.LoraConfig()).merge_and_unload()
    assert dragoman.quantize(merged).is_int8
    with pytest.raises(ValueError, match=r"on meta: call model\.cpu"):
        dragoman.quantize(build(tiny()).to("meta"))


class Doubled(nn.Linear):
    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(states)


def test_projections_of_another_class_are_refused() -> None:
    """Before anything changes: left in fp32 they would be shared with the original, and frozen there."""
    model = build(tiny())
    model.model.decoder.layers[1].feed_forward.up_proj.__class__ = Doubled
    with pytest.raises(ValueError, match=r"decoder\.layers\.1\.feed_forward\.up_proj is a Doubled"):
        dragoman.quantize(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_adapters_are_refused(quantized: Model) -> None:
    peft = pytest.importorskip("peft")
    with pytest.raises(ValueError, match="Target module Int8Linear"):
        peft.get_peft_model(copy.deepcopy(quantized), peft.LoraConfig())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device_map": "cuda"}, "CPU only, and device_map asks for cuda"),
        ({"device_map": {"": "meta"}}, "asks for meta"),
        ({"device_map": {"model": "cpu", "lm_head": "disk"}}, "asks for disk"),
        ({"dtype": torch.bfloat16}, "computes in float32 between its products, not in torch.bfloat16"),
    ],
    ids=str,
)
def test_loading_elsewhere(arguments: dict[str, Any], message: str, quantized: Model, tmp_path: Path) -> None:
    quantized.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path, **arguments)


@pytest.mark.parametrize("arguments", [{"device_map": "cpu"}, {"device_map": "auto"}, {"dtype": "auto"}], ids=str)
def test_loading_here(arguments: dict[str, Any], quantized: Model, tmp_path: Path) -> None:
    if arguments == {"device_map": "auto"} and torch.cuda.is_available():
        pytest.skip("auto is a GPU here")
    quantized.save_pretrained(tmp_path)
    assert same(AutoModelForSeq2SeqLM.from_pretrained(tmp_path, **arguments), quantized)


class OthersLinear(nn.Linear):
    """As bitsandbytes has them: whole numbers, made of the weights while they load."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight / 100, self.bias)


class Round(ConversionOps):
    def convert(self, input_dict: dict[str, Any], **_: Any) -> dict[str, Any]:
        return {n: nn.Parameter((100 * w[0]).round().to(torch.int8), False) for n, w in input_dict.items()}


class OthersQuantizer(HfQuantizer):
    requires_calibration = False
    is_trainable = False

    def is_serializable(self) -> bool:
        return True

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        return param_name.endswith("up_proj.weight")

    def get_quantize_ops(self) -> Round:
        return Round()

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        for module in model.modules():
            if hasattr(module, "up_proj"):
                module.up_proj.__class__ = OthersLinear

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> None:
        pass


class OthersConfig(QuantizationConfigMixin):
    def __init__(self) -> None:
        self.quant_method: Any = "others"


def test_what_others_quantize_is_theirs(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AUTO_QUANTIZATION_CONFIG_MAPPING, "others", OthersConfig)
    monkeypatch.setitem(AUTO_QUANTIZER_MAPPING, "others", OthersQuantizer)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, quantization_config=OthersConfig())
    assert loaded.model.encoder.layers[0].feed_forward.up_proj.weight.dtype == torch.int8
    inputs = batch(model.config)
    assert 0 < relative_error(loaded(**inputs).logits, model(**inputs).logits) < 0.05


def change(folder: Path, weights: dict[str, Tensor] | None = None, **fields: Any) -> None:
    if weights is not None:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def test_folders_that_contradict_themselves(model: Model, quantized: Model, tmp_path: Path) -> None:
    def load() -> None:
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path)

    model.save_pretrained(tmp_path)
    change(tmp_path, quantization_config={"quant_method": "dragoman_int8"})
    with pytest.raises(
        ValueError, match=r"another type than quantization_config in its config\.json says: .*q_proj\.weight"
    ):
        load()
    quantized.save_pretrained(tmp_path)
    change(tmp_path, quantization_config=None)
    with pytest.raises(ValueError, match=r"holds int8 weights.*lacks the quantization_config"):
        load()
    quantized.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    change(tmp_path, {k: v for k, v in stored.items() if k != "model.decoder.layers.0.self_attn.q_proj.weight_scale"})
    with pytest.raises(ValueError, match=r"lacks model\.decoder\.layers\.0\.self_attn\.q_proj\.weight_scale"):
        load()
    owner = "model.encoder.embed_tokens.weight_scale"
    change(tmp_path, {k: v for k, v in stored.items() if k != owner})
    with pytest.raises(ValueError, match=re.escape(f"lacks {owner}")):
        load()
    quantized.save_pretrained(tmp_path)
    change(tmp_path, quantization_config={"quant_method": "dragoman_int8", "bits": 4})
    with pytest.raises(ValueError, match=r"nothing else, got .*bits"):
        load()


def test_a_new_head_is_refused(quantized: Model, tmp_path: Path) -> None:
    """Nothing would draw it, and nothing could train it."""
    quantized.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds int8 weights, but classifier\..* would be new.* dequantize\(\)"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)
    classifier = dragoman.quantize(build(tiny(), auto=AutoModelForSequenceClassification))
    classifier.save_pretrained(tmp_path / "judge")
    with pytest.raises(ValueError, match=r"but classifier\..* would be new"):
        AutoModelForSequenceClassification.from_pretrained(
            tmp_path / "judge", num_labels=5, ignore_mismatched_sizes=True
        )


def test_dequantized_is_an_ordinary_model(quantized: Model, tmp_path: Path) -> None:
    made = copy.deepcopy(quantized).dequantize()
    inputs = batch(made.config)
    assert relative_error(made(**inputs).logits, quantized(**inputs).logits) < 0.05
    assert not any(isinstance(module, Int8Matrix) for module in made.modules())
    made.train()(**inputs).loss.backward()
    assert all(p.grad is not None for p in made.parameters())
    made.to(torch.bfloat16).float().save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert not AutoModelForSeq2SeqLM.from_pretrained(tmp_path).is_int8
    assert dragoman.quantize(made).is_int8
    assert same(dragoman.quantize(copy.deepcopy(quantized).dequantize()), quantized), "the same rows give the same int8"


def test_a_new_model_of_an_int8_configuration_is_an_ordinary_model(quantized: Model, tmp_path: Path) -> None:
    quantized.save_pretrained(tmp_path / "int8")
    new = AutoModelForSeq2SeqLM.from_config(AutoConfig.from_pretrained(tmp_path / "int8")).eval()
    new.save_pretrained(tmp_path / "new")
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "new")
    torch.testing.assert_close(loaded(**batch(new.config)).logits, new(**batch(new.config)).logits, rtol=0, atol=0)


def test_what_the_padding_learns_survives() -> None:
    """Nothing, if so configured: in the model that was, and in the one that int8 becomes."""
    config = tiny(train_pad_embedding=False, tie_word_embeddings=False)
    for model in (build(config), dragoman.quantize(build(config)).dequantize()):
        inputs = batch(config)
        inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])  # padding is read, too
        gradient = gradients(model.train(), **inputs)["model.encoder.embed_tokens.weight"]
        assert gradient[0].norm() == 0 < gradient[1:].norm()


def test_a_model_in_half_precision_becomes_what_is_loaded(tmp_path: Path) -> None:
    model = build(tiny(position_encoding="sinusoidal")).bfloat16()
    quantized, inputs = dragoman.quantize(model), batch(model.config)
    quantized.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    torch.testing.assert_close(quantized(**inputs).logits, loaded(**inputs).logits, rtol=0, atol=0)


@pytest.fixture
def probed_anew() -> Any:
    for probe in (missing_kernel, has_packed_kernel):
        probe.cache_clear()
    yield
    for probe in (missing_kernel, has_packed_kernel):
        probe.cache_clear()


def cut_off(levels: Tensor, matrix: Tensor) -> Tensor:
    """A CPU without VNNI: products are added in pairs, in 16 bits."""
    pairs = levels.long()[:, :, None] * matrix.long()[None]
    return pairs.unflatten(1, (-1, 2)).sum(2).clamp(-(2**15), 2**15 - 1).sum(1).int()


def no_kernel(*_: Any) -> Tensor:
    raise NotImplementedError("aten::_int_mm")


@pytest.mark.usefixtures("probed_anew")
@pytest.mark.parametrize(("kernel", "reason"), [(cut_off, "cuts off sums"), (no_kernel, "no int8 product")])
def test_a_machine_without_a_kernel(
    kernel: Any, reason: str, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    assert missing_kernel() is None, "the machine that runs the tests has one"
    dragoman.quantize(model).save_pretrained(tmp_path)
    missing_kernel.cache_clear()
    monkeypatch.setattr(torch, "_int_mm", kernel)
    with pytest.raises(RuntimeError, match=f"cannot use int8: .*{reason}"):
        dragoman.quantize(model)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert f"fp32 from now on: {missing_kernel()}" in caplog.text
    assert not loaded.is_int8
    inputs = batch(model.config)
    assert relative_error(loaded(**inputs).logits, model(**inputs).logits) < 0.05
    loaded.train().to(torch.bfloat16)


@pytest.mark.usefixtures("probed_anew")
@pytest.mark.parametrize("kernel", [cut_off, no_kernel])
def test_a_machine_without_a_packed_kernel(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = large_sums()
    wanted = copy.deepcopy(layer)(x)
    has_packed_kernel.cache_clear()
    monkeypatch.setattr(int8_arithmetic, "packed_int_mm", lambda levels, _: kernel(levels, largest_sums()[1].T))
    assert not has_packed_kernel()
    assert torch.equal(layer(x), wanted)


@pytest.mark.usefixtures("probed_anew")
def test_a_torch_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert "oneDNN" in str(missing_kernel())


def test_registering_again_changes_nothing() -> None:
    int8_loading.register_int8()
    assert int8_loading.AUTO_QUANTIZER_MAPPING["dragoman_int8"] is int8_loading.Int8Quantizer
    assert centre_correction(torch.full((1, 3), 2, dtype=torch.int8), torch.tensor([0.5])).item() == -384


def test_the_folder_passes_and_describes_itself(quantized: Model, tmp_path: Path) -> None:
    quantized.save_pretrained(tmp_path)
    assert [finding for finding in verify(tmp_path) if finding.problem] == []
    card = (tmp_path / "README.md").read_text("utf-8")
    stored = quantized.num_parameters() + quantized.lm_head.bias.numel()  # which is not trained
    assert f"with {stored:,} parameters (int8 weights with fp32 scales, for the CPU)" in card


def test_what_the_document_shows_runs(tmp_path: Path) -> None:
    document = (ROOT / "docs" / "quantization.md").read_text("utf-8")
    snippets = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    assert len(snippets) == 2
    tokenizer = dragoman.DragomanTokenizer.train(["a dog runs"], ["ein Hund rennt"], vocab_size=300)
    config = dragoman.DragomanConfig.from_tokenizer(tokenizer, preset="tiny")
    tokenizer.save_pretrained(tmp_path / "my-model")
    DragomanForConditionalGeneration(config).save_pretrained(tmp_path / "my-model")
    for snippet in snippets:
        subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, check=True, capture_output=True, timeout=120)
    links = re.findall(r"\]\(([^)#:]+)\)", document)
    assert all((ROOT / "docs" / link).exists() for link in links)


WITHOUT_PLUGIN = """
import sys
import loading_process
sys.meta_path.insert(0, loading_process.Absent())
import torch
from transformers import AutoModelForSeq2SeqLM
torch.set_num_threads(1)
for folder, again in ((sys.argv[1], sys.argv[2]), (sys.argv[2], sys.argv[3])):
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
    assert model.is_int8 and model.lm_head.weight.dtype == torch.int8
    model.save_pretrained(again)
assert "dragoman" not in sys.modules
"""


def test_without_the_plugin(quantized: Model, tmp_path: Path) -> None:
    """Two folders in one process, whose code differs in name only; what they save loads with the plugin."""
    quantized.save_pretrained(tmp_path / "first")
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parent)
    folders = [str(tmp_path / name) for name in ("first", "second", "third")]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PLUGIN, *folders], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    inputs = batch(quantized.config)
    for folder in folders[1:]:
        loaded = AutoModelForSeq2SeqLM.from_pretrained(folder)
        assert same(loaded, quantized)
        assert torch.equal(loaded(**inputs).logits, quantized(**inputs).logits)


def test_the_base_model_alone() -> None:
    base = DragomanModel(tiny())
    quantized = dragoman.quantize(base)
    ids = torch.tensor([[3, 4, 5]])
    wanted = base.eval()(ids, decoder_input_ids=ids).last_hidden_state
    assert relative_error(quantized(ids, decoder_input_ids=ids).last_hidden_state, wanted) < 0.1
