"""Scores of words: each method against what it is by definition, and the measure that says which to trust."""

import sys
from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForSequenceClassification

import dragoman
from classifiers import KEYS, planted
from dragoman import DragomanConfig, DragomanTokenizer, align, attribute, explained_output
from dragoman.attention_rollout import flow, mixtures, rollout
from dragoman.attribution import METHODS, gradient_x_input, integrated_gradients
from dragoman.faithfulness import faithfulness
from dragoman.word_spans import offsets_of_written, word_spans
from ladder import SIDES, randomise
from support import build, recurrent, tiny

TEXTS = ["a dog runs home", "I hate this film", "don't you like it?", "我讨厌这部电影"]
TEXT, TARGET = "I hate this film, don't you", "a dog runs"


@pytest.fixture(scope="module")
def tokenizer() -> DragomanTokenizer:
    return DragomanTokenizer.train(TEXTS * 3, vocab_size=340)


@pytest.fixture(scope="module")
def writer(tokenizer: DragomanTokenizer) -> Any:
    return build(tiny(vocab_size=len(tokenizer), norm_placement="post"))


def classifier(tokenizer: DragomanTokenizer, **fields: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_labels": 3, **fields}
    model = AutoModelForSequenceClassification.from_config(
        DragomanConfig.from_tokenizer(tokenizer, preset="tiny", **sizes)
    )
    with torch.no_grad():
        model.classifier.weight.normal_()
        for name, parameter in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                parameter.mul_(3)
    return model.eval()


def words(text: str, tokenizer: Any) -> list[str]:
    return [span.text for span in word_spans(text, tokenizer(text, return_offsets_mapping=True)["offset_mapping"])]


@pytest.mark.parametrize("algorithm", ["bpe", "unigram", "char", "word"])
def test_words(algorithm: str) -> None:
    tokenizer = DragomanTokenizer.train(TEXTS[:3], vocab_size=330, algorithm=algorithm)
    text = "  I don\N{RIGHT SINGLE QUOTATION MARK}t hate, été [x] 電影 q"
    last = ["電影"] if algorithm == "unigram" else ["電", "影"]  # bytes that know only where all of them came from
    found = words(text, tokenizer)
    assert found == ["I", "don\N{RIGHT SINGLE QUOTATION MARK}t", "hate", ",", "été", "[", "x", "]", *last, "q"]
    spans = word_spans(text, (encoding := tokenizer(text, return_offsets_mapping=True))["offset_mapping"])
    used = [token for span in spans for token in span.tokens]
    assert used == list(range(len(encoding["input_ids"]) - 1))  # each once, in order; the end token in none


def test_words_that_share_a_token_are_one() -> None:
    assert [span.text for span in word_spans("a b, c", [(0, 1), (1, 4), (4, 6), (0, 0)])] == ["a", "b,", "c"]
    assert word_spans("ab", [(0, 1), (1, 2)])[0].tokens == (0, 1)


def test_written_ids_have_offsets(tokenizer: DragomanTokenizer) -> None:
    ids = tokenizer("a dog, é").input_ids
    text, offsets = offsets_of_written(ids, tokenizer)
    assert text == "a dog, é"
    assert offsets[-1] == (len(text), len(text))  # the end token
    assert [span.text for span in word_spans(text, offsets)] == ["a", "dog", ",", "é"]


MIXED = "a dog, 電影 été 😀❤\N{VARIATION SELECTOR-16} don't 喜x"


@pytest.mark.parametrize("algorithm", ["bpe", "unigram", "char", "word"])
def test_what_was_written_is_cut_like_what_was_read(algorithm: str) -> None:
    """Characters of several bytes too, each of which is a token that stands for no text alone."""
    tokenizer = DragomanTokenizer.train(TEXTS[:3], vocab_size=330, algorithm=algorithm)
    ids = tokenizer(MIXED).input_ids
    text, offsets = offsets_of_written(ids, tokenizer)
    assert text == MIXED
    assert all(0 <= start <= end <= len(text) for start, end in offsets)
    assert sorted({place for start, end in offsets for place in range(start, end)}) == list(range(len(text)))
    spans = word_spans(text, offsets)
    heart = "😀❤\N{VARIATION SELECTOR-16}"
    assert [span.text for span in spans] == ["a", "dog", ",", "電", "影", "été", heart, "don't", "喜", "x"]
    assert sorted(token for span in spans for token in span.tokens) == list(range(len(ids) - 1))
    for span in spans:  # its tokens alone write it
        assert tokenizer.decode([ids[token] for token in span.tokens]).strip() == span.text


def test_what_was_cut_short_has_offsets() -> None:
    tokenizer = DragomanTokenizer.train(TEXTS[:3], vocab_size=330)
    ids = tokenizer("dog 電").input_ids[:-2]  # without its last byte
    text, offsets = offsets_of_written(ids, tokenizer)
    assert text.startswith("dog \N{REPLACEMENT CHARACTER}")
    assert all(0 <= start <= end <= len(text) for start, end in offsets)
    assert [span.text for span in word_spans(text, offsets)] == ["dog", text[4:]]


def test_selectors_belong_to_what_they_vary() -> None:
    selector, other = "\N{VARIATION SELECTOR-16}", "\N{VARIATION SELECTOR-17}"
    for text, expected in {
        f"I ❤{selector} it": ["I", f"❤{selector}", "it"],
        f"葛{other}城": [f"葛{other}", "城"],
        f"1{selector}\N{COMBINING ENCLOSING KEYCAP} 👨\N{ZERO WIDTH JOINER}👩": [
            f"1{selector}\N{COMBINING ENCLOSING KEYCAP}",
            "👨\N{ZERO WIDTH JOINER}👩",
        ],
        f"don{selector}'t{selector}": [f"don{selector}'t{selector}"],
        "می\N{ZERO WIDTH NON-JOINER}خواهم کتاب": ["می\N{ZERO WIDTH NON-JOINER}خواهم", "کتاب"],
        "co\N{SOFT HYPHEN}operate": ["co\N{SOFT HYPHEN}operate"],
        "one\N{ZERO WIDTH SPACE}two": ["one", "\N{ZERO WIDTH SPACE}", "two"],
    }.items():
        assert [span.text for span in word_spans(text, [(i, i + 1) for i in range(len(text))])] == expected


def test_rollout_is_the_written_out_recursion(writer: Any, tokenizer: DragomanTokenizer) -> None:
    encoded = tokenizer(TEXT, return_tensors="pt")
    ids = torch.tensor([[1, 7, 9, 12]])
    outputs = writer(**encoded, decoder_input_ids=ids, output_attentions=True)
    source, target = encoded["input_ids"].shape[1], 4
    held = torch.eye(source)  # of each source token, in each encoder state
    for weights in outputs.encoder_attentions:
        held = 0.5 * held + 0.5 * weights[0].mean(0) @ held
    of_source, of_target = torch.zeros(target, source), torch.eye(target)
    for own, cross in zip(outputs.decoder_attentions, outputs.cross_attentions, strict=True):
        of_source = 0.5 * of_source + 0.5 * own[0].mean(0) @ of_source
        of_target = 0.5 * of_target + 0.5 * own[0].mean(0) @ of_target
        of_source, of_target = 0.5 * of_source + 0.5 * cross[0].mean(0) @ held, 0.5 * of_target
    readout = torch.cat([torch.zeros(source), torch.tensor([0.1, 0.2, 0.3, 0.4])])
    expected = readout[source:] @ torch.cat([of_source, of_target], dim=1)
    found = rollout(mixtures(outputs), readout)
    torch.testing.assert_close(found.float(), expected)
    torch.testing.assert_close(found.sum(), torch.tensor(1.0, dtype=torch.float64))
    found = attribute(writer, tokenizer, TEXT, TARGET, "attention_rollout").scores
    assert len(found) == source
    assert 0 < float(found.sum()) < 1  # the rest is the target's own


def test_flow_by_hand() -> None:
    #  read 1.0 → state 0; its row .75 .25; below, rows .5 .5 and 0 1
    chain = [torch.tensor([[0.5, 0.5], [0.0, 1.0]]), torch.tensor([[0.75, 0.25], [0.5, 0.5]])]
    found = flow(chain, torch.tensor([1.0, 0.0]))
    # to input 0 only through state 0 and its .5; to input 1 through .5 of state 0 and all .25 of state 1
    torch.testing.assert_close(found, torch.tensor([0.5, 0.75], dtype=torch.float64))


class Linear:
    """``F = Σ w · e`` with the surroundings that the gradient methods ask for."""

    is_text = torch.tensor([True, True, True, False])

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weights, self.given = torch.randn(2, 1, 4, 6, generator=generator, dtype=torch.float64)

    def vectors(self) -> Tensor:
        return self.given

    def of_vectors(self, vectors: Tensor) -> Tensor:
        return (self.weights * vectors).sum(dim=(1, 2))

    def at_once(self) -> int:
        return 7


def test_gradient_methods_are_exact_where_the_model_is_linear() -> None:
    linear: Any = Linear()
    expected = (linear.weights * linear.given).sum(-1)[0]
    torch.testing.assert_close(gradient_x_input(linear), expected)
    pytest.importorskip("captum")
    torch.testing.assert_close(integrated_gradients(linear), torch.where(linear.is_text, expected, 0.0))


@pytest.mark.parametrize("kind", ["writer", "recurrent", "classifier"])
def test_integrated_gradients_are_complete(kind: str, writer: Any, tokenizer: DragomanTokenizer) -> None:
    pytest.importorskip("captum")
    size = len(tokenizer)
    model = {
        "writer": lambda: writer,
        "recurrent": lambda: build(recurrent(vocab_size=size, attention="dot")),
        "classifier": lambda: classifier(tokenizer, norm_placement="post", pooling="attention"),
    }[kind]()
    found = attribute(model, tokenizer, TEXT, None if kind == "classifier" else TARGET, "integrated_gradients")
    explained = found.explained
    vectors = explained.vectors()
    silent = vectors * ~explained.is_text[:, None]
    with torch.no_grad():
        difference = explained.of_vectors(vectors) - explained.of_vectors(silent)
    assert abs(float(difference)) > 0.5
    torch.testing.assert_close(found.scores.sum(), difference[0].double(), rtol=0.02, atol=0.02)
    assert float(found.scores[-1]) == 0  # the end token is in the baseline too
    torch.testing.assert_close(sum(word.score for word in found.words), float(found.scores.sum()))


def test_leaving_a_word_out_is_reading_the_text_without_it(writer: Any, tokenizer: DragomanTokenizer) -> None:
    found = attribute(writer, tokenizer, "I hate this film", TARGET)
    for word, rest in zip(found.words, ("hate this film", "I this film", "I hate film", "I hate this"), strict=True):
        without = attribute(writer, tokenizer, rest, TARGET)
        assert word.score == pytest.approx(found.value - without.value, abs=1e-4)
    assert found.ranked()[0].score == max(word.score for word in found.words)


def test_what_is_explained_is_the_log_probability(writer: Any, tokenizer: DragomanTokenizer) -> None:
    batch = tokenizer([TEXT], text_target=[TARGET], return_tensors="pt")
    expected = -float(writer(**batch).loss.detach()) * batch["labels"].shape[1]
    assert attribute(writer, tokenizer, TEXT, TARGET).value == pytest.approx(expected, rel=1e-5)


def test_without_a_target_it_is_what_the_model_writes(writer: Any, tokenizer: DragomanTokenizer) -> None:
    writer.generation_config.update(num_beams=3, max_new_tokens=6, num_return_sequences=3, return_dict_in_generate=True)
    try:
        found = attribute(writer, tokenizer, TEXT, method="attention")
        written = writer.generate(**tokenizer(TEXT, return_tensors="pt"))
    finally:
        writer.generation_config.update(num_beams=1, num_return_sequences=1, return_dict_in_generate=False)
    assert found.target == tokenizer.decode(written.sequences[0], skip_special_tokens=True)
    explained: Any = found.explained
    assert explained.labels[0].tolist() == [i for i in written.sequences[0, 1:].tolist() if i != 0]
    assert float(found.scores.sum()) == pytest.approx(1)


def test_how_much_is_written_where_nobody_says(tokenizer: DragomanTokenizer) -> None:
    """As in the pipeline, and not the 20 tokens of transformers."""
    model = build(tiny(vocab_size=len(tokenizer), max_position_embeddings=40))
    model.generation_config.update(eos_token_id=None, suppress_tokens=[0, 1, 2, 3])
    assert attribute(model, tokenizer, TEXT, method="attention").explained.labels.shape == (1, 39)
    assert len(align(model, tokenizer, TEXT, units="tokens").weights) > 30
    model.generation_config.max_new_tokens = 7
    assert attribute(model, tokenizer, TEXT, method="attention").explained.labels.shape == (1, 7)


@pytest.mark.parametrize("pooling", ["mean", "first", "last_eos", "attention"])
def test_classes(pooling: str, tokenizer: DragomanTokenizer) -> None:
    model = classifier(tokenizer, pooling=pooling, id2label={0: "no", 1: "so", 2: "yes"})
    outputs = model(**tokenizer(TEXT, return_tensors="pt"), output_attentions=True)
    p = outputs.logits.softmax(-1)[0]
    for target, index in (("yes", 2), (1, 1), (None, int(p.argmax()))):
        found = attribute(model, tokenizer, TEXT, target)
        assert found.target == model.config.id2label[index]
        assert found.value == pytest.approx(float((p[index] / (1 - p[index])).log()), abs=1e-4)
    weights = outputs.pooling_weights[0].double()
    torch.testing.assert_close(attribute(model, tokenizer, TEXT, method="attention").scores, weights.detach())
    for weight in reversed(outputs.attentions):
        weights = 0.5 * weights + 0.5 * weights @ weight[0].mean(0).double()
    torch.testing.assert_close(attribute(model, tokenizer, TEXT, method="attention_rollout").scores, weights.detach())


@pytest.mark.parametrize("name", ["Marian", "Pegasus", "BlenderbotSmall", "Bart"])
def test_models_that_scale_what_they_look_up(name: str, tokenizer: DragomanTokenizer) -> None:
    ids = {f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in ("pad", "eos")}
    config = getattr(transformers, f"{name}Config")
    make = getattr(transformers, "MarianMTModel" if name == "Marian" else f"{name}ForConditionalGeneration")
    sizes = {**SIDES, "vocab_size": len(tokenizer), "decoder_start_token_id": 0}
    model = randomise(make(config(**sizes, **ids, scale_embedding=True))).eval()
    found = attribute(model, tokenizer, TEXT, TARGET, method="integrated_gradients")
    explained: Any = found.explained
    nothing = torch.where(explained.is_text[:, None], 0.0, explained.vectors())
    difference = found.value - float(explained.of_vectors(nothing).detach())
    assert float(found.scores.sum()) == pytest.approx(difference, rel=0.02)
    model.get_input_embeddings = lambda: torch.nn.Embedding(len(tokenizer), 32)
    with pytest.raises(ValueError, match="computes something else from token vectors than from the tokens"):
        attribute(model, tokenizer, TEXT, TARGET, method="gradient_x_input")


@pytest.mark.parametrize("name", ["Bart", "GPT2"])
@pytest.mark.parametrize("method", ["attention", "attention_rollout", "attention_flow"])
def test_heads_that_read_another_state(name: str, method: str, tokenizer: DragomanTokenizer) -> None:
    """The last one, as far as they see; what it holds is not known here."""
    ids = {f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in ("pad", "eos")}
    sizes = SIDES if name == "Bart" else {"n_embd": 32, "n_head": 4, "n_layer": 2}
    config = getattr(transformers, f"{name}Config")(vocab_size=len(tokenizer), num_labels=3, **ids, **sizes)
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{name}ForSequenceClassification")(config).eval()
    assert len(attribute(model, tokenizer, TEXT).words) == 7
    if (name, method) == ("Bart", "attention"):  # the decoder's, over the source
        return
    with pytest.raises(ValueError, match=f"Which state {name}ForSequenceClassification reads is not known"):
        attribute(model, tokenizer, TEXT, method=method)


def test_a_stock_classifier_in_half_precision(tokenizer: DragomanTokenizer) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
    config = transformers.BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes)
    config._attn_implementation = "eager"
    model = transformers.BertForSequenceClassification(config).eval()
    expected = attribute(model, tokenizer, TEXT, method="attention").scores
    found = attribute(model.bfloat16(), tokenizer, TEXT, method="attention").scores
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.005)


def test_several_labels_are_explained_one_by_one(tokenizer: DragomanTokenizer) -> None:
    model = classifier(tokenizer, problem_type="multi_label_classification")
    logits = model(**tokenizer(TEXT, return_tensors="pt")).logits[0]
    for label in (1, torch.tensor(1)):
        assert attribute(model, tokenizer, TEXT, label).value == pytest.approx(float(logits[1].detach()), abs=1e-5)


def test_a_text_that_enters_twice(tokenizer: DragomanTokenizer) -> None:
    model = classifier(tokenizer, classifier_backbone="encoder_decoder", pooling="last_eos")
    for method in ("leave_one_out", "attention", "attention_rollout"):
        assert len(attribute(model, tokenizer, TEXT, method=method).words) == 7
    scores = attribute(model, tokenizer, TEXT, method="attention_rollout").scores
    assert 0.5 < float(scores.sum()) <= 1  # all but the start token
    with pytest.raises(NotImplementedError, match="leave_one_out"):
        attribute(model, tokenizer, TEXT, method="gradient_x_input")


@pytest.mark.parametrize("attention", ["none", "additive", "dot"])
def test_recurrent_models(attention: str, tokenizer: DragomanTokenizer) -> None:
    model = build(recurrent(vocab_size=len(tokenizer), attention=attention))
    for method in ("leave_one_out", "gradient_x_input"):
        assert len(attribute(model, tokenizer, TEXT, TARGET, method).words) == 7
    with pytest.raises(ValueError, match="recurrent models have none"):
        attribute(model, tokenizer, TEXT, TARGET, "attention_rollout")
    if attention == "none":
        with pytest.raises(ValueError, match="attention='none' has none"):
            attribute(model, tokenizer, TEXT, TARGET, "attention")
    else:
        assert float(attribute(model, tokenizer, TEXT, TARGET, "attention").scores.sum()) == pytest.approx(1)


def test_a_planted_word_is_found_by_the_default() -> None:
    examples = planted(1600, seed=3)
    tokenizer = DragomanTokenizer.train([text for text, _ in examples], vocab_size=700, algorithm="word")
    model = classifier(tokenizer, num_labels=2, encoder_num_hidden_layers=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for start in range(0, 1600, 32):
        texts, labels = zip(*examples[start : start + 32], strict=True)
        batch = tokenizer(list(texts), padding=True, return_tensors="pt")
        model(**batch, labels=torch.tensor(labels)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    tests = planted(100, seed=4)
    found = [attribute(model, tokenizer, text, label) for text, label in tests]
    assert sum(row.ranked()[0].text in KEYS for row in found) >= 99
    assert model.training  # left as it was
    assert all(parameter.grad is None for parameter in model.parameters())
    measured = [faithfulness(row, draws=2) for row in found[:10]]
    assert all(row.comprehensiveness > row.random_comprehensiveness for row in measured)
    assert all(row.sufficiency < row.random_sufficiency for row in measured)


def test_faithfulness_is_the_mean_over_fractions(writer: Any, tokenizer: DragomanTokenizer) -> None:
    found = attribute(writer, tokenizer, TEXT, TARGET)
    explained: Any = found.explained
    count = explained.labels.shape[1]
    order = sorted(range(7), key=lambda i: -found.words[i].score)

    def p(kept: list[int]) -> float:
        part = explained.of_parts([[token for i in kept for token in explained.words[i].tokens]])
        return float((part / count).exp())

    drops = [(p(list(range(7))) - p(order[cut:]), p(list(range(7))) - p(order[:cut])) for cut in (1, 1, 4)]
    expected = [sum(column) / 3 for column in zip(*drops, strict=True)]
    measured = faithfulness(found, fractions=(0.01, 0.14, 0.5))
    assert measured[:2] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="at most at 1"):
        faithfulness(found, fractions=(1.5,))


def test_errors_name_the_remedy(writer: Any, tokenizer: DragomanTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"did you mean 'integrated_gradients'.*leave_one_out"):
        attribute(writer, tokenizer, TEXT, method="integrated_gradient")
    with pytest.raises(ValueError, match="no words"):
        attribute(writer, tokenizer, "  ")
    with pytest.raises(ValueError, match="units must be"):
        attribute(writer, tokenizer, TEXT, units="letters")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="is a text, not 1"):
        attribute(writer, tokenizer, TEXT, 1)
    with pytest.raises(TypeError, match="AutoModelForSequenceClassification"):
        attribute(writer.model, tokenizer, TEXT)
    with pytest.raises(ValueError, match="only 'LABEL_0', 'LABEL_1', 'LABEL_2'"):
        attribute(classifier(tokenizer), tokenizer, TEXT, "good")
    with pytest.raises(ValueError, match="no class 3, only 0 to 2"):
        attribute(classifier(tokenizer), tokenizer, TEXT, 3)
    with pytest.raises(ValueError, match="regression"):
        faithfulness(attribute(classifier(tokenizer, num_labels=1), tokenizer, TEXT))
    with pytest.raises(RuntimeError, match="dequantize"):
        attribute(dragoman.quantize(writer), tokenizer, TEXT, TARGET, "gradient_x_input")
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ImportError, match=r"dragoman\[explain\]"):
        attribute(writer, tokenizer, TEXT, TARGET, "integrated_gradients")


def test_every_method_gives_every_word_a_score(writer: Any, tokenizer: DragomanTokenizer) -> None:
    pytest.importorskip("captum")
    for method in METHODS:
        found = attribute(writer, tokenizer, TEXT, TARGET, method)
        assert [word.text for word in found.words] == words(TEXT, tokenizer)
        assert len({round(word.score, 9) for word in found.words}) > 2, method
        assert all(a.end <= b.start for a, b in pairwise(found.words))


def test_gradients_are_taken_wherever_the_caller_turned_them_off(writer: Any, tokenizer: DragomanTokenizer) -> None:
    expected = attribute(writer, tokenizer, TEXT, TARGET, "gradient_x_input").scores
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            found = attribute(writer, tokenizer, TEXT, TARGET, "gradient_x_input").scores
        torch.testing.assert_close(found, expected)


def test_long_texts_and_large_vocabularies_are_read_few_at_a_time(
    writer: Any, tokenizer: DragomanTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, rows = attribute(writer, tokenizer, TEXT, TARGET).scores, []
    monkeypatch.setattr(explained_output, "MOST_NUMBERS", 10_000)
    hook = writer.register_forward_pre_hook(lambda _, __, given: rows.append(len(given["input_ids"])), with_kwargs=True)
    torch.testing.assert_close(attribute(writer, tokenizer, TEXT, TARGET).scores, expected, rtol=1e-4, atol=1e-4)
    hook.remove()
    source, target = tokenizer(TEXT)["input_ids"], tokenizer(text_target=TARGET)["input_ids"]
    pytest.importorskip("captum")
    whole: list[int] = []
    hook = writer.register_forward_pre_hook(
        lambda _, __, given: whole.append(len(given.get("inputs_embeds", ()))), with_kwargs=True
    )
    attribute(writer, tokenizer, TEXT, TARGET, "integrated_gradients")
    hook.remove()
    heads = writer.config.num_attention_heads
    row = heads * (len(source) + len(target)) ** 2 + len(target) * writer.config.vocab_size
    assert max(rows) == max(1, 10_000 // row) < 64
    assert max(whole) == max(rows)


def test_white_space_at_the_end_is_of_the_text_too(tokenizer: DragomanTokenizer) -> None:
    """Else p(x), from which faithfulness counts, would be that of another text."""
    model = classifier(tokenizer)
    for space in ("   ", " \n", "\t"):
        found = attribute(model, tokenizer, TEXT + space, 0)
        assert [word.text for word in found.words] == words(TEXT, tokenizer)
        explained: Any = found.explained
        everything = explained.of_parts([[token for word in explained.words for token in word.tokens]])
        assert float(everything) == pytest.approx(found.value, abs=1e-6)


@pytest.mark.parametrize("name", ["Bart", "MBart"])
def test_what_was_written_is_read_as_it_was_written(name: str, tokenizer: DragomanTokenizer) -> None:
    """Behind the start token of generate(), whatever labels would make of it."""
    ids = {f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in ("pad", "eos")}
    config = getattr(transformers, f"{name}Config")(vocab_size=len(tokenizer), attention_dropout=0.0, **SIDES, **ids)
    config._attn_implementation = "eager"
    model = randomise(getattr(transformers, f"{name}ForConditionalGeneration")(config)).eval()
    model.generation_config.update(decoder_start_token_id=50, max_new_tokens=6, min_new_tokens=6)
    inputs = tokenizer(TEXT, return_tensors="pt")
    written = model.generate(**inputs)
    assert written.shape == (1, 7)
    with torch.no_grad():
        outputs = model(**inputs, decoder_input_ids=written[:, :-1], output_attentions=True)
    log_p = outputs.logits.log_softmax(-1).gather(2, written[:, 1:, None]).sum()
    assert attribute(model, tokenizer, TEXT).value == pytest.approx(float(log_p), rel=1e-5)
    links = align(model, tokenizer, TEXT, units="tokens")
    cross = torch.stack(outputs.cross_attentions).mean((0, 2))[0]  # (T, S)
    torch.testing.assert_close(links.weights, cross[: len(links.target), : len(links.source)], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("ModernBert", {"classifier_pooling": "mean"}),
        ("ModernBert", {"classifier_pooling": "cls"}),
        ("XLNet", {"summary_type": "last", "d_inner": 32, "n_layer": 2, "n_head": 4}),
    ],
)
def test_heads_say_what_they_read(name: str, fields: dict[str, Any], tokenizer: DragomanTokenizer) -> None:
    ids = {f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in ("pad", "eos", "bos")}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    sizes = {"d_model": 32} if name == "XLNet" else {**sizes, "cls_token_id": 1, "sep_token_id": 2}
    config = getattr(transformers, f"{name}Config")(vocab_size=len(tokenizer), **ids, **sizes, **fields)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForSequenceClassification")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    if name == "XLNet":
        with pytest.raises(ValueError, match="Which state XLNetForSequenceClassification reads is not known"):
            attribute(model, tokenizer, TEXT, method="attention")
        return
    with torch.no_grad():
        last = model(**tokenizer(TEXT, return_tensors="pt"), output_attentions=True).attentions[-1].mean(1)[0]
    expected = last.mean(0) if fields["classifier_pooling"] == "mean" else last[0]
    found = attribute(model, tokenizer, TEXT, method="attention").scores
    torch.testing.assert_close(found.float(), expected)


def test_the_model_and_torch_stay_as_they_were(writer: Any, tokenizer: DragomanTokenizer) -> None:
    """A frozen part too; and whoever set TF32 by torch's newer names."""
    conv, before = torch.backends.cudnn.conv, torch.backends.cudnn.conv.fp32_precision
    writer.train()
    writer.get_encoder().eval()
    modes = {name: module.training for name, module in writer.named_modules()}
    conv.fp32_precision = "ieee"
    try:
        attribute(writer, tokenizer, TEXT, TARGET)
        assert {name: module.training for name, module in writer.named_modules()} == modes
        assert torch.backends.cudnn.enabled
    finally:
        conv.fp32_precision = before
        writer.eval()


def test_stop_strings_of_the_model(tokenizer: DragomanTokenizer) -> None:
    model = build(tiny(vocab_size=len(tokenizer)))
    model.generation_config.update(stop_strings=["zz"], max_new_tokens=5)
    written = tokenizer.decode(model.generate(**tokenizer(TEXT, return_tensors="pt"), tokenizer=tokenizer)[0], True)
    assert attribute(model, tokenizer, TEXT).target == written
    assert "".join(align(model, tokenizer, TEXT).target) == "".join(written.split())


def test_log_odds_are_as_exact_as_the_logits(tokenizer: DragomanTokenizer) -> None:
    model = classifier(tokenizer).bfloat16()
    with torch.no_grad():
        logits = model(**tokenizer(TEXT, return_tensors="pt")).logits.double()[0]
    expected = logits[0] - logits[1:].logsumexp(0)
    assert attribute(model, tokenizer, TEXT, 0).value == pytest.approx(float(expected), abs=1e-5)
