"""What a user of transformers expects of any encoder-decoder here: one suite, for the Transformer and what came before it.

Tests of what only one of them has stand in test_model, test_generation, test_saving, test_trainer and test_recurrent.
"""

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TrainerCallback,
)
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import find_labels

import dragoman
from dragoman import DragomanConfig, DragomanRecurrentConfig, DragomanTrainer, DragomanTrainingArguments
from support import batch, build, gradients, recurrent, relative_error, tiny
from trainers import likelihood, logged, rows, trainer, word_tokenizer

Inputs = dict[str, Tensor]

TRANSFORMERS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "rotary": (tiny, {}),
    "post-norm": (tiny, {"norm_placement": "post", "position_encoding": "learned", "logits_bias": True}),
    "grouped alibi": (tiny, {"position_encoding": "alibi", "decoder_num_key_value_heads": 2, "logits_scale": 0.7}),
}
RECURRENT: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "none": (recurrent, {"attention": "none"}),
    "additive": (recurrent, {"attention": "additive"}),
    "additive lstm": (recurrent, {"attention": "additive", "cell": "lstm", "bidirectional": False}),
    "dot lstm": (recurrent, {"attention": "dot", "cell": "lstm", "logits_bias": True}),
    "general fed": (recurrent, {"attention": "general", "input_feeding": True, "bidirectional": False}),
    "concat fed lstm": (recurrent, {"attention": "concat", "input_feeding": True, "cell": "lstm"}),
}
KINDS = TRANSFORMERS | RECURRENT
TRAINED = ["rotary", "none", "additive", "general fed"]  # where a test takes seconds

every_kind = pytest.mark.parametrize("kind", KINDS)
every_recurrent_kind = pytest.mark.parametrize("kind", RECURRENT)
trained_kinds = pytest.mark.parametrize("kind", TRAINED)


def configured(kind: str, **overrides: Any) -> Any:
    make, options = KINDS[kind]
    return make(**{**options, **overrides})


def repad(rows: Tensor, value: int, side: str) -> Tensor:
    """The rows of a right-padded batch, padded on the right, the left, or with two more columns on both sides."""
    kept = [row[row != value] for row in rows]
    padded = nn.utils.rnn.pad_sequence(kept, True, value, "left" if side == "left" else "right")
    return nn.functional.pad(padded, (2, 2), value=value) if side == "both" else padded


class TestForward:
    @every_kind
    @pytest.mark.parametrize("side", ["left", "both"])
    def test_padding_changes_nothing(self, kind: str, side: str) -> None:
        """Neither logits, loss nor gradients, on either side of source and target."""
        config = configured(kind)
        model, inputs = build(config).double(), batch(config)
        source, labels = repad(inputs["input_ids"], 0, side), repad(inputs["labels"], -100, side)
        moved = {"input_ids": source, "attention_mask": (source != 0).long(), "labels": labels}
        expected, found = model(**inputs), model(**moved)
        torch.testing.assert_close(found.loss, expected.loss)
        torch.testing.assert_close(found.logits[labels != -100], expected.logits[inputs["labels"] != -100])
        there, before = gradients(model.train(), **moved), gradients(model, **inputs)
        assert there.keys() == before.keys()
        for name, gradient in before.items():
            torch.testing.assert_close(there[name], gradient, msg=name)

    @every_kind
    def test_a_row_does_not_know_the_others(self, kind: str) -> None:
        config = configured(kind)
        model, inputs = build(config).double(), batch(config)
        logits = model(**inputs).logits
        for i in range(4):
            source, target = inputs["attention_mask"][i].bool(), inputs["labels"][i] != -100
            alone = model(input_ids=inputs["input_ids"][i : i + 1, source], labels=inputs["labels"][i : i + 1, target])
            torch.testing.assert_close(alone.logits[0], logits[i, target])

    @every_kind
    def test_padding_is_masked_without_a_mask(self, kind: str) -> None:
        config = configured(kind)
        model, inputs = build(config).double(), batch(config)
        expected = model(**inputs)
        del inputs["attention_mask"]
        torch.testing.assert_close(model(**inputs).logits, expected.logits)
        encoder = model.get_encoder()
        torch.testing.assert_close(encoder(inputs["input_ids"]).last_hidden_state, expected.encoder_last_hidden_state)
        assert isinstance(encoder(inputs["input_ids"], return_dict=False), tuple)

    @every_kind
    def test_the_collators_decoder_input_is_ours(self, kind: str) -> None:
        config = configured(kind)
        model, inputs = build(config).double(), batch(config)
        ids = model.prepare_decoder_input_ids_from_labels(inputs["labels"])
        assert (ids == config.decoder_start_token_id).sum(1).tolist() == [1, 1, 1, 1]
        torch.testing.assert_close(model(**inputs, decoder_input_ids=ids).loss, model(**inputs).loss)

    @every_kind
    def test_encoder_outputs_and_embeddings_replace_ids(self, kind: str) -> None:
        config = configured(kind)
        model, inputs = build(config).double(), batch(config)
        expected = model(**inputs).logits
        mask, labels = inputs["attention_mask"], inputs["labels"]
        for as_dict in (True, False):
            states = model.get_encoder()(inputs["input_ids"], mask, return_dict=as_dict)
            found = model(encoder_outputs=states, attention_mask=mask, labels=labels).logits
            torch.testing.assert_close(found, expected)
        embeds = model.get_input_embeddings()(inputs["input_ids"])
        torch.testing.assert_close(model(inputs_embeds=embeds, attention_mask=mask, labels=labels).logits, expected)

    @every_kind
    def test_a_decoder_input_of_the_callers_is_taken_with_labels_too(self, kind: str) -> None:
        config = configured(kind)
        model, inputs = build(config).double(), batch(config)
        labels, ids = inputs.pop("labels"), torch.full((4, 7), 9)
        ids[:, 3:] = 5
        expected = model(**inputs, decoder_input_ids=ids).logits
        torch.testing.assert_close(model(**inputs, decoder_input_ids=ids, labels=labels).logits, expected)
        embeds = model.get_decoder().embed_tokens(ids)
        torch.testing.assert_close(model(**inputs, decoder_inputs_embeds=embeds, labels=labels).logits, expected)

    @every_kind
    def test_no_cache_while_training(self, kind: str) -> None:
        config = configured(kind)
        model, inputs = build(config), batch(config)
        assert model(**inputs).past_key_values is None
        inputs["decoder_input_ids"] = inputs.pop("labels").clamp(min=0)
        assert model.train()(**inputs).past_key_values is None
        assert model.eval()(**inputs).past_key_values is not None
        model.config.use_cache = False
        assert model(**inputs).past_key_values is None

    @every_kind
    def test_smoothing_in_training_only(self, kind: str) -> None:
        config = configured(kind, label_smoothing=0.2)
        model, inputs = build(config).double(), batch(config)
        plain = build(configured(kind)).double()(**inputs).loss
        torch.testing.assert_close(model(**inputs).loss, plain)
        log_probs = model(**inputs).logits.log_softmax(-1)[inputs["labels"] != -100]
        torch.testing.assert_close(model.train()(**inputs).loss, 0.8 * plain - 0.2 * log_probs.mean())

    @every_kind
    def test_loss_counts_the_tokens_of_the_whole_step(self, kind: str) -> None:
        """Micro-batches with uneven targets add up to the unsplit batch, in loss and in gradient."""
        config = configured(kind)
        model, inputs = build(config).double(), batch(config)
        total = int((inputs["labels"] != -100).sum())
        whole = gradients(model, **inputs)
        model.zero_grad(set_to_none=True)
        loss = torch.zeros((), dtype=torch.double)
        for part in (slice(0, 1), slice(1, 4)):
            share = model(**{name: value[part] for name, value in inputs.items()}, num_items_in_batch=total).loss
            share.backward()
            loss = loss + share.detach()
        torch.testing.assert_close(loss, model(**inputs).loss)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, whole[name], msg=name)
        labels = torch.full_like(inputs["labels"], -100)
        for count in (None, 0, torch.tensor(0)):  # nothing to learn, and no NaN
            assert model(**{**inputs, "labels": labels}, num_items_in_batch=count).loss == 0

    @every_kind
    def test_logits_to_keep(self, kind: str) -> None:
        config = configured(kind)
        model, inputs = build(config), batch(config)
        inputs["decoder_input_ids"] = inputs.pop("labels").clamp(min=0)
        logits = model(**inputs).logits
        torch.testing.assert_close(model(**inputs, logits_to_keep=2).logits, logits[:, -2:])
        torch.testing.assert_close(model(**inputs, logits_to_keep=torch.tensor([0, 3])).logits, logits[:, [0, 3]])
        with pytest.raises(ValueError, match="leave logits_to_keep out"):
            model(**batch(config), logits_to_keep=2)

    @every_kind
    def test_logits_where_they_are_wanted(self, kind: str) -> None:
        config = configured(kind, label_smoothing=0.1)
        model, inputs = build(config), batch(config)
        without = {**inputs, "decoder_input_ids": model.prepare_decoder_input_ids_from_labels(inputs["labels"])}
        del without["labels"]
        expected = model(**without).logits
        for train in (False, True):
            model.train(train)
            losses = []
            for asked, given in ((None, not train), (False, False), (True, True)):
                outputs = model(**inputs, return_logits=asked)
                losses.append(outputs.loss)
                assert (outputs.logits is not None) == given
                torch.testing.assert_close((outputs[0], outputs[:1]), (outputs.loss, (outputs.loss,)))
                if given:
                    torch.testing.assert_close(outputs.logits, expected)
                    torch.testing.assert_close(outputs[:2], (outputs.loss, expected))
                    continue
                for place in (1, -1, slice(2), slice(1, None)):
                    with pytest.raises(IndexError, match=r"returns no logits, .* Pass return_logits=True"):
                        outputs[place]
            torch.testing.assert_close(losses[1], losses[0])
            torch.testing.assert_close(losses[2], losses[0])
            torch.testing.assert_close(model(**without).logits, expected)  # the Trainer took the labels away
            assert model(**without, return_logits=False).logits is None

    @every_kind
    def test_tuples_where_they_are_asked_for(self, kind: str) -> None:
        config = configured(kind)
        for auto in (AutoModelForSeq2SeqLM, AutoModel):
            model, inputs = auto.from_config(config).eval(), batch(config)
            if auto is AutoModel:
                inputs["decoder_input_ids"] = inputs.pop("labels").clamp(min=0)
            expected = model(**inputs, return_dict=True)
            model.config.return_dict = False
            for found in (model(**inputs), model(**inputs, return_dict=False)):
                assert type(found) is tuple
                assert len(found) == len(expected)
                torch.testing.assert_close(found[0], expected[0])
            if auto is AutoModelForSeq2SeqLM:
                _, logits, *_ = model.train()(**inputs, return_dict=False)
                torch.testing.assert_close(logits, expected.logits)

    @every_kind
    def test_an_encoder_in_a_wrapper(self, kind: str) -> None:
        """As Fusion-in-Decoder has it (Izacard & Grave 2021), which knows two arguments and hands the others on."""

        class Wrapper(nn.Module):
            def __init__(self, inner: nn.Module) -> None:
                super().__init__()
                self.inner, self.main_input_name = inner, "input_ids"

            def forward(self, input_ids: Any = None, attention_mask: Any = None, **others: Any) -> Any:
                return self.inner(input_ids=input_ids, attention_mask=attention_mask, **others)

        config = configured(kind)
        model, inputs = build(config), batch(config)
        expected, written = model(**inputs).logits, model.generate(inputs["input_ids"], max_new_tokens=5)
        for side in ("encoder", "decoder") if kind in TRANSFORMERS else ("encoder",):
            inner = getattr(model.model, side)
            assert (inner.device, inner.dtype) == (model.device, model.dtype)
            setattr(model.model, side, Wrapper(inner))
            torch.testing.assert_close(model(**inputs).logits, expected)
            assert model.generate(inputs["input_ids"], max_new_tokens=5).tolist() == written.tolist()

    @every_kind
    def test_attentions_and_hidden_states(self, kind: str) -> None:
        config = configured(kind)
        model, inputs = build(config), batch(config)
        plain = model(**inputs)
        outputs = model(**inputs, output_attentions=True, output_hidden_states=True)
        torch.testing.assert_close(outputs.logits, plain.logits)
        torch.testing.assert_close(outputs.encoder_hidden_states[-1], outputs.encoder_last_hidden_state)
        scale = getattr(config, "logits_scale", 1.0)
        torch.testing.assert_close(model.lm_head(outputs.decoder_hidden_states[-1]) * scale, outputs.logits)
        if kind == "none":
            assert outputs.cross_attentions is None
            return
        for weights in outputs.cross_attentions:  # (B, H, T, S)
            assert weights.shape[::2] == (4, 7)
            torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))
            assert not weights.transpose(1, 3)[inputs["attention_mask"] == 0].any()
        assert weights.max(-1).values.mean() > 1.5 / 9  # far from even
        for wrong in (1, [9], [-1]):
            with pytest.raises(ValueError, match="output_attentions takes True, False or"):
                model(**inputs, output_attentions=wrong)
        assert len(model(**inputs, output_attentions=[0]).cross_attentions) == len(outputs.cross_attentions)
        model.config.output_attentions = True
        torch.testing.assert_close(model(**inputs).cross_attentions[-1], weights)

    @every_kind
    def test_copies_compute_the_same(self, kind: str) -> None:
        config = configured(kind)
        model, inputs = build(config), batch(config)
        expected = model(**inputs).logits
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(copied(**inputs).logits, expected, rtol=0, atol=0)
            assert copied.lm_head.weight is copied.get_input_embeddings().weight
            assert copied.lm_head.weight is not model.lm_head.weight

    @every_kind
    def test_half_precision(self, kind: str) -> None:
        """As autocast and as the model's own type: near, and not the same."""
        config = configured(kind)
        model, inputs = build(config), batch(config)
        expected = model(**inputs).loss
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model.train()(**inputs)
            outputs.loss.backward()
            found = model.eval().generate(inputs["input_ids"], max_new_tokens=4, num_beams=2)
        assert found.shape[0] == 4
        assert all(p.grad.isfinite().all() for p in model.parameters())
        assert 0 < relative_error(outputs.loss, expected) < 5e-2
        half = copy.deepcopy(model).to(torch.bfloat16)
        assert half(**inputs).logits.dtype == torch.bfloat16
        assert 0 < relative_error(half(**inputs).loss, expected) < 5e-2
        assert half.generate(inputs["input_ids"], max_new_tokens=4, num_beams=2).shape[0] == 4

    @pytest.mark.parametrize("kind", ["rotary", "additive", "dot lstm"])
    def test_compiled(self, kind: str) -> None:
        """The Transformer's step is one graph (test_trainer); a recurrent one has breaks where rows are packed."""
        config = configured(kind)
        model, inputs = build(config).train(), batch(config)
        expected = gradients(model, **inputs)
        loss = torch.compile(model, backend="aot_eager")(**inputs).loss
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.testing.assert_close(loss, model(**inputs).loss)
        for name, parameter in model.named_parameters():
            assert relative_error(parameter.grad, expected[name]) < 1e-4, name
        torch.compiler.reset()


class TestClearErrors:
    @every_kind
    @pytest.mark.parametrize(("name", "value"), [("input_ids", 37), ("input_ids", -1), ("labels", 40), ("labels", -7)])
    def test_id_outside_the_vocabulary(self, name: str, value: int, kind: str) -> None:
        config = configured(kind)
        model, inputs = build(config), batch(config)
        inputs[name][0, 0] = value
        with pytest.raises(IndexError, match=rf"{value} is outside the vocabulary of 37"):
            model(**inputs)

    @every_kind
    def test_nothing_to_read_or_to_write(self, kind: str) -> None:
        model, ids = build(configured(kind)), torch.tensor([[4]])
        with pytest.raises(ValueError, match="decoder_input_ids"):
            model(input_ids=ids)
        with pytest.raises(ValueError, match="input_ids or inputs_embeds"):
            model(labels=ids)
        with pytest.raises(TypeError, match="cu_seq_lens_q"):
            model(input_ids=ids, labels=ids, cu_seq_lens_q=None)

    @every_kind
    def test_continuous_batching_raises_instead_of_returning_the_prompt(self, kind: str) -> None:
        model, source = build(configured(kind)), torch.tensor([[4, 5]])
        with pytest.raises(NotImplementedError, match="no continuous batching"):
            model.generate(source, cache_implementation="paged")
        with pytest.raises(NotImplementedError, match="no continuous batching"):
            model.generate(source, generation_config=GenerationConfig(cache_implementation="paged"))
        with pytest.raises(NotImplementedError, match="no early exit"):
            model.generate(source, assistant_early_exit=1)
        with pytest.raises(NotImplementedError, match="leave prefill_chunk_size out"):
            model.generate(source, prefill_chunk_size=2)
        with pytest.raises(NotImplementedError, match="leave token_healing out"):
            model.generate(source, token_healing=True)
        with pytest.raises(NotImplementedError, match=r"guidance_scale=1\.5 would have the prompt of a decoder read"):
            model.generate(source, guidance_scale=1.5)
        with pytest.raises(NotImplementedError, match="take an assistant_model with the same tokenizer"):
            model.generate(source, assistant_model=model, assistant_tokenizer=object())
        with pytest.raises(NotImplementedError, match="no continuous batching"):
            model.generate_batch([[4, 5]])
        with pytest.raises(NotImplementedError, match="no continuous batching"):
            model.init_continuous_batching()

    @every_kind
    def test_source_tokens_are_not_taken_for_those_of_another_vocabulary(self, kind: str) -> None:
        source = torch.tensor([[4, 5]])
        two = build(configured(kind, source_vocab_size=50, share_embeddings=False))
        for name, value, neutral in (
            ("encoder_repetition_penalty", 1.5, 1.0),
            ("encoder_no_repeat_ngram_size", 2, 0),
        ):
            with pytest.raises(ValueError, match=f"{name} would take source tokens for those of the target's"):
                two.generate(source, **{name: value})
            two.generate(source, **{name: neutral}, max_new_tokens=2)
            build(configured(kind)).generate(source, **{name: value}, max_new_tokens=2)

    @every_recurrent_kind
    def test_what_only_a_transformer_can_do(self, kind: str) -> None:
        config = configured(kind)
        model, source = build(config), torch.tensor([[4, 5]])
        with pytest.raises(ValueError, match="does not support activation checkpointing"):
            model.gradient_checkpointing_enable()
        with pytest.raises(NotImplementedError, match="carries a state of fixed size"):
            model.generate(source, cache_implementation="static")
        for assistance in ({"assistant_model": build(config)}, {"prompt_lookup_num_tokens": 2}):
            with pytest.raises(NotImplementedError, match="cannot take back tokens"):
                model.generate(source, **assistance)
        with pytest.raises(NotImplementedError, match="cannot take back tokens"):
            build(tiny(vocab_size=config.vocab_size)).generate(source, assistant_model=model)
        with pytest.raises(TypeError, match="takes no packed batches"):
            dragoman.DataCollatorForPackedSeq2Seq(model=model)
        with pytest.raises(TypeError, match="quantize takes a Transformer of Dragoman's"):
            dragoman.quantize(model)
        with pytest.raises(ValueError, match="does not support an attention implementation"):
            model.set_attn_implementation("sdpa")


def generating(kind: str, **overrides: Any) -> tuple[Any, Inputs]:
    """A model of two vocabularies with clear choices, and sources."""
    two = {"share_embeddings": False, "source_vocab_size": 29, "tie_word_embeddings": False}
    config = configured(kind, **two, **overrides)
    model = build(config, seed=17).double()
    model.lm_head.weight.data *= 4 if kind in TRANSFORMERS else 1  # no ties between tokens
    model.generation_config.max_new_tokens = 9
    inputs = batch(config)
    del inputs["labels"]
    return model, inputs


def generate(model: Any, inputs: Inputs, **settings: Any) -> Any:
    torch.manual_seed(0)
    return model.generate(
        **inputs, **{"no_repeat_ngram_size": 1, "suppress_tokens": [0, 1], "min_new_tokens": 3, **settings}
    )


def varied(ids: Tensor) -> bool:
    """Rows differ, and within rows tokens do."""
    written = [[token for token in row if token > 2] for row in ids.tolist()]
    return len(set(map(tuple, written))) == len(written) and all(len(row) > 1 for row in written)


MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 7},
    "beam": {"num_beams": 3},
    "beam sampling": {"num_beams": 3, "do_sample": True},
    "n-best": {"num_beams": 4, "num_return_sequences": 3},
    "samples": {"do_sample": True, "num_return_sequences": 3},
}
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
greedy_and_beam = pytest.mark.parametrize("mode", [{}, {"num_beams": 3}], ids=["greedy", "beam"])


class TestGenerate:
    @every_kind
    @modes
    def test_cached_equals_uncached(self, mode: dict[str, Any], kind: str) -> None:
        model, inputs = generating(kind)
        expected = generate(model, inputs, use_cache=False, **mode)
        assert varied(expected) or "num_return_sequences" in mode
        assert generate(model, inputs, **mode).tolist() == expected.tolist()
        assert len(expected) == 4 * mode.get("num_return_sequences", 1)

    @every_kind
    @greedy_and_beam
    def test_padding_and_the_rest_of_the_batch(self, mode: dict[str, Any], kind: str) -> None:
        model, inputs = generating(kind)
        expected = generate(model, inputs, **mode).tolist()
        for side in ("left", "both"):
            moved = {"input_ids": repad(inputs["input_ids"], 0, side)}
            assert generate(model, moved, **mode).tolist() == expected
        for row, mask, ids in zip(inputs["input_ids"], inputs["attention_mask"].bool(), expected, strict=True):
            alone = generate(model, {"input_ids": row[mask][None]}, **mode)[0].tolist()
            assert alone == ids[: len(alone)]
            assert set(ids[len(alone) :]) <= {0, 2}

    @every_kind
    def test_the_source_matters(self, kind: str) -> None:
        model, inputs = generating(kind)
        other = {**inputs, "input_ids": (inputs["input_ids"] + 1).clamp(max=28) * inputs["attention_mask"]}
        assert generate(model, inputs).tolist() != generate(model, other).tolist()

    @every_kind
    @modes
    def test_encoder_outputs_are_left_as_they_were(self, mode: dict[str, Any], kind: str) -> None:
        model, inputs = generating(kind)
        mask = {"attention_mask": inputs["attention_mask"]}
        expected = generate(model, inputs, **mode).tolist()
        states = model.get_encoder()(**inputs, return_dict=True)
        before = type(states)(**{name: value.clone() for name, value in states.items()})
        assert generate(model, mask, encoder_outputs=states, **mode).tolist() == expected
        assert states.keys() == before.keys()
        for name, value in before.items():
            torch.testing.assert_close(states[name], value, rtol=0, atol=0)
        assert generate(model, mask, encoder_outputs=before.to_tuple(), **mode).tolist() == expected

    @every_kind
    def test_encoder_outputs_of_another_class(self, kind: str) -> None:
        """A mapping, what an encoder of somebody else returns, and a tuple in which nothing stands for None."""
        model, inputs = generating(kind)
        mask, ids = {"attention_mask": inputs["attention_mask"]}, torch.tensor([[1, 5, 6]] * 4)
        expected = generate(model, inputs).tolist()
        logits = model(**inputs, decoder_input_ids=ids).logits
        states = model.get_encoder()(**inputs, output_hidden_states=True, return_dict=True)
        given: list[Any] = [dict(states), states.to_tuple()]
        if kind in TRANSFORMERS:  # a recurrent decoder needs the encoder's last state, too
            given.append(BaseModelOutputWithPooling(last_hidden_state=states.last_hidden_state))
        for outputs in given:
            torch.testing.assert_close(model(encoder_outputs=outputs, decoder_input_ids=ids, **mask).logits, logits)
            for cached in (True, False):
                assert generate(model, mask, encoder_outputs=outputs, use_cache=cached).tolist() == expected

    @every_kind
    @greedy_and_beam
    def test_embeddings_alone_drive_the_encoder(self, mode: dict[str, Any], kind: str) -> None:
        model, inputs = generating(kind)
        embeds = model.get_input_embeddings()(inputs["input_ids"])
        found = generate(model, {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]}, **mode)
        assert found.tolist() == generate(model, inputs, **mode).tolist()

    @every_kind
    @greedy_and_beam
    def test_ragged_prefixes(self, mode: dict[str, Any], kind: str) -> None:
        model, inputs = generating(kind)
        prefixes = [[1, 9, 8, 7], [1, 5], [1], [1, 20, 21]]
        padded = torch.tensor([[0] * (4 - len(p)) + p for p in prefixes])
        free = {"no_repeat_ngram_size": 0, **mode}
        found = generate(model, inputs, decoder_input_ids=padded, **free)
        wider = nn.functional.pad(padded, (2, 0))  # columns of padding alone say nothing, and come back
        expected = nn.functional.pad(found, (2, 0)).tolist()
        assert generate(model, inputs, decoder_input_ids=wider, **free).tolist() == expected
        limits = {**free, "max_new_tokens": None, "max_length": 9}
        assert generate(model, inputs, decoder_input_ids=wider, **limits).shape[1] == 9
        for i, prefix in enumerate(prefixes):
            source = {"input_ids": inputs["input_ids"][i][inputs["attention_mask"][i].bool()][None]}
            alone = generate(model, source, decoder_input_ids=torch.tensor([prefix]), **free)[0].tolist()
            assert alone[: len(prefix)] == prefix
            assert found[i, 4 - len(prefix) :].tolist()[: len(alone)] == alone

    @every_kind
    def test_padded_prefixes_with_a_cache_that_has_read_some(self, kind: str) -> None:
        """Padding is the start token of many models, and a cache has the columns that it has."""
        model, inputs = generating(kind, decoder_start_token_id=0)
        ids = torch.tensor([[0, 0, 5, 6], [0, 0, 7, 8], [0, 0, 9, 3], [0, 0, 1, 4]])
        mask = torch.tensor([[0, 1, 1, 1]] * 4)
        prefix = {"decoder_input_ids": ids, "decoder_attention_mask": mask}
        begun = {name: columns[:, :3] for name, columns in prefix.items()}
        with torch.no_grad():
            cache = model(**inputs, **begun, use_cache=True).past_key_values
        found = generate(model, inputs, **prefix, past_key_values=cache)
        assert found.tolist() == generate(model, inputs, **prefix).tolist()

    @every_kind
    @greedy_and_beam
    def test_going_on_from_a_cache(self, mode: dict[str, Any], kind: str) -> None:
        """What was written, and the cache that is returned with it: transformers alone would read all of it again."""
        model, inputs = generating(kind)
        half = {"max_new_tokens": 4, "return_dict_in_generate": True}
        first = generate(model, inputs, **half, eos_token_id=None)
        rest = {"decoder_input_ids": first.sequences, "max_new_tokens": 5, **mode}
        expected = generate(model, inputs, **rest)
        cache = first.past_key_values
        if "num_beams" in mode:
            cache.batch_repeat_interleave(mode["num_beams"])
        assert generate(model, inputs, **rest, past_key_values=cache).tolist() == expected.tolist()

    @every_kind
    def test_forced_bos_and_start_per_row(self, kind: str) -> None:
        model, inputs = generating(kind)
        assert (generate(model, inputs, forced_bos_token_id=17)[:, 1] == 17).all()
        found = generate(model, inputs, decoder_start_token_id=[[11], [12], [13], [14]])
        assert found[:, 0].tolist() == [11, 12, 13, 14]

    @every_kind
    @greedy_and_beam
    def test_transition_scores_are_log_probabilities(self, mode: dict[str, Any], kind: str) -> None:
        """With unequal vocabularies; recomputed by one teacher-forced pass."""
        model, inputs = generating(kind)
        plain = {"no_repeat_ngram_size": 0, "suppress_tokens": None, "min_new_tokens": None, "renormalize_logits": True}
        outputs = generate(model, inputs, output_scores=True, return_dict_in_generate=True, **plain, **mode)
        scores = model.compute_transition_scores(
            outputs.sequences, outputs.scores, getattr(outputs, "beam_indices", None), normalize_logits=not mode
        )
        logits = model(**inputs, decoder_input_ids=outputs.sequences).logits.float().log_softmax(-1)  # as generate does
        expected = logits[:, :-1].gather(2, outputs.sequences[:, 1:, None])[..., 0]
        ends = (outputs.sequences[:, 1:] == model.config.eos_token_id).long()
        real = ends.cumsum(1) - ends == 0
        torch.testing.assert_close(scores[real], expected[real])
        if mode:
            torch.testing.assert_close(outputs.sequences_scores, (expected * real).sum(1) / real.sum(1))

    @every_kind
    @greedy_and_beam
    def test_attentions_while_generating(self, mode: dict[str, Any], kind: str) -> None:
        model, inputs = generating(kind)
        outputs = generate(model, inputs, output_attentions=True, return_dict_in_generate=True, **mode)
        assert outputs.sequences.tolist() == generate(model, inputs, **mode).tolist()
        ids = outputs.sequences[:, :-1]
        whole = model(**inputs, decoder_input_ids=ids, output_attentions=True).cross_attentions
        if kind == "none":
            assert whole is None
            assert not any(outputs.cross_attentions or ())
            return
        for step in outputs.cross_attentions:
            assert step[0].shape[::2] == (4 * mode.get("num_beams", 1), 1)
            torch.testing.assert_close(step[0].sum(-1), torch.ones_like(step[0].sum(-1)))
            assert (step[0][-1, ..., 7:] == 0).all()  # padding
        if not mode:
            for layer, weights in enumerate(whole):
                torch.testing.assert_close(torch.cat([step[layer] for step in outputs.cross_attentions], 2), weights)

    @every_kind
    def test_hooks_of_the_caller(self, kind: str) -> None:
        model, inputs = generating(kind)

        class Never(LogitsProcessor):
            def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
                return scores.index_fill(1, banned, -float("inf"))

        class At(StoppingCriteria):
            def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
                return torch.full((len(input_ids),), input_ids.shape[1] >= 4)

        class Collect(BaseStreamer):
            def __init__(self) -> None:
                self.values: list[int] = []
                self.ended = False

            def put(self, value: Tensor) -> None:
                self.values += value.flatten().tolist()

            def end(self) -> None:
                self.ended = True

        banned = generate(model, inputs)[:, 1].unique()
        found = generate(model, inputs, logits_processor=LogitsProcessorList([Never()]))
        assert not torch.isin(found[:, 1], banned).any()
        assert generate(model, inputs, stopping_criteria=StoppingCriteriaList([At()])).shape[1] == 4
        streamer, one = Collect(), {"input_ids": inputs["input_ids"][:1]}
        assert generate(model, one, streamer=streamer)[0].tolist() == streamer.values
        assert streamer.ended


TYINGS: dict[str, dict[str, Any]] = {
    "three-way": {},
    "inputs": {"tie_word_embeddings": False},
    "decoder and head": {"share_embeddings": False},
    "none": {"tie_word_embeddings": False, "share_embeddings": False},
    "two vocabularies": {"share_embeddings": False, "source_vocab_size": 29},
    "two vocabularies, free head": {"share_embeddings": False, "source_vocab_size": 29, "tie_word_embeddings": False},
}
tyings = pytest.mark.parametrize("tying", TYINGS.values(), ids=TYINGS.keys())
both_models = pytest.mark.parametrize("kind", ["rotary", "additive", "dot lstm"])


def owners(model: nn.Module) -> list[set[str]]:
    """Names of parameters that are one, grouped."""
    groups: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(parameter.data_ptr(), set()).add(name)
    return sorted((group for group in groups.values() if len(group) > 1), key=str)


class TestSaving:
    @tyings
    @both_models
    @pytest.mark.parametrize("shard", ["20KB", "5GB"])
    def test_round_trip(self, tying: dict[str, Any], kind: str, shard: str, tmp_path: Path) -> None:
        config = configured(kind, **tying)
        model, inputs = build(config), batch(config)
        model.save_pretrained(tmp_path, max_shard_size=shard)
        assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "20KB")
        assert not list(tmp_path.glob("*.bin"))
        loaded, report = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is type(model)
        assert not any(report.values()), report
        assert owners(loaded) == owners(model)
        assert loaded.config.to_dict() | {"_name_or_path": ""} == model.config.to_dict() | {"_name_or_path": ""}
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, rtol=0, atol=0)
        stored = {key for file in tmp_path.glob("*.safetensors") for key in safe_open(file, "pt").keys()}  # noqa: SIM118
        counted = model.num_parameters() + sum(buffer.numel() for _, buffer in model.lm_head.named_buffers())
        assert sum(loaded.state_dict()[name].numel() for name in stored) == counted  # nothing twice

    @tyings
    @both_models
    def test_ties_survive_everything(self, tying: dict[str, Any], kind: str, tmp_path: Path) -> None:
        model = build(configured(kind, **tying))
        expected = owners(model)
        model.save_pretrained(tmp_path)
        assert owners(AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=torch.bfloat16)) == expected
        assert owners(AutoModelForSeq2SeqLM.from_pretrained(tmp_path, device_map="auto")) == expected
        assert owners(model.to(torch.float16)) == expected
        if "source_vocab_size" in tying:
            model.resize_source_embeddings(31)
            model.resize_target_embeddings(41)
            sizes = (31, 41)
        else:
            model.resize_token_embeddings(41)
            sizes = (41, 41)
        assert owners(model) == expected
        config = model.config
        assert (config.source_vocab_size or config.vocab_size, config.vocab_size) == sizes
        assert model.model.encoder.embed_tokens.weight.shape[0] == sizes[0]
        assert model.model.decoder.embed_tokens.weight.shape[0] == model.lm_head.weight.shape[0] == sizes[1]
        model.save_pretrained(tmp_path / "resized")
        again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "resized")
        assert owners(again) == expected
        inputs = batch(again.config)
        torch.testing.assert_close(again.to(torch.float16)(**inputs).logits, model(**inputs).logits, rtol=0, atol=0)

    @tyings
    @both_models
    def test_vectors_of_ones_own(self, tying: dict[str, Any], kind: str, tmp_path: Path) -> None:
        """A plain nn.Embedding, as for any model: read wherever it is tied, scaled as before, and so after loading."""
        model = build(configured(kind, **tying))
        expected, inputs = owners(model), batch(model.config)
        before, old = model(**inputs).logits, model.get_input_embeddings()
        own = nn.Embedding.from_pretrained(old.weight.detach().clone(), freeze=False)
        model.set_input_embeddings(own)
        assert model.get_input_embeddings().weight is own.weight
        assert owners(model) == expected
        torch.testing.assert_close(model(**inputs).logits, before)
        nn.init.normal_(own.weight)
        logits = model(**inputs).logits
        assert relative_error(logits, before) > 0.1
        model.save_pretrained(tmp_path)
        again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
        torch.testing.assert_close(again(**inputs).logits, logits)
        model.set_input_embeddings(old)
        torch.testing.assert_close(model(**inputs).logits, before)

    @both_models
    def test_resizing_keeps_the_old_rows(self, kind: str) -> None:
        config = configured(kind, logits_bias=True)
        model, inputs = build(config), batch(config)
        logits = model(**inputs).logits
        model.resize_token_embeddings(45)
        torch.testing.assert_close(model(**inputs).logits[..., :37], logits)
        model.resize_token_embeddings(37)
        torch.testing.assert_close(model(**inputs).logits, logits)
        same = build(configured(kind, source_vocab_size=37))  # said twice, one matrix
        same.resize_token_embeddings(45)
        assert (same.config.vocab_size, same.config.source_vocab_size) == (45, 45)
        assert len(same.get_input_embeddings().weight) == len(same.get_output_embeddings().weight) == 45
        with pytest.raises(ValueError, match="call resize_token_embeddings"):
            same.resize_target_embeddings(50)
        two = build(configured(kind, share_embeddings=False, source_vocab_size=29))
        with pytest.raises(ValueError, match="resize_source_embeddings or resize_target_embeddings"):
            two.resize_token_embeddings(50)
        with pytest.raises(ValueError, match="call resize_token_embeddings"):
            model.resize_source_embeddings(50)
        two.resize_target_embeddings(39, pad_to_multiple_of=8)
        assert len(two.lm_head.weight) == two.config.vocab_size == 40

    @every_kind
    def test_base_model_and_head_load_each_other(self, kind: str, tmp_path: Path) -> None:
        model, inputs = build(configured(kind, logits_bias=False)), batch(configured(kind))
        model.save_pretrained(tmp_path / "head")
        base = AutoModel.from_pretrained(tmp_path / "head")
        base.save_pretrained(tmp_path / "base")
        again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "base")
        torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits, rtol=0, atol=0)

    @both_models
    def test_special_tokens_reach_the_generation_config(self, kind: str, tmp_path: Path) -> None:
        ids = {"pad_token_id": 3, "bos_token_id": 4, "eos_token_id": 5, "decoder_start_token_id": 6}
        build(configured(kind, **ids)).save_pretrained(tmp_path)
        written = json.loads((tmp_path / "generation_config.json").read_text())
        assert ids.items() <= written.items()

    def test_a_new_process_loads_them(self, tmp_path: Path) -> None:
        """By the plugin; without it: test_hub_matrix."""
        program = (
            "import sys, torch, dragoman, dragoman\n"
            "from transformers import AutoModelForSeq2SeqLM\n"
            "for folder in sys.argv[1:]:\n"
            "    model = AutoModelForSeq2SeqLM.from_pretrained(folder)\n"
            "    print(model(**torch.load(folder + '/inputs.pt')).logits.double().sum().item())"
        )
        expected, folders = [], []
        for kind in ("grouped alibi", "additive", "dot lstm"):
            model, inputs, folder = build(configured(kind)), batch(configured(kind)), tmp_path / kind
            model.save_pretrained(folder)
            torch.save(inputs, folder / "inputs.pt")
            expected.append(model(**inputs).logits.double().sum().item())
            folders.append(str(folder))
        printed = subprocess.run([sys.executable, "-c", program, *folders], capture_output=True, text=True, check=True)
        assert [float(line) for line in printed.stdout.split()] == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return word_tokenizer()


def fitted(kind: str, tokenizer: Any, **overrides: Any) -> Any:
    """A configuration made from a tokenizer."""
    config = configured(kind)
    kind_of = DragomanConfig if kind in TRANSFORMERS else DragomanRecurrentConfig
    return kind_of.from_tokenizer(tokenizer, preset=config, **overrides)


def untrained(kind: str, tokenizer: Any, **overrides: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForSeq2SeqLM.from_config(fitted(kind, tokenizer, **overrides))


class TestTraining:
    @every_kind
    def test_a_configuration_from_a_tokenizer(self, kind: str, tokenizer: Any) -> None:
        config = fitted(kind, tokenizer, label_smoothing=0.3)
        assert config.vocab_size == len(tokenizer)
        names = ("pad_token_id", "bos_token_id", "eos_token_id")
        assert [getattr(config, name) for name in names] == [getattr(tokenizer, name) for name in names]
        expected = {**configured(kind).to_dict(), "label_smoothing": 0.3}
        different = {name for name, value in config.to_dict().items() if value != expected[name]}
        assert different <= {"vocab_size", *names, "decoder_start_token_id"}

    @trained_kinds
    def test_accumulation_changes_neither_loss_nor_gradient(self, kind: str, tokenizer: Any, tmp_path: Path) -> None:
        runs = {}
        for size, steps in ((16, 1), (4, 4), (2, 8)):
            model = untrained(kind, tokenizer)
            sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
            run = trainer(tokenizer, tmp_path, model, trainer_class=DragomanTrainer, max_steps=3, **sizes)
            run.train()
            runs[size] = (logged(run, "loss"), logged(run, "grad_norm"))
        for size in (4, 2):
            np.testing.assert_allclose(runs[size][0], runs[16][0], rtol=2e-4)  # logged to four digits
            np.testing.assert_allclose(runs[size][1], runs[16][1], rtol=1e-3)

    @trained_kinds
    def test_evaluation_and_prediction(self, kind: str, tokenizer: Any, tmp_path: Path) -> None:
        model = untrained(kind, tokenizer, dropout=0.1)
        sizes = {"per_device_eval_batch_size": 4, "max_grad_norm": 0.5}
        run = trainer(tokenizer, tmp_path, model, predict_with_generate=True, **sizes)
        model.generation_config.max_length = 9
        run.train()
        assert logged(run, "loss")[-1] < logged(run, "loss")[0]
        assert 0 < run.evaluate()["eval_loss"] < 10
        assert run.predict(run.eval_dataset).predictions.shape == (11, 9)
        run.args.predict_with_generate = False
        output = run.predict(run.eval_dataset)
        assert output.predictions.shape[::2] == (11, model.config.vocab_size)  # logits alone, no states gathered
        assert find_labels(type(model)) == ["labels"]

    @trained_kinds
    @pytest.mark.parametrize(
        "arguments",
        [{}, {"label_smoothing_factor": 0.2}, {"predict_with_generate": True}],
        ids=lambda a: next(iter(a), "plain"),
    )
    def test_evaluation_is_exact(self, kind: str, arguments: dict[str, Any], tokenizer: Any, tmp_path: Path) -> None:
        """For every batch size, without logits; the stock trainer's moves with it."""
        model = build(fitted(kind, tokenizer, label_smoothing=0.1))
        model.generation_config.max_length = 9
        expected, asked, stock = likelihood(model, tokenizer), [], set()
        model.register_forward_pre_hook(
            lambda _, args, kwargs: asked.append(kwargs.get("return_logits")), with_kwargs=True
        )
        if "predict_with_generate" in arguments:
            arguments = {**arguments, "compute_metrics": lambda p: {"columns": p.predictions.shape[1]}}
        for size in (1, 3, 16):
            sized = {**arguments, "per_device_eval_batch_size": size}
            asked.clear()
            run = trainer(tokenizer, tmp_path, model, trainer_class=DragomanTrainer, **sized)
            metrics = run.evaluate(metric_key_prefix="valid")
            assert metrics["valid_loss"] == pytest.approx(expected, rel=1e-6)
            assert metrics.get("valid_columns") == (9 if "predict_with_generate" in arguments else None)
            assert asked.count(False) == -(-11 // size)
            assert run.label_smoother is None or "label_smoothing_factor" in arguments
            stock.add(round(trainer(tokenizer, tmp_path, model, **sized).evaluate()["eval_loss"] / expected, 3))
        assert len(stock) > 1

    @trained_kinds
    def test_trainers_label_smoothing_equals_ours(self, kind: str, tokenizer: Any, tmp_path: Path) -> None:
        losses = []
        for arguments, smoothing in (({"label_smoothing_factor": 0.2}, 0.0), ({}, 0.2)):
            model = build(fitted(kind, tokenizer, label_smoothing=smoothing))
            run = trainer(tokenizer, tmp_path, model, max_steps=2, **arguments)
            run.train()
            losses.append(logged(run, "loss"))
        np.testing.assert_allclose(losses[0], losses[1], rtol=2e-4)
        collator = DataCollatorForSeq2Seq(tokenizer)  # without model=: nobody makes the decoder's input
        with pytest.raises(ValueError, match=r"DataCollatorForSeq2Seq\(tokenizer, model=model\)"):
            trainer(tokenizer, tmp_path, model, collator=collator, label_smoothing_factor=0.2).train()

    @trained_kinds
    def test_resuming_equals_never_having_stopped(self, kind: str, tokenizer: Any, tmp_path: Path) -> None:
        saving = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}

        def begin(folder: str) -> Any:
            return trainer(tokenizer, tmp_path / folder, untrained(kind, tokenizer, dropout=0.1), **saving)

        whole = begin("whole")
        whole.train()
        stopped = begin("stopped")
        stopped.add_callback(StopAt(3))
        stopped.train()
        torch.manual_seed(123)
        resumed = begin("stopped")
        resumed.train(resume_from_checkpoint=True)
        assert resumed.state.global_step == 6
        expected = whole.model.state_dict()
        for name, found in resumed.model.state_dict().items():
            torch.testing.assert_close(found, expected[name], rtol=0, atol=0, msg=name)
        assert resumed.model.lm_head.weight is resumed.model.get_input_embeddings().weight

    @trained_kinds
    def test_batches_by_tokens(self, kind: str, tokenizer: Any, tmp_path: Path) -> None:
        arguments = DragomanTrainingArguments(
            str(tmp_path), tokens_per_batch=160, max_steps=3, report_to="none", use_cpu=True, save_strategy="no"
        )
        model = build(fitted(kind, tokenizer))
        seen = []
        model.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs["input_ids"].numel() + kwargs["labels"].numel()),
            with_kwargs=True,
        )
        collator = DataCollatorForSeq2Seq(tokenizer, model=model)
        DragomanTrainer(model, arguments, collator, rows(tokenizer), processing_class=tokenizer).train()
        assert len(seen) == 3
        assert 80 < max(seen) <= 160

    @trained_kinds
    def test_in_bf16(self, kind: str, tokenizer: Any, tmp_path: Path) -> None:
        model = untrained(kind, tokenizer)
        run = trainer(tokenizer, tmp_path, model, max_steps=12, bf16=True, use_cpu=True)
        run.train()
        losses = logged(run, "loss")
        assert np.isfinite(losses).all()
        assert np.mean(losses[-3:]) < np.mean(losses[:3])


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


class TestLora:
    @pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
    def test_every_linear_map_trains_and_merges(self, kind: str, tmp_path: Path) -> None:
        peft = pytest.importorskip("peft")
        base, inputs = build(configured(kind)), batch(configured(kind))
        plain, linear = base(**inputs).logits, [m for m in base.modules() if isinstance(m, nn.Linear)]
        options = {"task_type": "SEQ_2_SEQ_LM", "r": 4, "target_modules": "all-linear", "init_lora_weights": False}
        model = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**options))
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert len(trained) == 2 * (len(linear) - 1)  # A and B of each but the head
        assert relative_error(model(**inputs).logits, plain) > 1e-3
        model.train()(**inputs).loss.backward()
        for name, parameter in trained.items():
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name
        model.eval()
        logits = model(**inputs).logits
        model.save_pretrained(tmp_path)
        again = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
        torch.testing.assert_close(again(**inputs).logits, logits)
        assert relative_error(model.merge_and_unload()(**inputs).logits, logits) < 1e-4

    @pytest.mark.parametrize("kind", ["IA3Config", "LNTuningConfig", "LoraConfig"])
    def test_what_is_adapted_where_nothing_is_named(self, kind: str) -> None:
        peft = pytest.importorskip("peft")
        base, inputs = build(tiny()), batch(tiny())
        model = peft.get_peft_model(base, getattr(peft, kind)(task_type="SEQ_2_SEQ_LM"))
        model.train()(**inputs).loss.backward()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert len(trained) > 4
        assert all(parameter.grad is not None for parameter in trained)

    def test_recurrent_layers_have_none(self) -> None:
        """torch's fused GRU and LSTM are no linear maps to peft, which says so; it takes no default targets either."""
        peft = pytest.importorskip("peft")
        for targets, message in ((["rnn"], "is not supported"), (None, "Please specify `target_modules`")):
            lora = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=targets)
            with pytest.raises(ValueError, match=message):
                peft.get_peft_model(build(configured("additive")), lora)
