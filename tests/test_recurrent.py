"""The recurrent model against formulas written out, in float64, row by row, without padding."""

import itertools
import math
from typing import Any

import pytest
import torch
from dragoman.modeling.recurrent_attention import RecurrentAttention, additive_score, attend, dot_score
from dragoman.modeling.recurrent_layers import RecurrentLayers
from dragoman.modeling.recurrent_state import RecurrentState
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, DynamicCache
from transformers.generation.utils import DeferredStopCheck

from dragoman import DragomanRecurrentConfig, DragomanRecurrentForConditionalGeneration
from support import gradients

ATTENTION = ("none", "additive", "dot", "general", "concat")
# attention, input feeding, cell, bidirectional, layers: every attention with both cells, every option on and off
KINDS = [
    ("none", False, "gru", True, 2),
    ("none", False, "lstm", False, 1),
    ("additive", False, "gru", True, 1),
    ("additive", False, "lstm", False, 2),
    ("dot", False, "gru", False, 1),
    ("dot", True, "lstm", True, 2),
    ("general", False, "lstm", True, 1),
    ("general", True, "gru", False, 2),
    ("concat", True, "gru", True, 1),
    ("concat", False, "lstm", True, 2),
]
SIZES = ((6, 4), (3, 5), (1, 1), (5, 2))


def recurrent(
    kind: tuple[Any, ...] = KINDS[2], seed: int = 0, **overrides: Any
) -> DragomanRecurrentForConditionalGeneration:
    attention, feeding, cell, bidirectional, layers = kind
    options = {
        "vocab_size": 37,
        "hidden_size": 12,
        "attention": attention,
        "input_feeding": feeding,
        "cell": cell,
        "bidirectional": bidirectional,
        "num_hidden_layers": layers,
        "dropout": 0.0,
    }
    torch.manual_seed(seed)
    model = AutoModelForSeq2SeqLM.from_config(DragomanRecurrentConfig(**{**options, **overrides}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.6)
    return model.double().eval()


def ragged(side: str = "right", seed: int = 1, source_size: int = 37) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def pad(rows: list[Tensor], value: int) -> Tensor:
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value, padding_side=side)

    sources = [torch.randint(3, source_size, (length,), generator=generator) for length, _ in SIZES]
    labels = [torch.randint(3, 37, (length,), generator=generator) for _, length in SIZES]
    return {
        "input_ids": pad(sources, 0),
        "attention_mask": pad([torch.ones_like(row) for row in sources], 0),
        "labels": pad(labels, -100),
    }


def cells(layers: RecurrentLayers, index: int, reverse: bool = False) -> nn.Module:
    """One layer's weights in torch's cell."""
    rnn, suffix = layers.rnn, f"l{index}" + ("_reverse" if reverse else "")
    kind = nn.GRUCell if isinstance(rnn, nn.GRU) else nn.LSTMCell
    weights = {name: getattr(rnn, f"{name}_{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    cell = kind(weights["weight_ih"].shape[1], rnn.hidden_size).double()
    for name, weight in weights.items():
        del cell._parameters[name]
        setattr(cell, name, weight)  # the parameter itself, so that gradients are the model's
    return cell


def run(cell: nn.Module, x: list[Tensor]) -> tuple[list[Tensor], Any]:
    state, outputs = None, []
    for vector in x:
        state = cell(vector[None], state)
        outputs.append((state if isinstance(state, Tensor) else state[0])[0])
    return outputs, state


def encode(model: Any, ids: list[int]) -> tuple[Tensor, list[Any]]:
    """States (S, C) and each layer's last one."""
    encoder = model.model.encoder
    x, finals = list(encoder.embed_tokens.weight[ids]), []
    for i in range(model.config.num_hidden_layers):
        forwards, last = run(cells(encoder.layers, i), x)
        if model.config.bidirectional:
            backwards, last_backwards = run(cells(encoder.layers, i, reverse=True), x[::-1])
            x = [torch.cat(pair) for pair in zip(forwards, backwards[::-1], strict=True)]
            if isinstance(last, Tensor):
                last = torch.cat([last, last_backwards], dim=-1)
            else:
                last = tuple(torch.cat(pair, dim=-1) for pair in zip(last, last_backwards, strict=True))
        else:
            x = forwards
        finals.append(last)
    return torch.stack(x), finals


def weights_of(model: Any, query: Tensor, states: Tensor) -> Tensor:
    """``αₛ = exp(score(q, hₛ)) / Σ exp(score(q, hⱼ))``."""
    attention = model.model.decoder.attention
    scores = []
    for h in states:
        if model.config.attention == "dot":
            scores.append((query * h).sum())
        elif model.config.attention == "general":
            scores.append(query @ attention.k_proj.weight @ h)
        else:
            hidden = (attention.q_proj.weight @ query + attention.k_proj.weight @ h).tanh()
            scores.append(attention.score_vector.weight[0] @ hidden)
    exponentials = torch.stack(scores).exp()
    return exponentials / exponentials.sum()


def decode(model: Any, ids: list[int], states: Tensor, finals: list[Any]) -> tuple[Tensor, Tensor | None]:
    """Logits (T, V) and weights (T, S)."""
    decoder, config = model.model.decoder, model.config
    layers = [cells(decoder.layers, i) for i in range(config.num_hidden_layers)]
    memory, logits, attended = list(finals), [], []
    output = torch.zeros(config.hidden_size, dtype=torch.float64)
    for token in ids:
        x = decoder.embed_tokens.weight[token]
        if config.attention == "additive":
            top = memory[-1] if isinstance(memory[-1], Tensor) else memory[-1][0]
            attended.append(weights_of(model, top[0], states))
            context = attended[-1] @ states
            x = torch.cat([x, context])
        elif config.input_feeding:
            x = torch.cat([x, output])
        for i, cell in enumerate(layers):
            memory[i] = cell(x[None], memory[i])
            x = (memory[i] if isinstance(memory[i], Tensor) else memory[i][0])[0]
        output = x
        if config.attention not in ("none", "additive"):
            attended.append(weights_of(model, x, states))
            context = attended[-1] @ states
        if config.attention != "none":
            output = (decoder.combine.weight @ torch.cat([context, x])).tanh()
        logits.append(model.lm_head.weight @ output)
    return torch.stack(logits), torch.stack(attended) if attended else None


def reference(model: Any, inputs: dict[str, Tensor]) -> list[tuple[Tensor, Tensor | None, list[int]]]:
    rows = []
    for ids, labels in zip(inputs["input_ids"].tolist(), inputs["labels"].tolist(), strict=True):
        source, target = [i for i in ids if i], [i for i in labels if i >= 0]
        rows.append((*decode(model, [1, *target[:-1]], *encode(model, source)), target))
    return rows


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_logits_weights_loss_and_gradients(kind: tuple[Any, ...], side: str) -> None:
    model, inputs = recurrent(kind), ragged(side)
    outputs = model(**inputs, output_attentions=True)
    rows = reference(model, inputs)
    total = torch.zeros((), dtype=torch.float64)
    for b, (logits, attended, target) in enumerate(rows):
        columns, tokens = inputs["labels"][b] >= 0, inputs["attention_mask"][b].bool()
        torch.testing.assert_close(outputs.logits[b, columns], logits)
        total = total - logits.log_softmax(-1)[range(len(target)), target].sum()
        if attended is None:
            assert outputs.cross_attentions is None
        else:
            found = outputs.cross_attentions[0][b, 0]  # (T, S)
            torch.testing.assert_close(found[columns][:, tokens], attended)
            assert not found[columns][:, ~tokens].any()
    loss = total / sum(len(target) for *_, target in rows)
    torch.testing.assert_close(outputs.loss, loss)
    model.zero_grad(set_to_none=True)
    loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    found_gradients = gradients(model.train(), **inputs)
    assert found_gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.any(), name
        torch.testing.assert_close(found_gradients[name], gradient, msg=name)


class TestAttend:
    def draw(self, *shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    def test_against_the_formulas(self) -> None:
        torch.manual_seed(0)
        query, keys, values, vector = self.draw(2, 3, 5), self.draw(2, 4, 5), self.draw(2, 4, 6), self.draw(5)
        mask = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0]])

        def weigh(x: Tensor) -> Tensor:
            return x @ vector[:, None]

        for score in (dot_score, lambda q, k: additive_score(q, k, weigh)):
            context, weights = attend(query, keys, values, mask, score)
            for b, t in itertools.product(range(2), range(3)):
                there = [s for s in range(4) if mask[b, s]]
                scores = {}
                for s in there:
                    q, k = query[b, t].tolist(), keys[b, s].tolist()
                    if score is dot_score:
                        scores[s] = sum(x * y for x, y in zip(q, k, strict=True))
                    else:
                        scores[s] = sum(v * math.tanh(x + y) for v, x, y in zip(vector.tolist(), q, k, strict=True))
                total = sum(map(math.exp, scores.values()))
                expected = [math.exp(scores[s]) / total if s in scores else 0.0 for s in range(4)]
                assert weights[b, t].tolist() == pytest.approx(expected)
                torch.testing.assert_close(context[b, t], torch.tensor(expected, dtype=torch.float64) @ values[b])

    def test_gradients(self) -> None:
        torch.manual_seed(0)
        inputs = self.draw(2, 2, 3), self.draw(2, 3, 3), self.draw(2, 3, 2), self.draw(3)
        mask = torch.tensor([[1, 1, 0], [1, 1, 1]])

        def dot(q: Tensor, k: Tensor, v: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
            return attend(q, k, v, mask, dot_score)

        def additive(q: Tensor, k: Tensor, v: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
            return attend(q, k, v, mask, lambda a, b: additive_score(a, b, lambda x: x @ vector[:, None]))

        assert torch.autograd.gradcheck(dot, inputs)
        assert torch.autograd.gradcheck(additive, inputs)

    def test_half_precision_scores_far_apart(self) -> None:
        query, keys = torch.tensor([[[60.0, 60.0]]]).half(), torch.tensor([[[60.0, 60.0], [60.0, 59.9]]]).half()
        _, weights = attend(query, keys, keys, None, dot_score)
        assert weights.isfinite().all()
        assert weights[0, 0, 0] > weights[0, 0, 1]

    def test_half_precision_scores_close_together(self) -> None:
        """Of long vectors, whose products half precision would round to the same number."""
        torch.manual_seed(0)
        keys = torch.randn(1, 9, 512).tanh()
        query = (keys[:, 3:4] + keys[:, 4:5]) / 1.5
        query, keys = query.bfloat16(), keys.bfloat16()
        expected = attend(query.double(), keys.double(), keys.double(), None, dot_score)[1]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = attend(query.float(), keys.float(), keys.float(), None, dot_score)[1]
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
        found = attend(query, keys, keys, None, dot_score)[1]
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), expected, rtol=1e-2, atol=1e-3)

    def test_the_kinds_differ(self) -> None:
        """With the same weights where they have them."""
        torch.manual_seed(0)
        query, states = torch.randn(1, 2, 6), torch.randn(1, 3, 6)
        found = []
        for kind in ("dot", "general", "concat"):
            torch.manual_seed(1)
            attention = RecurrentAttention(6, kind)
            found.append(attention(query, attention.project_keys(states), states, None)[1])
        for a, b in itertools.combinations(found, 2):
            assert (a - b).abs().max() > 1e-2


class TestLayers:
    @pytest.mark.parametrize("cell", ["gru", "lstm"])
    @pytest.mark.parametrize("bidirectional", [False, True])
    def test_padding_of_any_kind_is_not_seen(self, cell: str, bidirectional: bool) -> None:
        """On the left, on the right, and within a row: as torch's own kernel on the tokens alone."""
        torch.manual_seed(0)
        layers = RecurrentLayers(cell, 5, 6, 2, bidirectional, 0.0).double()
        mask = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]])
        x = torch.randn(5, 4, 5, dtype=torch.float64)
        outputs, (hidden, memory) = layers(x, mask)
        for b in range(4):
            tokens = mask[b].bool()
            expected, last = layers.rnn(x[b : b + 1, tokens])
            torch.testing.assert_close(outputs[b, tokens], expected[0])
            assert not outputs[b, ~tokens].any()
            parts = (hidden,) if cell == "gru" else (hidden, memory)
            for part, torchs in zip(parts, (last,) if cell == "gru" else last, strict=True):
                for layer in range(2):
                    directions = torchs[2 * layer : 2 * layer + 2] if bidirectional else torchs[layer : layer + 1]
                    torch.testing.assert_close(part[b, layer], directions[:, 0].flatten())
        assert not hidden[4].any()

    def test_a_row_without_tokens_keeps_its_state(self) -> None:
        layers = RecurrentLayers("lstm", 5, 6, 1, False, 0.0)
        state = torch.randn(2, 1, 6), torch.randn(2, 1, 6)
        _, (hidden, memory) = layers(torch.randn(2, 3, 5), torch.tensor([[0, 0, 0], [0, 1, 0]]), state)
        torch.testing.assert_close(hidden[0], state[0][0], rtol=0, atol=0)
        torch.testing.assert_close(memory[0], state[1][0], rtol=0, atol=0)
        assert not torch.equal(hidden[1], state[0][1])


def test_the_mask_given_counts() -> None:
    """Not the ids: a token that it hides is not there, and padding that it shows is."""
    model, inputs = recurrent(), ragged()
    inputs["attention_mask"][0, 2] = 0
    shorter = {name: values[:1] for name, values in inputs.items()}
    shorter["input_ids"] = torch.cat([inputs["input_ids"][:1, :2], inputs["input_ids"][:1, 3:]], dim=1)
    shorter["attention_mask"] = torch.ones_like(shorter["input_ids"])
    torch.testing.assert_close(model(**inputs).logits[:1], model(**shorter).logits)
    shown = {**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])}
    assert (model(**shown).logits[1] - model(**inputs).logits[1]).abs().max() > 1e-3


class TestTheFixedContext:
    def test_sees_the_source_through_its_last_state_only(self) -> None:
        model, inputs = recurrent(KINDS[0]), ragged()
        encoded = model.get_encoder()(inputs["input_ids"], return_dict=True)
        expected = model(encoder_outputs=encoded, labels=inputs["labels"]).logits
        encoded.last_hidden_state = torch.randn_like(encoded.last_hidden_state)
        torch.testing.assert_close(model(encoder_outputs=encoded, labels=inputs["labels"]).logits, expected)
        encoded.final_hidden = encoded.final_hidden + 1.0
        assert (model(encoder_outputs=encoded, labels=inputs["labels"]).logits - expected).abs().max() > 0.1
        assert model(**inputs, output_attentions=True).cross_attentions is None

    def test_states_alone_do_not_tell_where_to_begin(self) -> None:
        model, inputs = recurrent(), ragged()
        with pytest.raises(ValueError, match="final_hidden, with which the decoder begins"):
            model(encoder_outputs=(torch.zeros(4, 6, 12).double(),), labels=inputs["labels"])


class TestTheState:
    @pytest.mark.parametrize("kind", KINDS, ids=str)
    def test_step_by_step_as_at_once(self, kind: tuple[Any, ...]) -> None:
        model, inputs = recurrent(kind), ragged()
        labels = inputs.pop("labels")
        ids = model.prepare_decoder_input_ids_from_labels(labels)
        expected = model(**inputs, decoder_input_ids=ids).logits
        encoded, state, found = model.get_encoder()(**inputs, return_dict=True), None, []
        for columns in (slice(0, 1), slice(1, 3), slice(3, 5)):
            outputs = model(
                encoder_outputs=encoded,
                attention_mask=inputs["attention_mask"],
                decoder_input_ids=ids[:, columns],
                past_key_values=state,
                use_cache=True,
            )
            state = outputs.past_key_values
            found.append(outputs.logits)
        assert state.get_seq_length() == 5
        torch.testing.assert_close(torch.cat(found, dim=1)[labels >= 0], expected[labels >= 0])

    @pytest.mark.parametrize("kind", KINDS, ids=str)
    def test_a_prefix_padded_on_the_left(self, kind: tuple[Any, ...]) -> None:
        model, inputs = recurrent(kind), ragged()
        inputs.pop("labels")
        prefix = torch.tensor([[0, 0, 1, 5], [0, 1, 6, 7], [1, 4, 4, 8], [0, 0, 0, 1]])
        batched = model.generate(**inputs, decoder_input_ids=prefix, max_new_tokens=6, do_sample=False)
        for b in range(4):
            source = {name: values[b : b + 1, inputs["attention_mask"][b].bool()] for name, values in inputs.items()}
            alone = prefix[b][prefix[b] != 0][None]
            row = model.generate(**source, decoder_input_ids=alone, max_new_tokens=6, do_sample=False)
            length = row.shape[1] - alone.shape[1]
            assert batched[b, 4 : 4 + length].tolist() == row[0, alone.shape[1] :].tolist()

    @pytest.mark.parametrize("kind", KINDS, ids=str)
    def test_beams_with_and_without_it(self, kind: tuple[Any, ...]) -> None:
        model, inputs = recurrent(kind), ragged()
        inputs.pop("labels")
        settings = {"max_new_tokens": 7, "num_beams": 4, "num_return_sequences": 2, "no_repeat_ngram_size": 1}
        found = model.generate(**inputs, **settings)
        assert found.tolist() == model.generate(**inputs, **settings, use_cache=False).tolist()
        assert len({tuple(row) for row in found.tolist()}) > 4

    def test_a_cache_of_keys_and_values_is_refused(self) -> None:
        model, source = recurrent(), torch.tensor([[5]])
        with pytest.raises(NotImplementedError, match="carries a state of fixed size"):
            model.generate(source, cache_implementation="static")
        with pytest.raises(TypeError, match="must be a RecurrentState, of a recurrent model, got DynamicCache"):
            model(source, decoder_input_ids=source, past_key_values=DynamicCache())

    def test_what_transformers_asks_a_cache_for_on_mps(self) -> None:
        mps = torch.device("mps")
        assert not DeferredStopCheck.is_supported(mps, RecurrentState(), cache_is_returned=True, is_assistant=False)

    @pytest.mark.parametrize("kind", KINDS, ids=str)
    def test_masks_as_wide_as_what_they_mask(self, kind: tuple[Any, ...]) -> None:
        """Or wider: what they say of tokens to come is for later. Narrower ones are an error."""
        model, inputs = recurrent(kind), ragged()
        ids = model.prepare_decoder_input_ids_from_labels(inputs.pop("labels"))
        expected = model(**inputs, decoder_input_ids=ids).logits
        mask = torch.ones_like(ids)
        mask[:, 3:] = 0
        found = model(**inputs, decoder_input_ids=ids[:, :3], decoder_attention_mask=mask, use_cache=True)
        torch.testing.assert_close(found.logits, expected[:, :3])
        state, rest = found.past_key_values, {**inputs, "decoder_input_ids": ids[:, 3:]}
        with pytest.raises(ValueError, match="has 4 columns, but there are 2 target tokens after 3 in"):
            model(**rest, decoder_attention_mask=mask[:, :4], past_key_values=state)
        found = model(**rest, decoder_attention_mask=torch.ones_like(ids), past_key_values=state)
        torch.testing.assert_close(found.logits, expected[:, 3:])
        with pytest.raises(ValueError, match="has 2 columns, but there are 5 target tokens"):
            model(**inputs, decoder_input_ids=ids, decoder_attention_mask=mask[:, :2])
        inputs["attention_mask"] = inputs["attention_mask"][:, :3]
        with pytest.raises(ValueError, match="has 3 columns, but there are 6 source tokens"):
            model(**inputs, decoder_input_ids=ids)


class TestConfiguration:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"bidirectional": True, "hidden_size": 7}, "half of hidden_size 7"),
            ({"attention": "none", "input_feeding": True}, "there is nothing to feed"),
            ({"attention": "additive", "input_feeding": True}, "sees its own context already"),
            ({"dropout": 1.0}, "dropout is a probability"),
            ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1"),
            ({"source_vocab_size": 9}, "share_embeddings=True needs one vocabulary"),
            ({"eos_token_id": 0}, "eos_token_id and pad_token_id are both 0"),
            ({"initializer_range": -1.0}, "initializer_range must be a positive number, got -1.0"),
        ],
    )
    def test_what_makes_no_sense(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(StrictDataclassClassValidationError, match=message):
            DragomanRecurrentConfig(**options)

    def test_a_misspelt_field(self) -> None:
        with pytest.raises(
            ValueError, match=r"DragomanRecurrentConfig has no field 'atention'. Did you mean attention?"
        ):
            DragomanRecurrentConfig(atention="dot")
