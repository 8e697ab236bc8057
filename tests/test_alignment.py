"""Alignments: the weights of the model's own cross-attention, whatever the batch, the search and the units."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from dragoman import DragomanTokenizer, align, attribute
from dragoman.alignment import Alignment, alignment_error_rate, grow_diag, symmetrize
from dragoman.teacher_forcing import decoder_inputs
from ladder import SIDES
from support import build, recurrent, tiny

SOURCES = ["a dog runs home", "I hate this", "two men"]
TARGETS = ["ein Hund rennt", "ich hasse das sehr", "zwei"]


@pytest.fixture(scope="module")
def tokenizer() -> DragomanTokenizer:
    return DragomanTokenizer.train(SOURCES, TARGETS, vocab_size=60, algorithm="char", byte_fallback=False)


def models(tokenizer: DragomanTokenizer) -> dict[str, Any]:
    size = len(tokenizer)
    return {
        "transformer": build(tiny(vocab_size=size)),
        **{kind: build(recurrent(vocab_size=size, attention=kind)) for kind in ("additive", "dot", "concat")},
    }


@pytest.mark.parametrize("kind", ["transformer", "additive", "dot", "concat"])
def test_weights_are_those_of_the_model(kind: str, tokenizer: DragomanTokenizer) -> None:
    model = models(tokenizer)[kind].train()
    tokens = align(model, tokenizer, SOURCES, TARGETS, units="tokens")
    words = align(model, tokenizer, SOURCES, TARGETS, layer=0, head=0)
    assert model.training
    for row, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True)):  # each alone, without padding
        batch = tokenizer([source], text_target=[target], return_tensors="pt")
        outputs = model.eval()(**batch, output_attentions=True)
        cross = torch.stack(outputs.cross_attentions)[:, 0].detach()  # (L, H, T, S)
        torch.testing.assert_close(tokens[row].weights, cross.mean((0, 1))[:-1, :-1], rtol=1e-3, atol=1e-4)
        assert [len(tokens[row].target), len(tokens[row].source)] == [size - 1 for size in cross.shape[2:]]
        parts = [tokenizer(text, return_offsets_mapping=True) for text in (source, target)]
        spaced = [text.split() for text in (source, target)]
        expected = torch.zeros(len(spaced[1]), len(spaced[0]))
        for j in range(len(spaced[1])):  # the mean over a target word's tokens of the sum over a source word's
            mine = [t for t, word in enumerate(word_numbers(target, parts[1])) if word == j]
            for i in range(len(spaced[0])):
                theirs = [s for s, word in enumerate(word_numbers(source, parts[0])) if word == i]
                expected[j, i] = cross[0, 0][mine][:, theirs].sum() / len(mine)
        torch.testing.assert_close(words[row].weights, expected, rtol=1e-3, atol=1e-4)
        assert (list(words[row].source), list(words[row].target)) == (spaced[0], spaced[1])
        assert words[row].links == {(int(expected[j].argmax()), j) for j in range(len(expected))}
        assert str(words[row]) == " ".join(f"{i}-{j}" for i, j in sorted(words[row].links))


def word_numbers(text: str, encoding: Any) -> list[int]:
    """The number of the word that each token is of, spaces of the one that follows; −1 for special tokens."""
    return [
        len((text[:end] + "x" * text[start:end].isspace()).split()) - 1 if end > start else -1
        for start, end in encoding["offset_mapping"]
    ]


@pytest.mark.parametrize("kind", ["transformer", "additive", "dot"])
def test_it_is_the_attention_of_what_was_written(kind: str, tokenizer: DragomanTokenizer) -> None:
    model = models(tokenizer)[kind]
    inputs = tokenizer(SOURCES, padding=True, return_tensors="pt")
    model.generation_config.update(max_new_tokens=7, suppress_tokens=[0, 1, 2, 3])
    written = model.generate(**inputs, output_attentions=True, return_dict_in_generate=True)
    steps = [torch.stack(step).mean((0, 2))[:, 0] for step in written.cross_attentions]  # one (B, S) a step
    found = align(model, tokenizer, SOURCES, units="tokens")
    assert sum(len(alignment.target) for alignment in found) > 9
    for row, alignment in enumerate(found):
        ids = written.sequences[row, 1:].tolist()
        places = [j for j, token in enumerate(ids) if token not in tokenizer.all_special_ids]
        for mine, j in zip(alignment.weights, places, strict=True):
            torch.testing.assert_close(mine, steps[j][row, : len(alignment.source)], rtol=1e-4, atol=1e-5)
    beams = {"num_beams": 4, "num_return_sequences": 2}
    best = tokenizer.batch_decode(model.generate(**inputs, **beams)[::2], skip_special_tokens=True)
    assert best != tokenizer.batch_decode(written.sequences, skip_special_tokens=True)
    model.generation_config.update(**beams)
    searched = align(model, tokenizer, SOURCES)
    for alignment, text, source in zip(searched, best, SOURCES, strict=True):
        assert "".join(alignment.target) == "".join(text.split())
        again = align(model, tokenizer, source)
        torch.testing.assert_close(alignment.weights, again.weights)


@pytest.mark.parametrize("name", ["M2M100", "NllbMoe", "Blenderbot", "BlenderbotSmall", "Bart"])
def test_models_that_do_not_say_what_their_decoder_reads(name: str, tokenizer: DragomanTokenizer) -> None:
    """Both lists and one by one; what is explained is the likelihood by which the model itself trains."""
    ids = {f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in ("pad", "eos")}
    sides = {**SIDES, "vocab_size": len(tokenizer), "decoder_start_token_id": ids["eos_token_id"], **ids}
    if name == "NllbMoe":
        sides |= {"num_experts": 2, "encoder_sparse_step": 0, "decoder_sparse_step": 0}
    config = getattr(transformers, f"{name}Config")(**sides)
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    model.set_attn_implementation("eager")
    texts = SOURCES[1:], TARGETS[1:]
    for many, source, target in zip(align(model, tokenizer, *texts), *texts, strict=True):
        torch.testing.assert_close(many.weights, align(model, tokenizer, source, target).weights)
    encoding = tokenizer(SOURCES[0], text_target=TARGETS[0], return_tensors="pt")
    loss, count = model(**encoding).loss.item(), encoding["labels"].numel()
    assert attribute(model, tokenizer, SOURCES[0], TARGETS[0]).value == pytest.approx(-loss * count, rel=1e-4)


def test_a_decoder_reads_what_it_is_to_write_one_later() -> None:
    says, nothing = SimpleNamespace(decoder_start_token_id=7, pad_token_id=0), SimpleNamespace()
    labels = torch.tensor([[4, 5, 1], [6, 1, -100]])
    for config, generation_config in ((nothing, says), (says, nothing)):
        model = SimpleNamespace(config=config, generation_config=generation_config)
        assert decoder_inputs(model, labels).tolist() == [[7, 4, 5], [7, 6, 1]]
    assert decoder_inputs(model, torch.tensor([[4, -100, 5]])).tolist() == [[7, 4, 0]]
    silent = SimpleNamespace(config=nothing, generation_config=SimpleNamespace(pad_token_id=0))
    with pytest.raises(ValueError, match="has decoder_start_token_id=None and pad_token_id=0: set both in its config"):
        decoder_inputs(silent, labels)


def test_nothing_is_aligned_to_nothing(tokenizer: DragomanTokenizer) -> None:
    model = models(tokenizer)["transformer"]
    assert align(model, tokenizer, []) == align(model, tokenizer, [], []) == []


def test_growing_by_hand() -> None:
    forward = frozenset({(0, 0), (1, 1), (2, 1), (4, 4)})
    backward = frozenset({(0, 0), (1, 1), (1, 2), (4, 3)})
    # (2, 1) and (1, 2) touch (1, 1), with a word of their own that has no link yet; (4, 4) and (4, 3) touch nothing
    assert grow_diag(forward, backward) == {(0, 0), (1, 1), (2, 1), (1, 2)}
    assert grow_diag(forward, frozenset()) == frozenset()
    both = frozenset({(0, 0), (1, 1)})
    assert grow_diag(both | {(0, 1)}, both) == both  # each of the two words has a link already


def test_joining_two_directions(tokenizer: DragomanTokenizer) -> None:
    model, back = models(tokenizer)["transformer"], models(tokenizer)["dot"]
    forward, backward = align(model, tokenizer, SOURCES[0], TARGETS[0]), align(back, tokenizer, TARGETS[0], SOURCES[0])
    turned = {(i, j) for j, i in backward.links}
    assert symmetrize(forward, backward, "intersection").links == forward.links & turned
    assert symmetrize(forward, backward, "union").links == forward.links | turned
    grown = symmetrize(forward, backward)
    assert forward.links & turned <= grown.links <= forward.links | turned
    assert isinstance(grown, Alignment)
    with pytest.raises(ValueError, match="do not join"):
        symmetrize(forward, align(back, tokenizer, TARGETS[1], SOURCES[0]))
    with pytest.raises(ValueError, match=r"'both': choose one of grow-diag"):
        symmetrize(forward, backward, "both")


def test_error_rate_by_hand() -> None:
    sure, possible = [{(0, 0), (1, 1)}, {(0, 0)}], [{(2, 1)}, {(0, 0), (0, 1)}]
    assert alignment_error_rate(sure, sure, possible) == 0
    found = [{(0, 0), (2, 1), (3, 3)}, {(0, 1)}]  # 1 sure and 2 possible of 3; 0 sure and 1 possible of 1
    assert alignment_error_rate(found, sure, possible) == pytest.approx(1 - (1 + 3) / (4 + 3))
    assert alignment_error_rate(found, sure) == pytest.approx(1 - (1 + 1) / (4 + 3))
    with pytest.raises(ValueError, match="1 found, 2 sure"):
        alignment_error_rate(found[:1], sure)
    with pytest.raises(ValueError, match="no error rate"):
        alignment_error_rate([set()], [set()])


def test_errors_name_the_remedy(tokenizer: DragomanTokenizer) -> None:
    model = models(tokenizer)["transformer"]
    with pytest.raises(ValueError, match="no layer 2: the decoder has 2, 0 to 1"):
        align(model, tokenizer, SOURCES[0], TARGETS[0], layer=2)
    with pytest.raises(ValueError, match="no head 4: the decoder has 4, 0 to 3"):
        align(model, tokenizer, SOURCES[0], TARGETS[0], head=4)
    with pytest.raises(ValueError, match="3 sources and 1 targets"):
        align(model, tokenizer, SOURCES, TARGETS[:1])
    with pytest.raises(ValueError, match="no words"):
        align(model, tokenizer, SOURCES[0], " ")
    for pair in (("a \ud800", "b"), ("a", "b \ud800")):
        with pytest.raises(ValueError, match=r"holds U\+D800 at position 2, .*errors=\"replace\""):
            align(model, tokenizer, *pair)
        with pytest.raises(ValueError, match=r"holds U\+D800 at position 2"):
            attribute(model, tokenizer, *pair)
    with pytest.raises(ValueError, match="units must be"):
        align(model, tokenizer, SOURCES[0], TARGETS[0], units="letters")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"attention='none' has none.*attention='dot'"):
        align(build(recurrent(vocab_size=len(tokenizer), attention="none")), tokenizer, SOURCES[0], TARGETS[0])
