"""pipeline("dragoman-text2text"): what it writes against generate() row by row, in which order, and what it refuses."""

import copy
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch.nn.functional import log_softmax
from torch.utils.data import IterableDataset
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MarianConfig,
    MarianMTModel,
    MBartTokenizer,
    NllbTokenizer,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
    T5Config,
    T5ForConditionalGeneration,
    TextStreamer,
    pipeline,
)
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import KeyDataset
from transformers.utils import logging

import dragoman
from bart_models import tiny as bart
from dragoman.pipelines import WINDOW, Text2TextPipeline, register_pipelines
from dragoman.target_languages import encode_for
from ladder import SIDES, randomise
from support import ROOT, build, recurrent, tiny

TASK = "dragoman-text2text"
LETTERS = "abcdefghijklmnop"
TEXTS = ["abc", "d", "efghijklmnopab", "ponm", "ab", "hgfedcba", "k", "lla"]
FAMILIES = ("dragoman", "recurrent", "bart", "t5", "marian")


def letters() -> PreTrainedTokenizerFast:
    """A letter a token, closed by </s>, as any model may have it."""
    tokens = ["<pad>", "<s>", "</s>", "<unk>", *LETTERS]
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=50, **names)


def family(name: str) -> tuple[Any, Any]:
    """A model in float64 whose sentences differ and end early, and its tokenizer."""
    ids = {"vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}
    if name in ("dragoman", "recurrent"):
        words = dragoman.DragomanTokenizer.train([LETTERS], algorithm="char", byte_fallback=False, vocab_size=40)
        sizes = {"vocab_size": len(words), "tie_word_embeddings": False}
        sizes |= {f"{token}_token_id": getattr(words, f"{token}_token_id") for token in ("pad", "eos")}
        model: Any = build(tiny(**sizes) if name == "dragoman" else recurrent(**sizes))
    else:
        words = letters()
        make, config = {
            "bart": (BartForConditionalGeneration, BartConfig(**ids, **SIDES, tie_word_embeddings=False)),
            "marian": (MarianMTModel, MarianConfig(**ids, **SIDES, tie_word_embeddings=False)),
            "t5": (T5ForConditionalGeneration, T5Config(**ids, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)),
        }[name]
        model = randomise(make(config), seed=1 if name == "bart" else 2)
    ends = [model.config.eos_token_id, *range(6, model.config.vocab_size, 3)]  # with one alone, few sentences end
    model.generation_config.update(max_length=None, forced_eos_token_id=None, eos_token_id=ends)
    return model.double().eval(), words


@pytest.fixture(scope="module", params=FAMILIES)
def pipe(request: pytest.FixtureRequest) -> Text2TextPipeline:
    model, words = family(request.param)
    made = pipeline(TASK, model=model, tokenizer=words, device="cpu", batch_size=4)
    assert type(made) is Text2TextPipeline
    return made


def alone(pipe: Text2TextPipeline, text: str, **options: Any) -> Any:
    return pipe.model.generate(
        **pipe.tokenizer(text, return_tensors="pt"),
        return_dict_in_generate=True,
        output_scores=True,
        max_new_tokens=9,
        **options,
    )


def ended(ids: torch.Tensor, ends: Any) -> list[int]:
    """Up to the first end token after the start."""
    row, stop = ids.tolist(), {ends} if isinstance(ends, int) else set(ends)
    return next((row[: i + 1] for i in range(1, len(row)) if row[i] in stop), row)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 2}], ids=["greedy", "beams"])
def test_tokens_and_scores_are_those_of_row_by_row_generation(pipe: Text2TextPipeline, options: dict[str, Any]) -> None:
    rows = [alone(pipe, text, **options) for text in TEXTS]
    ends = pipe.model.generation_config.eos_token_id
    expected = [[ended(ids, ends) for ids in row.sequences] for row in rows]
    scores = [[score(pipe, text, ids) for ids in row] for text, row in zip(TEXTS, expected, strict=True)]
    if options:  # beams have scores of their own
        theirs = [row.sequences_scores.tolist() for row in rows]
        torch.testing.assert_close(theirs, scores, rtol=1e-5, atol=0)
        assert all(row == sorted(row, reverse=True) for row in scores)
    for batch_size in (1, 3, 100):
        found = pipe(TEXTS, batch_size=batch_size, max_new_tokens=9, return_tensors=True, return_scores=True, **options)
        found = [record if isinstance(record, list) else [record] for record in found]
        assert [[record["generated_token_ids"].tolist() for record in row] for row in found] == expected
        torch.testing.assert_close([[record["score"] for record in row] for row in found], scores, rtol=1e-5, atol=0)
    written = [ids for row in expected for ids in row]
    assert len(set(map(len, written))) > 1
    assert len(set(map(tuple, written))) > 2


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=["greedy", "beams"])
def test_a_prompt_is_not_counted_as_written(pipe: Text2TextPipeline, options: dict[str, Any]) -> None:
    """With an end token in it; and where a start token is put before it."""
    config = pipe.model.generation_config
    start, end = pipe.model.config.decoder_start_token_id, config.eos_token_id[0]
    for prompt, columns in (([start, 7, 8, 10], 4), ([start, end, 7], 3), ([7, 8], 3)):
        given = {"decoder_input_ids": torch.tensor([prompt]), "max_new_tokens": 9, **options}
        for batch_size in (1, 8):
            records = pipe(TEXTS, batch_size=batch_size, return_tensors=True, return_scores=True, **given)
            for text, record in zip(TEXTS, records, strict=True):
                ids = record["generated_token_ids"].tolist()
                assert ids[columns - len(prompt) : columns] == prompt
                assert len(ids) == columns + 9 or ids[-1] in config.eos_token_id
                assert not set(ids[columns:-1]) & set(config.eos_token_id)
                assert record["score"] == pytest.approx(score(pipe, text, ids, columns), rel=1e-5)


def test_a_row_that_a_criterion_stops(pipe: Text2TextPipeline) -> None:
    """Alone or beside others that go on."""

    class Third(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> Any:
            return torch.tensor([input_ids.shape[1] > 3]).expand(len(input_ids)) & (input_ids[:, 1] % 2 == 0)

    found = [
        pipe(
            TEXTS,
            batch_size=size,
            max_new_tokens=9,
            return_tensors=True,
            return_scores=True,
            stopping_criteria=StoppingCriteriaList([Third()]),
        )
        for size in (1, 8)
    ]
    ids = [[record["generated_token_ids"].tolist() for record in records] for records in found]
    assert ids[0] == ids[1]
    assert len(set(map(len, ids[0]))) > 1
    scores = [[record["score"] for record in records] for records in found]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-5, atol=0)


def score(pipe: Text2TextPipeline, text: str, ids: list[int], begins: int = 1) -> float:
    """Mean log p of the tokens from that column on, by one forward pass."""
    with torch.no_grad():
        target = torch.tensor([ids])
        logits = pipe.model(**pipe.tokenizer(text, return_tensors="pt"), decoder_input_ids=target[:, :-1]).logits
    return log_softmax(logits, -1).gather(2, target[:, 1:, None])[0, begins - 1 :].mean().item()


class Counted(IterableDataset[str]):
    """A stream that knows its length."""

    def __iter__(self) -> Iterator[str]:
        return iter(TEXTS)

    def __len__(self) -> int:
        return len(TEXTS)


def test_texts_streams_and_data_sets(pipe: Text2TextPipeline) -> None:
    """One text: a list of records. A list: a record a text. What streams: a list of records a text, in order."""
    options = {"max_new_tokens": 9}
    records = pipe(TEXTS, **options)
    texts = [
        pipe.tokenizer.decode(
            alone(pipe, text).sequences[0], skip_special_tokens=True, clean_up_tokenization_spaces=None
        )
        for text in TEXTS
    ]
    assert records == [{"generated_text": text} for text in texts]
    assert pipe("abc", **options) == records[:1]
    assert pipe({"text": "abc"}, **options) == records[:1]
    assert pipe([], **options) == []
    assert pipe(tuple(TEXTS), **options) == records
    rows = Dataset.from_dict({"text": TEXTS})
    assert pipe(rows["text"], **options) == records
    streamed = pipe(KeyDataset(rows, "text"), **options)
    assert len(streamed) == len(TEXTS)
    assert list(streamed) == list(pipe(iter(TEXTS), **options)) == [[record] for record in records]
    assert list(pipe(Counted(), **options)) == [[record] for record in records]
    assert next(pipe((text for text in TEXTS), num_beams=3, num_return_sequences=2, **options)) == pipe(
        TEXTS[0], num_beams=3, num_return_sequences=2, **options
    )


@pytest.fixture(scope="module")
def small() -> Text2TextPipeline:
    model, words = family("dragoman")
    return pipeline(TASK, model=model, tokenizer=words, device="cpu", max_new_tokens=4)


def test_a_stream_is_read_in_windows_and_sorted_within_them(
    small: Text2TextPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    shapes: list[tuple[int, ...]] = []
    generate = small.model.generate

    def endless() -> Iterator[str]:
        while True:
            read.append(len(read))
            yield "ab" * (1 + 7 * len(read) % 5)

    def watch(**inputs: Any) -> Any:
        shapes.append(tuple(inputs["input_ids"].shape))
        assert inputs["attention_mask"].all() or len(shapes) > WINDOW  # of 32 rows in 5 lengths, few batches are mixed
        return generate(**inputs)

    results = small(endless(), batch_size=1)
    next(results)
    assert len(read) <= 2  # transformers looks at the first one
    read.clear()
    results = small(endless(), batch_size=2)
    first = next(results)
    assert len(read) == 2 * WINDOW
    for _ in range(2 * WINDOW - 1):
        next(results)
    assert len(read) == 2 * WINDOW
    next(results)
    assert len(read) == 4 * WINDOW
    monkeypatch.setattr(
        small.model, "generate", lambda **inputs: shapes.append(inputs["input_ids"].shape) or generate(**inputs)
    )
    small(TEXTS, batch_size=2)
    assert [shape[1] for shape in shapes] == sorted((shape[1] for shape in shapes), reverse=True)
    assert sum(shape[0] * shape[1] for shape in shapes) < 1.2 * sum(len(text) + 1 for text in TEXTS)
    assert first == small("ab" * 3)


def test_one_by_one_in_the_order_of_the_input(small: Text2TextPipeline) -> None:
    """For a streamer, and for a seed."""
    lines: list[str] = []

    class Lines(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            lines.append(text)

    streamer = Lines(small.tokenizer, skip_special_tokens=True)  # type: ignore[arg-type]
    found = small(TEXTS, batch_size=1, streamer=streamer)
    assert "".join(lines) == "".join(record["generated_text"] for record in found)
    torch.manual_seed(0)
    drawn = small(TEXTS, batch_size=1, do_sample=True)
    torch.manual_seed(0)
    assert drawn == [small(text, do_sample=True)[0] for text in TEXTS]


def test_a_saved_folder_with_device_dtype_and_batch_size(tmp_path: Path) -> None:
    model, words = family("bart")
    Text2TextPipeline(model, tokenizer=words, device=-1).save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    made = pipeline(TASK, model=str(tmp_path), device="cpu", dtype=torch.float32, batch_size=3)
    assert (made.model.dtype, made.device.type) == (torch.float32, "cpu")
    assert made(TEXTS[:4], max_new_tokens=9) == pipeline(TASK, model=model, tokenizer=words, device=-1)(
        TEXTS[:4], max_new_tokens=9
    )


def test_how_much_is_written_where_nobody_says(small: Text2TextPipeline) -> None:
    """256 tokens, as many as positions allow, or what the model's generation config says, as in generate()."""
    model, words = family("marian")
    model.generation_config.eos_token_id = None
    made = pipeline(TASK, model=model, tokenizer=words, device="cpu")
    assert len(made("abc", return_tensors=True)[0]["generated_token_ids"]) == 64
    model.generation_config.max_length = 12
    assert len(made("abc", return_tensors=True)[0]["generated_token_ids"]) == 12
    given = GenerationConfig(max_new_tokens=3, num_beams=2, num_return_sequences=2, length_penalty=0.0)
    records = made("abc", return_tensors=True, return_scores=True, generation_config=given)
    assert [len(record["generated_token_ids"]) for record in records] == [4, 4]
    assert records[0]["score"] == pytest.approx(3 * score(made, "abc", records[0]["generated_token_ids"].tolist()))
    greedy = made("abc", return_tensors=True, return_scores=True, max_new_tokens=3, length_penalty=0.0)[0]
    assert greedy["score"] == pytest.approx(3 * score(made, "abc", greedy["generated_token_ids"].tolist()), rel=1e-5)


def test_arguments_with_a_row_an_input(pipe: Text2TextPipeline) -> None:
    """Texts are batched by length: whatever goes by the row must not go by the row of the batch."""
    firsts = [4 + i for i in range(len(TEXTS))]

    def allowed(number: int, ids: torch.Tensor) -> list[int]:
        return [firsts[number]] if len(ids) == 1 else list(range(4, 20))

    options = {"max_new_tokens": 5, "return_tensors": True}
    for inputs in (TEXTS, iter(TEXTS)):
        found = pipe(inputs, prefix_allowed_tokens_fn=allowed, batch_size=2, **options)
        records = [record[0] if isinstance(record, list) else record for record in found]
        assert [int(record["generated_token_ids"][1]) for record in records] == firsts
    sampled = {"do_sample": True, "num_return_sequences": 2, **options}
    for beams in (1, 2):  # the second beam has no token left to begin with
        found = pipe(TEXTS, prefix_allowed_tokens_fn=allowed, batch_size=3, num_beams=beams, **sampled)
        ids = [[int(record["generated_token_ids"][1]) for record in row] for row in found]
        assert [row[: 3 - beams] for row in ids] == [[first] * (3 - beams) for first in firsts]
    starts = {"decoder_start_token_id": firsts}
    as_tensor = {"decoder_start_token_id": torch.tensor(firsts)}
    for given in (starts, as_tensor, {"generation_config": GenerationConfig(**starts)}):
        found = pipe(TEXTS, batch_size=3, **given, **options)
        assert [int(record["generated_token_ids"][0]) for record in found] == firsts
    with pytest.raises(ValueError, match="decoder_start_token_id has 8 tokens, one for each input, and there are more"):
        pipe([*TEXTS, "abc"], **starts, **options)
    start = pipe.model.config.decoder_start_token_id
    found = pipe(TEXTS, decoder_input_ids=torch.tensor([[start, 7]]), **options)
    assert all(record["generated_token_ids"][:2].tolist() == [start, 7] for record in found)
    together = [dragoman.EnsembleLogitsProcessor([pipe.model], **pipe.tokenizer(["abc"], return_tensors="pt"))]
    with pytest.raises(ValueError, match="An EnsembleLogitsProcessor belongs to one batch"):
        pipe("abc", logits_processor=together, **options)
    with pytest.raises(ValueError, match="decoder_input_ids has a row for each input, and the pipeline batches"):
        pipe(TEXTS[:2], decoder_input_ids=torch.tensor([[start, 7], [start, 8]]), **options)


def test_arguments_of_the_pipeline_are_arguments_of_each_call(pipe: Text2TextPipeline) -> None:
    firsts = [4 + i for i in range(len(TEXTS))]

    def allowed(number: int, ids: torch.Tensor) -> list[int]:
        return [firsts[number]] if len(ids) == 1 else list(range(4, 20))

    def made(**options: Any) -> Any:
        return pipeline(TASK, model=pipe.model, tokenizer=pipe.tokenizer, device="cpu", batch_size=3, **options)

    options = {"max_new_tokens": 5, "return_tensors": True}
    cases = ({"num_beams": 2}, {"do_sample": True}, {"do_sample": True, "num_beams": 2})
    for case in cases:
        call = {"prefix_allowed_tokens_fn": allowed, **options}
        found = made(num_return_sequences=2, **case)(TEXTS, **call)
        assert [int(row[0]["generated_token_ids"][1]) for row in found] == firsts
        found = made(**case)(TEXTS, num_return_sequences=2, **call)
        assert [int(row[0]["generated_token_ids"][1]) for row in found] == firsts
    found = made(decoder_start_token_id=firsts)(TEXTS, **options)
    assert [int(record["generated_token_ids"][0]) for record in found] == firsts


def test_an_end_token_that_is_switched_off_ends_nothing(pipe: Text2TextPipeline) -> None:
    found = pipe(TEXTS, eos_token_id=None, max_new_tokens=8, return_tensors=True, batch_size=3)
    assert [len(record["generated_token_ids"]) for record in found] == [9] * len(TEXTS)


def test_only_scores_ask_for_more_than_tokens(pipe: Text2TextPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else finished rows are computed to the end, and a cache is built that nobody reads."""
    seen, generate = [], pipe.model.generate

    def spy(**options: Any) -> Any:
        seen.append(options["return_dict_in_generate"])
        return generate(**options)

    monkeypatch.setattr(pipe.model, "generate", spy)
    plain, scored = (pipe(TEXTS, return_scores=scores, max_new_tokens=5) for scores in (False, True))
    assert set(seen[: len(seen) // 2]) == {False}
    assert set(seen[len(seen) // 2 :]) == {True}
    assert [record["generated_text"] for record in plain] == [record["generated_text"] for record in scored]


def test_what_stock_pipelines_hand_on() -> None:
    model, words = family("bart")
    made = pipeline(TASK, model=model, tokenizer=words, device="cpu", assistant_model=copy.deepcopy(model))
    assert made._forward_params["assistant_model"] is made.assistant_model is not None
    alone = pipeline(TASK, model=model, tokenizer=words, device="cpu")
    assert made("abc", max_new_tokens=5) == alone("abc", max_new_tokens=5)
    words.backend_tokenizer.decoder = decoders.Fuse()
    options = {"max_new_tokens": 5, "stop_strings": ["j"]}
    assert alone(TEXTS, **options) == alone(TEXTS, tokenizer=words, **options)


STOPS = ["j", "gm", "ll", "hh", "kf"]


@pytest.mark.parametrize("name", ["t5", "bart"])
@pytest.mark.parametrize("where", ["call", "config of the call", "config of the model"])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_string_that_ends_a_row(name: str, where: str, beams: int) -> None:
    """Wherever it is named; what follows it is padding, which is no token of the row and has no say in its score."""
    model, words = family(name)
    words.backend_tokenizer.decoder = decoders.Fuse()  # strings are searched without the spaces between letters
    model.generation_config.eos_token_id = 2
    settings: dict[str, Any] = {"max_new_tokens": 9, "num_beams": beams, "num_return_sequences": beams}
    stops = {"stop_strings": STOPS, "tokenizer": words}
    rows = [row for t in TEXTS for row in model.generate(**words(t, return_tensors="pt"), **stops, **settings)]
    if where == "call":
        settings["stop_strings"] = STOPS
    elif where == "config of the call":
        settings = {"generation_config": GenerationConfig(**settings, stop_strings=STOPS)}
    else:
        model.generation_config.update(stop_strings=STOPS)
    made = pipeline(TASK, model=model, tokenizer=words, device="cpu", batch_size=8)
    found = made(TEXTS, return_tensors=True, return_scores=True, **settings)
    records = [record for row in found for record in (row if isinstance(row, list) else [row])]
    lengths = set()
    for i, (row, record) in enumerate(zip(rows, records, strict=True)):
        letters = words.convert_ids_to_tokens(row)
        ends = [n for n in range(2, len(row)) if any(stop in "".join(letters[1:n]) for stop in STOPS)]
        expected = row[: min(ends, default=len(row))].tolist()
        assert record["generated_token_ids"].tolist() == expected
        assert record["score"] == pytest.approx(score(made, TEXTS[i // beams], expected), rel=1e-5)
        lengths.add(len(expected))
    assert len(lengths) > 2


@pytest.mark.parametrize("beams", [1, 3])
def test_a_string_alone_ends_a_row(beams: int) -> None:
    """With no token that does, what follows the string in a batch is no part of the text either."""
    model, words = family("bart")
    words.backend_tokenizer.decoder = decoders.Fuse()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = None if beams > 1 else 0
    made = pipeline(TASK, model=model, tokenizer=words, device="cpu")
    options = {"stop_strings": STOPS, "max_new_tokens": 12, "num_beams": beams}
    expected = [made(text, **options)[0]["generated_text"] for text in TEXTS]
    assert len({len(text) for text in expected}) > 2
    assert [record["generated_text"] for record in made(TEXTS, batch_size=8, **options)] == expected


@pytest.mark.parametrize("name", ["bart", "marian"])
def test_a_tokenizer_that_pads_on_the_left(name: str) -> None:
    model, words = family(name)
    words.padding_side = "left"
    made = pipeline(TASK, model=model, tokenizer=words, device="cpu", max_new_tokens=9)
    found = [made(TEXTS, batch_size=size, return_tensors=True, return_scores=True) for size in (1, 8)]
    torch.testing.assert_close(*[[row["score"] for row in rows] for rows in found])
    assert words.padding_side == "left"


def test_progress(small: Text2TextPipeline, capsys: pytest.CaptureFixture[str]) -> None:
    logging.enable_progress_bar()
    small(TEXTS)
    assert not capsys.readouterr().err
    small(TEXTS, progress_bar=True)
    assert "8/8" in capsys.readouterr().err
    small(TEXTS * 13, batch_size=60)
    assert "104/104" in capsys.readouterr().err
    small(TEXTS * 13, batch_size=60, progress_bar=False)
    assert not capsys.readouterr().err


BAD: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    ("", {}, ValueError, r"Input 0: the text '' is empty: leave such rows out"),
    (["a", " \n"], {}, ValueError, r"Input 1: the text ' \\n' is empty"),
    (3, {}, TypeError, r"The input is 3, of type int: expected a text, a list of texts"),
    (b"ab", {}, TypeError, r"of type bytes"),
    (["a", None], {}, TypeError, r"Input 1: None is no text, and no dict with a 'text'"),
    ([["a"]], {}, TypeError, r"Input 0: \['a'\] is no text"),
    (["a", "b\ud83d"], {}, ValueError, r"Input 1: the text holds U\+D83D at position 1, .*errors=\"replace\""),
    ({"text": "a", "lang": "de"}, {}, ValueError, r"Input 0: unknown 'lang'; known: 'text', 'src_lang', 'tgt_lang'"),
    ("a", {"tgt_lang": ["de", "fr"]}, TypeError, r"tgt_lang=\['de', 'fr'\] must be one language; for one a row, pass"),
    ("a", {"tgt_lang": "de"}, ValueError, r"tgt_lang='de': DragomanTokenizer has no languages"),
    ("a", {"batch_size": 0}, ValueError, r"batch_size=0 must be a whole number above 0"),
    ("a", {"beams": 3}, ValueError, r"not used by the model: \['beams'\]"),
]


@pytest.mark.parametrize(("inputs", "options", "error", "message"), BAD, ids=lambda value: str(value)[:20])
def test_bad_input(
    small: Text2TextPipeline, inputs: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        small(inputs, **options)


def test_a_source_that_is_too_long() -> None:
    model, words = family("bart")
    made = pipeline(TASK, model=model, tokenizer=words, device="cpu", max_new_tokens=5)
    long = "ab" * 30
    with pytest.raises(ValueError, match=r"Input 1: the text has 61 tokens and the model reads at most 50 \(tokenizer"):
        made(["a", long])
    assert made(long, truncation=True) == made(long[:49])
    words.model_max_length = int(1e30)
    made(long)
    with pytest.raises(
        ValueError, match=r"at most 64 \(config.max_position_embeddings\): split it, or pass truncation"
    ):
        made("ab" * 32)
    assert made("ab" * 32, truncation=True) == made("ab" * 31 + "a")
    rotary, letter = family("dragoman")
    made = pipeline(TASK, model=rotary, tokenizer=letter, device="cpu", max_new_tokens=2)
    made(["ab" * 40], truncation=True)  # positions without a limit


def test_wrong_models() -> None:
    decoder = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(ValueError, match="GPT2LMHeadModel is not an encoder-decoder that generates text"):
        pipeline(TASK, model=decoder, tokenizer=letters())
    words = letters()
    words.pad_token = None
    with pytest.raises(ValueError, match=r"no pad_token to make batches with: set tokenizer\.pad_token"):
        Text2TextPipeline(bart("Bart"), tokenizer=words)
    with pytest.raises(ValueError, match="needs a tokenizer"):
        Text2TextPipeline(bart("Bart"))


def test_registration() -> None:
    before = PIPELINE_REGISTRY.supported_tasks[TASK]
    register_pipelines()
    assert PIPELINE_REGISTRY.supported_tasks[TASK] is before
    for theirs in ("translation", "translation_en_to_de", "summarization", "text2text-generation"):
        with pytest.raises(KeyError, match="has been removed from transformers"):  # before any registry is asked
            pipeline(theirs)


def test_the_document_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """docs/pipelines.md, from top to bottom."""
    monkeypatch.chdir(tmp_path)
    model, words = family("dragoman")
    model.save_pretrained("my-model")
    words.save_pretrained("my-model")
    build(model.config, seed=5).double().save_pretrained("my-other-model")
    Path("input.txt").write_text("abc\nponm\n")
    spoken = dragoman.DragomanTokenizer.train(
        [LETTERS], algorithm="char", byte_fallback=False, vocab_size=40, languages=["de", "fr"]
    )
    config = dragoman.DragomanConfig.from_tokenizer(spoken, preset=tiny(vocab_size=len(spoken)))
    names = {"multilingual": pipeline(TASK, model=build(config), tokenizer=spoken, device="cpu")}
    text = (ROOT / "docs" / "pipelines.md").read_text("utf-8")
    snippets = re.findall(r"^( *)```python\n(.*?)```", text, re.DOTALL | re.MULTILINE)
    assert len(snippets) == 4
    for _, snippet in snippets:
        exec(compile(textwrap.dedent(snippet), "pipelines.md", "exec"), names)
    assert len(names["best"]) == 3
    assert capsys.readouterr().out.count("\n") == 7


# ---- languages ----


def test_a_language_a_row_of_dragoman() -> None:
    words = dragoman.DragomanTokenizer.train(
        [LETTERS], algorithm="char", byte_fallback=False, vocab_size=40, languages=["de", "fr"]
    )
    model = build(
        dragoman.DragomanConfig.from_tokenizer(words, preset=tiny(vocab_size=len(words), tie_word_embeddings=False))
    ).double()
    made = pipeline(TASK, model=model, tokenizer=words, device="cpu", batch_size=5, max_new_tokens=9)
    rows = [{"text": text, "tgt_lang": "fr" if i % 3 else "de"} for i, text in enumerate(TEXTS)]
    found = made(rows, return_tensors=True)
    for row, record in zip(rows, found, strict=True):
        ids = model.generate(
            **words(row["text"], target_language=row["tgt_lang"], return_tensors="pt"), max_new_tokens=9
        )
        assert record["generated_token_ids"].tolist() == ended(ids[0], words.eos_token_id)
    german = made(TEXTS, tgt_lang="de")
    assert made([*TEXTS[:4], rows[4]], tgt_lang="de")[:4] == german[:4] != made(TEXTS, tgt_lang="fr")[:4]
    with pytest.raises(ValueError, match=r"Input 0: which language\? .*to a pipeline tgt_lang="):
        made("abc")
    with pytest.raises(ValueError, match="unknown language 'en'; known: de, fr"):
        made("abc", tgt_lang="en")
    with pytest.raises(ValueError, match="src_lang='fr': this tokenizer is asked for a target language alone"):
        made("abc", tgt_lang="de", src_lang="fr")


PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", *LETTERS]


@pytest.mark.parametrize("kind", ["nllb", "mbart"])
def test_a_forced_first_token(kind: str) -> None:
    if kind == "nllb":
        words: Any = NllbTokenizer(vocab={piece: i for i, piece in enumerate(PIECES)}, merges=[])
        english, german, french = "eng_Latn", "deu_Latn", "fra_Latn"
    else:
        words = MBartTokenizer(vocab=[(piece, -float(i)) for i, piece in enumerate(PIECES)])
        english, german, french = "en_XX", "de_DE", "fr_XX"
    sizes = {"vocab_size": len(words), "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    architecture = "MBart" if kind == "mbart" else "Bart"
    model = bart(architecture, **sizes, decoder_start_token_id=2, forced_eos_token_id=None).double()
    made = pipeline(TASK, model=model, tokenizer=words, device="cpu", batch_size=3, max_new_tokens=8, src_lang=english)
    rows: list[Any] = [{"text": text, "tgt_lang": german if i % 2 else french} for i, text in enumerate(TEXTS)]
    rows[2]["src_lang"] = german
    for options in ({}, {"num_beams": 3}):
        found = made(rows, return_tensors=True, return_scores=True, **options)
        for row, record in zip(rows, found, strict=True):
            words.src_lang = row.get("src_lang", english)
            inputs, first = words(row["text"], return_tensors="pt"), words.convert_tokens_to_ids(row["tgt_lang"])
            ids = model.generate(**inputs, forced_bos_token_id=first, max_new_tokens=8, **options)[0]
            assert record["generated_token_ids"].tolist() == ended(ids, 2)
            assert record["generated_token_ids"][1] == first
            assert record["score"] < 0
    words.src_lang = french
    made(rows)
    assert words.src_lang == french  # the tokenizer is as it was
    with pytest.raises(ValueError, match=rf"Input 0: unknown language 'de': .* nearest are .*{german}"):
        made("abc", tgt_lang="de")


def test_tags_and_prefixes_in_the_text() -> None:
    class Tagged(PreTrainedTokenizerFast):
        supported_language_codes: tuple[str, ...] = (">>fra<<", ">>deu<<")

    plain = letters()
    tagged = Tagged(tokenizer_object=plain.backend_tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    config = T5Config(task_specific_params={"translation_en_to_de": {"prefix": "abba"}})
    assert encode_for(tagged, config, "ab", tgt_lang="fra") == dict(tagged(">>fra<< ab"))
    with pytest.raises(ValueError, match="unknown language 'ita': of 2 known codes"):
        encode_for(tagged, config, "ab", tgt_lang="ita")
    assert encode_for(plain, config, "cd", "en", "de") == dict(plain("abbacd"))
    with pytest.raises(
        ValueError, match=r"src_lang='en', tgt_lang='fr': .* has no languages, and the configuration no"
    ):
        encode_for(plain, config, "cd", "en", "fr")
    model, words = family("t5")
    made = pipeline(TASK, model=model, tokenizer=words, device="cpu", max_new_tokens=5)
    assert made("abc", prefix="dd") == made("ddabc")
