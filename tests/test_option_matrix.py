"""Options are orthogonal: every pair of them holds every invariant."""

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dragoman import DragomanConfig, DragomanForConditionalGeneration
from support import OPTIONS, batch, build, configured, describe, gradients, pairwise, relative_error

ROWS = pairwise(OPTIONS)


@pytest.fixture(params=ROWS, ids=describe)
def config(request: pytest.FixtureRequest) -> DragomanConfig:
    return configured(request.param)


def with_attention(model: DragomanForConditionalGeneration, implementation: str) -> DragomanForConditionalGeneration:
    other = copy.deepcopy(model)
    other.set_attn_implementation(implementation)
    assert other.config._attn_implementation == implementation
    return other


@pytest.mark.parametrize(("dtype", "forward", "backward"), [(torch.float32, 1e-5, 1e-4), (torch.float64, 1e-9, 1e-9)])
@pytest.mark.parametrize("train", [False, True])
def test_eager_equals_sdpa(
    config: DragomanConfig, dtype: torch.dtype, forward: float, backward: float, train: bool
) -> None:
    eager = build(config).to(dtype).train(train)
    eager.set_attn_implementation("eager")
    sdpa = with_attention(eager, "sdpa")
    inputs = batch(config)
    expected_logits, found_logits = (model(**inputs, return_logits=True).logits for model in (eager, sdpa))
    assert relative_error(found_logits, expected_logits) <= forward
    expected, found = gradients(eager, **inputs), gradients(sdpa, **inputs)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        assert relative_error(found[name], gradient) <= backward, name


def test_loss_is_cross_entropy_of_the_next_token(config: DragomanConfig) -> None:
    model, inputs = build(config).double(), batch(config)
    labels = inputs["labels"]
    decoder_input_ids = torch.cat([torch.full_like(labels[:, :1], config.decoder_start_token_id), labels[:, :-1]], 1)
    logits = model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        decoder_input_ids=decoder_input_ids.masked_fill(decoder_input_ids == -100, config.pad_token_id),
    ).logits
    real = labels != -100
    expected = -logits[real].log_softmax(-1)[torch.arange(int(real.sum())), labels[real]].mean()
    torch.testing.assert_close(model(**inputs).loss, expected)
    torch.testing.assert_close(model.train()(**inputs).loss, expected)  # from the states, without logits


def test_source_padding_is_never_seen(config: DragomanConfig) -> None:
    model, inputs = build(config).double(), batch(config)
    logits = model(**inputs).logits
    other = {**inputs, "input_ids": torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], 5)}
    torch.testing.assert_close(model(**other).logits, logits)
    open_mask = {**other, "attention_mask": torch.ones_like(inputs["attention_mask"])}
    assert relative_error(model(**open_mask).logits[2], logits[2]) > 1e-3  # the mask does matter


def test_target_is_causal(config: DragomanConfig) -> None:
    model, inputs = build(config).double(), batch(config)
    ids = model.prepare_decoder_input_ids_from_labels(inputs.pop("labels"))
    logits = model(**inputs, decoder_input_ids=ids).logits
    changed = ids.clone()
    changed[:, 3:] = 7
    after = model(**inputs, decoder_input_ids=changed).logits
    torch.testing.assert_close(after[:, :3], logits[:, :3])
    assert relative_error(after[:, 3:], logits[:, 3:]) > 1e-3


def pad_source(inputs: dict[str, Tensor], amount: int, side: str, pad: int) -> dict[str, Tensor]:
    where = (amount, 0) if side == "left" else (0, amount)
    return {
        **inputs,
        "input_ids": F.pad(inputs["input_ids"], where, value=pad),
        "attention_mask": F.pad(inputs["attention_mask"], where, value=0),
        "labels": F.pad(inputs["labels"], where, value=-100),
    }


@pytest.mark.parametrize("side", ["left", "right"])
def test_more_padding_changes_nothing(config: DragomanConfig, side: str) -> None:
    model, inputs = build(config).double(), batch(config)
    padded = pad_source(inputs, 3, side, config.pad_token_id)
    expected, found = model(**inputs), model(**padded)
    torch.testing.assert_close(found.loss, expected.loss)
    kept = slice(3, None) if side == "left" else slice(None, -3)
    real = inputs["labels"] != -100
    torch.testing.assert_close(found.logits[:, kept][real], expected.logits[real])
    grads = gradients(model, **inputs)
    for name, gradient in gradients(model, **padded).items():
        torch.testing.assert_close(gradient, grads[name], msg=name)


def test_batched_equals_one_by_one(config: DragomanConfig) -> None:
    model, inputs = build(config).double(), batch(config)
    logits = model(**inputs).logits
    for i in range(len(logits)):
        source, target = int(inputs["attention_mask"][i].sum()), int((inputs["labels"][i] != -100).sum())
        alone = model(input_ids=inputs["input_ids"][i : i + 1, :source], labels=inputs["labels"][i : i + 1, :target])
        torch.testing.assert_close(alone.logits[0], logits[i, :target])


def test_cached_equals_uncached(config: DragomanConfig) -> None:
    model, inputs = build(config).double(), batch(config)
    ids = model.prepare_decoder_input_ids_from_labels(inputs.pop("labels"))
    expected = model(**inputs, decoder_input_ids=ids, use_cache=False).logits
    cache, steps = None, []
    for piece in ids.split([2, 1, 1, 3], dim=1):  # a prefix, single tokens, and several at once
        outputs = model(**inputs, decoder_input_ids=piece, past_key_values=cache, use_cache=True)
        cache = outputs.past_key_values
        steps.append(outputs.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), expected)


def test_ties_are_what_the_configuration_says(config: DragomanConfig) -> None:
    model = build(config)
    encoder, decoder = model.model.encoder.embed_tokens.weight, model.model.decoder.embed_tokens.weight
    assert (encoder is decoder) == config.share_embeddings
    assert (model.lm_head.weight is decoder) == config.tie_word_embeddings
    assert encoder.shape[0] == (config.source_vocab_size or config.vocab_size)
    assert decoder.shape[0] == model.lm_head.weight.shape[0] == config.vocab_size
