"""The loss against PyTorch's own on all logits at once; and that it never holds them."""

import itertools
import sys
import weakref
from typing import Any

import pytest
import torch
from dragoman.modeling import loss as loss_module
from dragoman.modeling.loss import head_cross_entropy, is_plain_linear, loss_and_gradients, token_cross_entropy
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForSeq2SeqLM
from transformers.trainer_pt_utils import LabelSmoother

import dragoman
from loss import peak_growth_elsewhere
from support import relative_error

B, T, C, V = 3, 7, 8, 53


def case(bias: bool = True, dtype: torch.dtype = torch.float64, size: int = V) -> tuple[Tensor, nn.Linear, Tensor]:
    """States, a head whose probabilities are far from uniform, and labels with gaps."""
    torch.manual_seed(0)
    states = torch.randn(B, T, C, dtype=dtype, requires_grad=True)
    head = nn.Linear(C, size, bias=bias, dtype=dtype)
    nn.init.normal_(head.weight)
    labels = torch.randint(0, size, (B, T))
    labels[0, 3:] = labels[1, :2] = -100
    return states, head, labels


def reference(states: Tensor, head: nn.Linear, labels: Tensor, smoothing: float, scale: float) -> Tensor:
    logits = (head(states) * scale)[labels != -100]
    return F.cross_entropy(logits, labels[labels != -100], label_smoothing=smoothing)


def tensors(states: Tensor, head: nn.Linear) -> list[Tensor]:
    return [states, head.weight] + ([] if head.bias is None else [head.bias])


@pytest.fixture(params=[1, 4 * V, 2**24], ids=["a row", "some rows", "all rows"])
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "LOGITS_AT_ONCE", request.param)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    ("bias", "smoothing", "scale"), list(itertools.product((False, True), (0.0, 0.3), (1.0, 0.4))), ids=str
)
def test_equals_cross_entropy_of_all_logits(bias: bool, smoothing: float, scale: float) -> None:
    states, head, labels = case(bias)
    expected = reference(states, head, labels, smoothing, scale)
    expected_gradients = torch.autograd.grad(expected, tensors(states, head))
    for count in (None, 31):  # the mean over the tokens here, or over those of the whole step
        factor = 1.0 if count is None else int((labels != -100).sum()) / count
        found = head_cross_entropy(states, head, labels, count, smoothing, scale)
        torch.testing.assert_close(found, expected * factor)
        torch.testing.assert_close(token_cross_entropy(head(states) * scale, labels, count, smoothing), found)
        gradients = torch.autograd.grad(2 * found, tensors(states, head), retain_graph=True)
        torch.testing.assert_close(gradients, tuple(2 * factor * g for g in expected_gradients))
        again = torch.autograd.grad(2 * found, tensors(states, head))  # nothing was used up
        torch.testing.assert_close(again, gradients)
    with torch.no_grad():
        torch.testing.assert_close(head_cross_entropy(states, head, labels, None, smoothing, scale), expected)


@pytest.mark.parametrize(("bias", "smoothing", "scale"), [(True, 0.0, 1.0), (False, 0.3, 0.4)])
def test_gradients_may_be_differentiated(bias: bool, smoothing: float, scale: float) -> None:
    states, head, labels = case(bias)
    inputs = tensors(states, head)
    vectors = [torch.randn_like(x) for x in inputs]

    def products(loss: Tensor) -> list[Tensor]:
        """Of the Hessian with a vector."""
        gradients = torch.autograd.grad(loss, inputs, create_graph=True)
        along = sum((g * v).sum() for g, v in zip(gradients, vectors, strict=True))
        return list(torch.autograd.grad(along, inputs, allow_unused=True))

    expected = products(reference(states, head, labels, smoothing, scale))
    torch.testing.assert_close(products(head_cross_entropy(states, head, labels, None, smoothing, scale)), expected)


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_to_differentiate_are_those_of_the_whole_model(tied: bool) -> None:
    """Where the head is tied, the states were made from its weight, too, whose share must not count twice."""
    torch.manual_seed(0)
    config = dragoman.presets.tiny(vocab_size=V, tie_word_embeddings=tied, share_embeddings=tied, dropout=0.0)
    model = AutoModelForSeq2SeqLM.from_config(config, attn_implementation="eager").double().train()
    inputs = {"input_ids": torch.randint(4, V, (B, 5)), "labels": torch.randint(4, V, (B, T))}
    parameters = list(model.parameters())
    vectors = [torch.randn_like(p) for p in parameters]
    once = torch.autograd.grad(model(**inputs).loss, parameters)
    twice = torch.autograd.grad(model(**inputs).loss, parameters, create_graph=True)
    torch.testing.assert_close(twice, once)
    along = sum((g * v).sum() for g, v in zip(twice, vectors, strict=True))
    found = torch.autograd.grad(along, parameters)
    logits = model(**inputs, return_logits=True).logits
    plain = F.cross_entropy(logits.flatten(0, 1), inputs["labels"].flatten())
    gradients = torch.autograd.grad(plain, parameters, create_graph=True)
    along = sum((g * v).sum() for g, v in zip(gradients, vectors, strict=True))
    torch.testing.assert_close(found, torch.autograd.grad(along, parameters))


def test_smoothing_is_the_trainers() -> None:
    states, head, labels = case()
    for count in (None, 31):
        expected = LabelSmoother(epsilon=0.2)({"logits": head(states)}, labels, num_items_in_batch=count)
        torch.testing.assert_close(head_cross_entropy(states, head, labels, count, 0.2), expected, rtol=1e-6, atol=0)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_says_what_fp32_says(dtype: torch.dtype, autocast: bool) -> None:
    """Of the same weights and states, both representable in half precision: only products and sums may differ."""
    states, head, labels = case(size=997)
    states = states.to(dtype).float().detach().requires_grad_()
    head.to(dtype).float()
    expected = reference(states, head, labels, 0.1, 1.0)
    expected_gradients = torch.autograd.grad(expected, tensors(states, head))
    if autocast:
        with torch.autocast("cpu", dtype):
            found = head_cross_entropy(states, head, labels, None, 0.1)
    else:
        states = states.detach().to(dtype).requires_grad_()
        found = head_cross_entropy(states, head.to(dtype), labels, None, 0.1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    for gradient, wanted, of in zip(
        torch.autograd.grad(found, tensors(states, head)), expected_gradients, tensors(states, head), strict=True
    ):
        assert gradient.dtype == of.dtype
        assert relative_error(gradient.float(), wanted) < 2 * torch.finfo(dtype).eps


def test_small_probabilities_survive_fp16() -> None:
    """A gradient divided by a large count before it is rounded to fp16 would be 0."""
    states, head, labels = case(bias=False, dtype=torch.float16)
    (gradient,) = torch.autograd.grad(head_cross_entropy(states, head, labels, 10**6) * 2**16, [head.weight])
    doubled = states.detach().double().requires_grad_(), head.double()
    expected = reference(*doubled, labels, 0.0, 1.0) * int((labels != -100).sum()) / 10**6 * 2**16
    assert relative_error(gradient.double(), torch.autograd.grad(expected, [head.weight])[0]) < 2e-3


def test_large_logits_are_finite() -> None:
    states, head, labels = case(dtype=torch.float32)
    loss = head_cross_entropy(states * 1e4, head, labels)
    assert loss.isfinite()
    assert loss > 1e3
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, tensors(states, head)))


def test_gradients_only_where_they_are_wanted() -> None:
    states, head, labels = case()
    expected = torch.autograd.grad(head_cross_entropy(states, head, labels), tensors(states, head))
    head.requires_grad_(False)
    head_cross_entropy(states, head, labels).backward()
    torch.testing.assert_close(states.grad, expected[0])
    assert head.weight.grad is None
    head.requires_grad_(True)
    head_cross_entropy(states.detach(), head, labels).backward()
    torch.testing.assert_close(head.weight.grad, expected[1])


@pytest.mark.usefixtures("at_once")
def test_nothing_to_learn() -> None:
    states, head, labels = case()
    loss = head_cross_entropy(states, head, labels.fill_(-100))
    assert loss == 0
    assert all((g == 0).all() for g in torch.autograd.grad(loss, tensors(states, head)))


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_all_logits_never_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    size, rows = 2000, B * T
    monkeypatch.setattr(loss_module, "LOGITS_AT_ONCE", 3 * size)
    states, head, labels = case(size=size)
    for loss_of, bound in ((head_cross_entropy, size * C), (lambda x, h, y: token_cross_entropy(h(x), y), rows * size)):
        with LargestTensor() as largest:
            loss_of(states, head, labels).backward()
        assert largest.elements == bound


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_chunk_of_logits_is_gone_before_the_next(smoothing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "LOGITS_AT_ONCE", 3 * V)
    chunks: list[weakref.ref[Tensor]] = []
    product = loss_module._wide_product

    def watched(*arguments: Any) -> Tensor:
        assert not any(chunk() is not None for chunk in chunks)
        logits = product(*arguments)
        chunks.append(weakref.ref(logits))
        return logits

    monkeypatch.setattr(loss_module, "_wide_product", watched)
    head_cross_entropy(*case(), label_smoothing=smoothing).backward()
    assert len(chunks) == 5  # of three labels each


def test_a_head_that_is_more_than_its_weight_is_called() -> None:
    states, head, labels = case()
    assert is_plain_linear(head)
    plain = head_cross_entropy(states, head, labels)

    class Adapted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    adapted = Adapted(C, V, dtype=torch.float64)
    adapted.load_state_dict(head.state_dict())
    expected = reference(states, adapted, labels, 0.0, 1.0)
    torch.testing.assert_close(head_cross_entropy(states, adapted, labels), expected)
    assert not torch.isclose(plain, expected)
    handle = head.register_forward_hook(lambda module, inputs, output: 2 * output)
    torch.testing.assert_close(head_cross_entropy(states, head, labels), expected)
    handle.remove()
    original = head.forward
    head.forward = lambda x: 2 * original(x)  # as accelerate does to offload
    torch.testing.assert_close(head_cross_entropy(states, head, labels), expected)
    del head.forward
    nn.utils.parametrizations.weight_norm(head)
    assert not is_plain_linear(head)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(("smoothing", "scale"), [(0.0, 1.0), (0.2, 0.4)])
def test_ignored_rows_may_be_computed_for_nothing(smoothing: float, scale: float) -> None:
    states, head, labels = case()
    given = (states.flatten(0, 1), head.weight, head.bias, labels.flatten(), smoothing, scale, torch.float64)
    with torch.no_grad():
        expected, found = (loss_and_gradients(*given, (True, True, True), only_real) for only_real in (True, False))
    torch.testing.assert_close(found, expected)


def test_compiled_is_the_same() -> None:
    states, head, labels = case()

    def loss_of(states: Tensor) -> Tensor:
        return head_cross_entropy(states, head, labels, None, 0.2)

    expected = torch.autograd.grad(loss_of(states), tensors(states, head))
    found = torch.compile(loss_of, fullgraph=True, backend="aot_eager")(states)
    torch.testing.assert_close(found, loss_of(states))
    torch.testing.assert_close(torch.autograd.grad(found, tensors(states, head)), expected)
    torch.compiler.reset()


@pytest.mark.parametrize("needed", [(True, True, True), (True, False, False), (False, False, False)])
@pytest.mark.parametrize("bias", [False, True])
def test_what_a_compiler_is_told_of_the_operator(needed: tuple[bool, bool, bool], bias: bool) -> None:
    """Shapes and dtypes, and that it changes nothing and returns nothing that it was given."""
    states, head, labels = case(bias, torch.bfloat16)
    needed = (*needed[:2], bias and needed[2])
    given = (states.flatten(0, 1), head.weight, head.bias, labels.flatten(), 0.1, 1.0, torch.bfloat16, needed)
    detached = [x.detach() if isinstance(x, Tensor) else x for x in given]
    torch.library.opcheck(loss_module._as_one_operator, detached, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_memory_is_flat_in_the_vocabulary() -> None:
    """By the benchmark: a process each, peak of one forward and backward."""
    peaks = {name: peak_growth_elsewhere(name, 64_000) for name in ("plain", "chunked")}
    assert peaks["chunked"] < 0.15 * peaks["plain"], peaks
