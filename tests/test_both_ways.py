"""Writing from either end: the pairs to learn from, and what two searches find against loops row by row."""

import math
from typing import Any

import pytest
import torch
from datasets import Dataset, concatenate_datasets
from transformers import MBartTokenizer, PreTrainedTokenizerFast, pipeline

import dragoman
from dragoman import BothWaysPipeline, backwards, generate_both_ways
from dragoman.both_ways import log_likelihoods
from test_ensemble import member, sources
from test_pipelines import TASK, TEXTS, family, letters

BEAMS = 3
OPTIONS = {"num_beams": BEAMS, "num_return_sequences": BEAMS, "max_new_tokens": 7, "suppress_tokens": [0, 1]}  # no text


def test_backward_pairs() -> None:
    tokenizer = letters()
    a, b, c = tokenizer.convert_tokens_to_ids(["a", "b", "c"])
    start, end, unknown = 1, 2, 3
    pair = {"input_ids": [a, b, end], "attention_mask": [1, 1, 1], "labels": [unknown, b, c, end], "row": 7}
    turned = backwards(pair, tokenizer)
    assert turned == {
        "input_ids": [end, a, b, end],
        "attention_mask": [1, 1, 1, 1],
        "labels": [c, b, unknown, end],
        "row": 7,
    }
    assert pair["labels"] == [unknown, b, c, end]
    for labels, expected in (
        ([start, a, b, end], [start, b, a, end]),  # BART's
        ([a, start, b, end], [b, start, a, end]),  # within the text
        ([a, end], [a, end]),
        ([end], [end]),
        ([], []),
    ):
        assert backwards({"input_ids": [end], "labels": labels}, tokenizer)["labels"] == expected
    rows = Dataset.from_list([pair, pair])
    both = concatenate_datasets([rows, rows.map(backwards, fn_kwargs={"tokenizer": tokenizer})])
    assert both["labels"] == [pair["labels"]] * 2 + [turned["labels"]] * 2


def test_language_codes_keep_their_places() -> None:
    vocabulary = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁a", -1.0), ("▁b", -1.0)]
    tokenizer = MBartTokenizer(vocab=vocabulary, src_lang="en_XX", tgt_lang="de_DE")
    encoded = tokenizer("a b", text_target="a b b")
    turned = backwards(encoded, tokenizer)
    assert tokenizer.decode(turned["labels"]) == "b b a</s>de_DE"
    assert tokenizer.convert_ids_to_tokens(turned["input_ids"])[0] == "</s>"
    assert backwards({**encoded, "labels": turned["labels"]}, tokenizer)["labels"] == encoded["labels"]


def by_hand(models: list[Any], tokenizer: Any, ids: list[int], penalty: float) -> list[tuple[float, list[int]]]:
    """All candidates of one source with their scores, token by token, without padding; the best first."""
    ends = models[0].generation_config.eos_token_id

    def search(source: list[int]) -> list[list[int]]:
        inputs = {"input_ids": torch.tensor([source]), "attention_mask": torch.ones(1, len(source), dtype=torch.long)}
        together = [dragoman.EnsembleLogitsProcessor(models, **inputs)] if len(models) > 1 else []
        rows = models[0].generate(**inputs, logits_processor=together, length_penalty=penalty, **OPTIONS)
        cut = [next((row[:at] for at, token in enumerate(row) if token in ends), row) for row in rows[:, 1:].tolist()]
        return [[token for token in row if token != tokenizer.pad_token_id] for row in cut]

    def log_likelihood(source: list[int], row: list[int]) -> float:
        total, prefix = 0.0, [models[0].config.decoder_start_token_id]
        for token in row:
            asked = {"input_ids": torch.tensor([source]), "decoder_input_ids": torch.tensor([prefix])}
            asked["decoder_attention_mask"] = torch.ones_like(asked["decoder_input_ids"])
            logits = [model(**asked).logits[0, -1].double() for model in models]
            total += math.log(sum(each.softmax(-1)[token].item() for each in logits) / len(models))
            prefix.append(token)
        return total

    end = tokenizer.eos_token_id
    found = search(ids) + [row[::-1] for row in search([end, *ids])]
    scores = {
        tuple(row): (log_likelihood(ids, [*row, end]) + log_likelihood([end, *ids], [*row[::-1], end]))
        / (2 * (len(row) + 1) ** penalty)
        for row in found
    }
    return sorted(((score, [*row, end]) for row, score in scores.items()), reverse=True)


def tokenizer_of(name: str) -> Any:
    return family(name.removeprefix("another "))[1]


@pytest.mark.parametrize("penalty", [1.0, 0.0])
@pytest.mark.parametrize(
    "names",
    [("dragoman",), ("recurrent",), ("bart",), ("t5",), ("marian",), ("dragoman", "recurrent")],
    ids=" and ".join,
)
@torch.no_grad()
def test_against_loops(names: tuple[str, ...], penalty: float) -> None:
    models, tokenizer = [member(name) for name in names], tokenizer_of(names[0])
    inputs = sources(models[0].config)
    asked = models if len(models) > 1 else models[0]
    sequences, scores = generate_both_ways(asked, tokenizer, **inputs, **OPTIONS, length_penalty=penalty)
    assert scores.shape == (len(inputs["input_ids"]) * BEAMS,)
    assert (sequences[:, 0] == models[0].config.decoder_start_token_id).all()
    from_the_end = 0
    for i, (ids, mask) in enumerate(zip(*inputs.values(), strict=True)):
        expected = by_hand(models, tokenizer, ids[: mask.sum()].tolist(), penalty)
        from_the_end += len(expected) > BEAMS
        for n, (score, row) in enumerate(expected[:BEAMS]):
            torch.testing.assert_close(scores[i * BEAMS + n].item(), score, rtol=1e-5, atol=1e-5)
            assert sequences[i * BEAMS + n, 1 : 1 + len(row)].tolist() == row
            assert (sequences[i * BEAMS + n, 1 + len(row) :] == tokenizer.pad_token_id).all()
    assert from_the_end  # the two searches did not find the same


def test_the_pipeline_writes_the_same_in_the_order_of_the_texts() -> None:
    model, tokenizer = member("dragoman"), tokenizer_of("dragoman")
    pipe = pipeline(TASK, model=model, tokenizer=tokenizer, pipeline_class=BothWaysPipeline, batch_size=3, device="cpu")
    pipe.others = [member("recurrent")]
    options = {"num_beams": 2, "num_return_sequences": 3, "max_new_tokens": 6, "suppress_tokens": [0, 1]}
    found = pipe(TEXTS, return_scores=True, **options)
    models = [model, *pipe.others]
    for text, records in zip(TEXTS, found, strict=True):
        inputs = tokenizer(text, return_tensors="pt")
        sequences, scores = generate_both_ways(models, tokenizer, inputs["input_ids"], None, **options)
        assert [record["generated_text"] for record in records] == tokenizer.batch_decode(
            sequences, skip_special_tokens=True
        )
        torch.testing.assert_close([record["score"] for record in records], scores.tolist(), rtol=1e-5, atol=1e-5)
    rows = pipe(TEXTS[:2], return_tensors=True, **options)
    assert all(record["generated_token_ids"][-1] == tokenizer.eos_token_id for row in rows for record in row)
    assert "score" not in pipe(TEXTS[0], **options)[0]


def test_padding_on_the_left() -> None:
    model, tokenizer = member("dragoman"), tokenizer_of("dragoman")
    inputs = sources(model.config)
    left = {"input_ids": inputs["input_ids"].clone(), "attention_mask": inputs["attention_mask"].flip(1)}
    for ids, mask in zip(left["input_ids"], inputs["attention_mask"], strict=True):
        ids.copy_(ids.roll(int((mask == 0).sum())))
    for expected, found in zip(
        generate_both_ways(model, tokenizer, **inputs, **OPTIONS),
        generate_both_ways(model, tokenizer, **left, **OPTIONS),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


def test_likelihoods_of_half_precision_are_added_in_full() -> None:
    model = member("dragoman").bfloat16()
    inputs, labels = sources(model.config), torch.tensor([[4, 9, 16, 12, 2]] * 5)
    logits = model(**inputs, labels=labels).logits
    start = torch.tensor([model.config.decoder_start_token_id])
    assert logits.dtype == torch.bfloat16
    expected = logits.double().log_softmax(-1).gather(-1, labels[..., None]).sum((1, 2))
    found = log_likelihoods([model], inputs, [[row] for row in labels.tolist()], start)[:, 0]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_what_both_searches_found_is_there_once() -> None:
    """But where more are wanted than there are: then again, at the end."""
    model, tokenizer = member("dragoman"), tokenizer_of("dragoman")
    inputs = {name: x[:2] for name, x in sources(model.config).items()}
    options = OPTIONS | {"num_beams": 1, "num_return_sequences": 2, "max_new_tokens": 1}
    sequences, scores = generate_both_ways(model, tokenizer, **inputs, **options)
    for i in range(2):
        first, second = sequences[2 * i], sequences[2 * i + 1]
        assert scores[2 * i] >= scores[2 * i + 1]
        assert torch.equal(first, second) == (scores[2 * i] == scores[2 * i + 1])


def test_refusals() -> None:
    model, tokenizer = member("dragoman"), tokenizer_of("dragoman")
    inputs = sources(model.config)
    with pytest.raises(ValueError, match="num_return_sequences=5: two searches of num_beams=2 find 4"):
        generate_both_ways(model, tokenizer, **inputs, num_beams=2, num_return_sequences=5)
    beginnings = {"decoder_input_ids": torch.ones(5, 2, dtype=torch.long), "stop_strings": ["a"]}
    with pytest.raises(
        ValueError, match="decoder_input_ids, stop_strings: what is written from both ends cannot go by"
    ):
        generate_both_ways(model, tokenizer, **inputs, **beginnings)
    endless = PreTrainedTokenizerFast(tokenizer_object=letters().backend_tokenizer, pad_token="<pad>")
    with pytest.raises(ValueError, match="has no eos_token, by which a model is asked"):
        generate_both_ways(model, endless, **inputs)
    with pytest.raises(ValueError, match="has no eos_token, by which a model is asked"):
        backwards({"input_ids": [4], "labels": [4]}, endless)


def test_the_longest_text_leaves_room_for_the_end_token() -> None:
    model, tokenizer = member("dragoman"), tokenizer_of("dragoman")
    model.config.position_encoding, model.config.max_position_embeddings = "learned", 6
    pipe = pipeline(TASK, model=model, tokenizer=tokenizer, pipeline_class=BothWaysPipeline, device="cpu")
    with pytest.raises(ValueError, match="the text has 6 tokens and the model reads at most 5"):
        pipe("abcde")
