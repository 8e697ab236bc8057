"""generate(), unmodified: every mode, on models whose output is not one repeated id."""

import copy
from typing import Any

import pytest
import torch
from dragoman.modeling import generation_dragoman
from dragoman.modeling.generation_dragoman import DragomanGenerationMixin
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, pipeline
from transformers.cache_utils import DynamicCache, EncoderDecoderCache, StaticCache

from dragoman import DragomanForConditionalGeneration, DragomanTokenizer
from support import SCHEMES, batch, build, recurrent, tiny

LENGTH = 12


def model_and_source(seed: int = 17, **overrides: Any) -> tuple[DragomanForConditionalGeneration, dict[str, Tensor]]:
    config = tiny(share_embeddings=False, source_vocab_size=29, tie_word_embeddings=False, **overrides)
    model = build(config, seed).double()
    model.lm_head.weight.data *= 4  # clear choices: no ties between tokens
    model.generation_config.max_length = None
    model.generation_config.max_new_tokens = LENGTH
    inputs = batch(config)
    del inputs["labels"]
    return model, inputs


def generate(model: DragomanForConditionalGeneration, inputs: dict[str, Tensor], **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return model.generate(**inputs, **{"no_repeat_ngram_size": 1, "suppress_tokens": [0, 1], **kwargs})


def varied(ids: Tensor) -> bool:
    """Rows differ from each other, and half of a row's tokens from each other."""
    rows = [[token for token in row if token not in (0, 1, 2)] for row in ids.tolist()]
    return len(set(map(tuple, rows))) == len(rows) and all(row and len(set(row)) >= len(row) / 2 for row in rows)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("mode", [{}, {"num_beams": 3}], ids=["greedy", "beam"])
@pytest.mark.parametrize("cache", ["static", "dynamic"])
def test_caches_and_padding(scheme: str, mode: dict[str, Any], cache: str) -> None:
    model, inputs = model_and_source(position_encoding=scheme, decoder_num_key_value_heads=2)
    expected = generate(model, inputs, use_cache=False, **mode).tolist()
    assert generate(model, inputs, cache_implementation=cache, **mode).tolist() == expected
    rows = [row[row != 0] for row in inputs["input_ids"]]
    left = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0, padding_side="left")
    assert generate(model, {"input_ids": left}, cache_implementation=cache, **mode).tolist() == expected
    for row, ids in zip(rows, expected, strict=True):  # batched = one by one
        alone = generate(model, {"input_ids": row[None]}, **mode)[0].tolist()
        assert alone == ids[: len(alone)]
        assert set(ids[len(alone) :]) <= {0}


@pytest.mark.parametrize("mode", [{}, {"num_beams": 3}, {"num_beams": 3, "do_sample": True}], ids=str)
@pytest.mark.parametrize(
    "prefix", [None, [[1, 5, 2, 7]] * 4, [[0, 0, 1, 2]] * 4], ids=["none", "an end within", "padded"]
)
def test_rows_are_padded_behind_their_end(mode: dict[str, Any], prefix: list[list[int]] | None) -> None:
    """transformers fills up beams with the end token where padding is 0, with -1 where there is none."""
    model, inputs = model_and_source()
    given = {} if prefix is None else {"decoder_input_ids": torch.tensor(prefix)}
    begins, copies = (1 if prefix is None else 4), mode.get("num_beams", 1)
    options: dict[str, Any] = {**mode, **given, "num_return_sequences": copies if mode else 1}
    unended = generate(model, inputs, **options, eos_token_id=None)
    places = {token: (unended[:, begins:] == token).nonzero()[:, 1].unique() for token in range(3, 31)}
    end = max(places, key=lambda token: len(places[token]))
    rows = generate(model, inputs, **options, eos_token_id=[2, end], return_dict_in_generate=True).sequences.tolist()
    lengths = [next((at for at in range(begins, len(row)) if row[at] in (2, end)), len(row)) for row in rows]
    assert len(set(lengths)) > 1
    assert not any(any(row[length + 1 :]) for row, length in zip(rows, lengths, strict=True))
    assert all(row[:begins] == (prefix or [[1]])[0] for row in rows)

    class StopAt(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Any:
            return input_ids[:, -1] == end

    stopped = generate(model, inputs, **options, eos_token_id=None, stopping_criteria=[StopAt()])
    assert stopped.min() >= 0
    assert not mode or (stopped[:, begins:] == 0).any()  # in greedy search a stopped row goes on


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_beams_leave_the_source_where_it_is(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the stock loop: the same beams as when both halves of the cache are reordered, and one half is not."""
    monkeypatch.setattr(generation_dragoman, "is_covered", lambda *_: False)
    model, inputs = model_and_source()
    mode = {"num_beams": 4, "cache_implementation": cache, "return_dict_in_generate": True, "output_scores": True}
    reordered: list[str] = []
    reorder = type(model)._reorder_cache

    def spy(self: Any, caches: EncoderDecoderCache, beam_idx: Tensor) -> EncoderDecoderCache:
        before = [layer.keys.data_ptr() for layer in caches.cross_attention_cache.layers]
        moved = bool((beam_idx != torch.arange(len(beam_idx))).any())
        reorder(self, caches, beam_idx)
        assert [layer.keys.data_ptr() for layer in caches.cross_attention_cache.layers] == before
        reordered.append("moved" if moved else "stayed")
        return caches

    monkeypatch.setattr(type(model), "_reorder_cache", spy)
    found = generate(model, inputs, **mode)
    assert reordered.count("moved") > 2
    monkeypatch.delattr(DragomanGenerationMixin, "_reorder_cache")
    monkeypatch.delattr(type(model), "_reorder_cache")
    expected = generate(model, inputs, **mode)
    assert found.sequences.tolist() == expected.sequences.tolist()
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores)


@pytest.mark.parametrize("mode", [{}, {"num_beams": 3}], ids=["greedy", "beam"])
def test_embeddings_alone_drive_the_encoder(mode: dict[str, Any]) -> None:
    """As for speech: feature sequences much longer than the target, with their mask and nothing else."""
    model, _ = model_and_source(position_encoding="rotary")
    features = torch.randn(3, 200, 32, dtype=torch.float64)
    mask = (torch.arange(200) < torch.tensor([[200], [150], [90]])).long()
    labels = torch.randint(3, 37, (3, 5))
    loss = model.train()(inputs_embeds=features, attention_mask=mask, labels=labels).loss
    loss.backward()
    assert model.model.encoder.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0
    model.eval()
    found = generate(model, {"inputs_embeds": features, "attention_mask": mask}, **mode)
    assert varied(found)
    assert (
        found.tolist()
        == generate(model, {"inputs_embeds": features, "attention_mask": mask}, use_cache=False, **mode).tolist()
    )
    garbled = torch.where(mask.bool()[..., None], features, 9.0)
    assert generate(model, {"inputs_embeds": garbled, "attention_mask": mask}, **mode).tolist() == found.tolist()


@pytest.mark.parametrize("mode", [{}, {"num_beams": 3}], ids=["greedy", "beam"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_ragged_prefixes(mode: dict[str, Any], scheme: str, cache: str) -> None:
    mode = {**mode, "cache_implementation": cache}
    model, inputs = model_and_source(position_encoding=scheme)
    prefixes = [[1, 9, 8, 7], [1, 5], [1], [1, 20, 21]]
    padded = torch.tensor([[0] * (4 - len(p)) + p for p in prefixes])
    found = generate(model, inputs, decoder_input_ids=padded, no_repeat_ngram_size=0, **mode)
    for i, prefix in enumerate(prefixes):
        source = inputs["input_ids"][i][inputs["attention_mask"][i].bool()][None]
        alone = generate(
            model, {"input_ids": source}, decoder_input_ids=torch.tensor([prefix]), no_repeat_ngram_size=0, **mode
        )
        assert alone[0, : len(prefix)].tolist() == prefix
        row = found[i, 4 - len(prefix) :].tolist()
        assert row[: alone.shape[1]] == alone[0].tolist()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("mode", [{}, {"num_beams": 3, "num_return_sequences": 2}], ids=["greedy", "beam"])
def test_prompts_that_are_all_padded(mode: dict[str, Any], masked: bool) -> None:
    """To a fixed width, say: what is returned begins with them as they are, and goes on as without the padding."""
    model, inputs = model_and_source()
    inputs = {name: value[:2] for name, value in inputs.items()}
    prompts = torch.tensor([[1, 9, 8], [0, 1, 5]])
    padded = torch.cat([torch.zeros(2, 2, dtype=torch.long), prompts], dim=1)
    mask = {"decoder_attention_mask": (padded != 0).long()} if masked else {}
    expected = generate(model, inputs, decoder_input_ids=prompts, return_dict_in_generate=True, **mode)
    found = generate(model, inputs, decoder_input_ids=padded, return_dict_in_generate=True, **mask, **mode)
    torch.testing.assert_close(found.sequences[:, 2:], expected.sequences)
    assert not found.sequences[:, :2].any()
    assert generate(model, inputs, decoder_input_ids=padded, **mask, **mode).tolist() == found.sequences.tolist()


def test_a_cache_goes_on_after_prompts_that_are_all_padded() -> None:
    model, inputs = model_and_source()
    padded = torch.tensor([[0, 0, 1, 9], [0, 0, 1, 5], [0, 0, 0, 1], [0, 0, 1, 20]])
    more = {"return_dict_in_generate": True, "no_repeat_ngram_size": 0}
    whole = generate(model, inputs, decoder_input_ids=padded, max_new_tokens=7, **more)
    half = generate(model, inputs, decoder_input_ids=padded, max_new_tokens=3, **more)
    caches = copy.deepcopy(half.past_key_values)
    rest = {"decoder_input_ids": half.sequences, "past_key_values": half.past_key_values, "max_new_tokens": 4}
    assert generate(model, inputs, **rest, **more).sequences.tolist() == whole.sequences.tolist()
    with pytest.raises(ValueError, match=r"The cache has 4 tokens, and decoder_input_ids 6, of which 2 are padding"):
        generate(model, inputs, decoder_input_ids=half.sequences[:, :-1], past_key_values=caches)


def test_a_cache_with_nothing_in_it_is_as_good_as_none() -> None:
    model, inputs = model_and_source()
    padded = torch.tensor([[0, 0, 1, 9], [0, 1, 5, 6], [1, 7, 8, 9], [0, 1, 20, 21]])
    expected = model(**inputs, decoder_input_ids=padded).logits
    for kind in (DynamicCache, lambda: StaticCache(model.config.get_text_config(decoder=True), max_cache_len=9)):
        found = model(**inputs, decoder_input_ids=padded, past_key_values=EncoderDecoderCache(kind(), kind())).logits
        torch.testing.assert_close(found[padded != 0], expected[padded != 0])


@pytest.mark.parametrize("mode", [{}, {"num_beams": 3}], ids=["greedy", "beam"])
def test_a_mask_of_source_to_source(mode: dict[str, Any]) -> None:
    """Each token sees itself and the two before it: what it leaves of the source, the decoder sees as with its states."""
    model, inputs = model_and_source()
    mask, length = inputs["attention_mask"].bool(), inputs["input_ids"].shape[1]
    near = torch.ones(length, length, dtype=torch.bool).tril().triu(-2) & mask[:, None, None]  # (B, 1, S, S)
    features = torch.randn(*mask.shape, model.config.hidden_size, dtype=torch.float64)
    source = {"inputs_embeds": features, "position_ids": torch.arange(length).expand(len(mask), -1)}
    states = model.get_encoder()(attention_mask=near, **source)
    ids = torch.tensor([[1, 9, 8]] * 4)
    expected = model(encoder_outputs=states, attention_mask=mask, decoder_input_ids=ids).logits
    for given in (source, {"encoder_outputs": states}):
        torch.testing.assert_close(model(attention_mask=near, decoder_input_ids=ids, **given).logits, expected)
    written = generate(model, {"encoder_outputs": states, "attention_mask": mask}, **mode)
    assert varied(written)
    assert generate(model, {"attention_mask": near, **source}, **mode).tolist() == written.tolist()


def test_a_config_of_the_call_leaves_the_models_own_where_it_says_nothing() -> None:
    model, inputs = model_and_source()
    model.generation_config.update(max_length=9, max_new_tokens=None)
    padded = torch.tensor([[0, 0, 1, 9]] * 4)
    expected = model.generate(**inputs, decoder_input_ids=padded).tolist()
    given = GenerationConfig(do_sample=False)
    assert len(expected[0]) == 9
    assert model.generate(**inputs, decoder_input_ids=padded, generation_config=given).tolist() == expected
    model.generation_config.prefill_chunk_size = 2
    with pytest.raises(NotImplementedError, match="prefill_chunk_size"):
        model.generate(**inputs, generation_config=given)


@pytest.mark.parametrize("mode", [{}, {"num_beams": 3}], ids=["greedy", "beam"])
def test_attentions_while_generating(mode: dict[str, Any]) -> None:
    for cache in ("dynamic", "static"):
        model, inputs = model_and_source()
        outputs = generate(
            model, inputs, output_attentions=True, return_dict_in_generate=True, cache_implementation=cache, **mode
        )
        assert outputs.sequences.tolist() == generate(model, inputs, **mode).tolist()
        rows = 4 * mode.get("num_beams", 1)
        assert len(outputs.encoder_attentions) == 3
        for step, layers in enumerate(outputs.cross_attentions):
            assert len(layers) == 2
            assert layers[0].shape == (rows, 4, 1, 9), step
            torch.testing.assert_close(layers[0].sum(-1), torch.ones_like(layers[0].sum(-1)))
            assert (layers[0][-1, ..., 7:] == 0).all()  # padding
        if not mode:
            ids = outputs.sequences[:, :-1]
            whole = model(**inputs, decoder_input_ids=ids, output_attentions=True)
            for layer in range(2):
                stepwise = torch.cat([step[layer] for step in outputs.cross_attentions], dim=2)
                torch.testing.assert_close(stepwise, whole.cross_attentions[layer])
                last = outputs.decoder_attentions[-1][layer][..., : ids.shape[1]]
                torch.testing.assert_close(last[:, :, 0], whole.decoder_attentions[layer][:, :, -1])


def test_attentions_of_chosen_layers_while_generating() -> None:
    model, inputs = model_and_source()
    mode = {"num_beams": 3, "return_dict_in_generate": True}
    everything = generate(model, inputs, output_attentions=True, **mode)
    chosen = generate(model, inputs, output_attentions=[1], **mode)
    assert [weights is None for weights in chosen.encoder_attentions] == [True, False, True]
    for found, expected in zip(chosen.cross_attentions, everything.cross_attentions, strict=True):
        assert found[0] is None
        torch.testing.assert_close(found[1], expected[1])


def test_speculative_modes_equal_greedy() -> None:
    model, inputs = model_and_source()
    source, plain = {"input_ids": inputs["input_ids"][:1]}, {"no_repeat_ngram_size": 0, "suppress_tokens": None}
    expected = generate(model, source, **plain).tolist()
    assert len(set(expected[0])) > 4
    assert generate(model, source, prompt_lookup_num_tokens=3, **plain).tolist() == expected
    assistant = copy.deepcopy(model)
    for parameter in assistant.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    assert generate(model, source, assistant_model=assistant, **plain).tolist() == expected


@pytest.mark.parametrize("mode", [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 1}], ids=str)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kind", ["dragoman", "recurrent"])
def test_stop_strings(kind: str, shared: bool, mode: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are looked for in the vocabulary that is written; nothing after them is."""
    texts, targets = ["hgfedcba", "abcdefgh"], ["abcdefghijklmnopqrstuvwxyz"]
    options = {"vocab_size": 40, "algorithm": "char", "byte_fallback": False, "share_vocabulary": shared}
    tokenizer = DragomanTokenizer.train(texts, targets, **options)
    sizes = {"vocab_size": tokenizer.target_vocab_size, "source_vocab_size": tokenizer.source_vocab_size}
    make = tiny if kind == "dragoman" else recurrent
    config = make(**sizes, share_embeddings=False, tie_word_embeddings=False)
    model, inputs = build(config, 3), tokenizer(texts, return_tensors="pt")
    covered: list[bool] = []
    decide = generation_dragoman.is_covered
    monkeypatch.setattr(generation_dragoman, "is_covered", lambda *args: covered.append(decide(*args)) or covered[-1])
    chosen = {"max_new_tokens": LENGTH, "no_repeat_ngram_size": 1, "suppress_tokens": [0, 1, 2, 3], **mode}
    made = pipeline("dragoman-text2text", model=model, tokenizer=tokenizer, device="cpu")
    for text, source in zip(texts, inputs["input_ids"], strict=True):
        torch.manual_seed(0)
        written = tokenizer.decode(model.generate(source[None], **chosen)[0], skip_special_tokens=True)
        assert len(written) == LENGTH
        torch.manual_seed(0)
        ids = model.generate(source[None], **chosen, stop_strings=[written[4:6]], tokenizer=tokenizer)[0]
        stopped = tokenizer.decode(ids, skip_special_tokens=True)
        if "num_beams" in mode:  # another beam may win now
            assert stopped.find(written[4:6]) in (-1, len(stopped) - 2)
        else:
            assert stopped == written[:6]
        torch.manual_seed(0)
        (record,) = made([text], **chosen, stop_strings=[written[4:6]], return_tensors=True)
        assert record["generated_token_ids"].tolist() == ids.tolist()
    assert covered == [True] * 6 or kind == "recurrent"


@pytest.mark.parametrize("mode", [{}, {"num_beams": 2}], ids=str)
@pytest.mark.parametrize("algorithm", ["char", "word"])
def test_stop_strings_of_words(algorithm: str, mode: dict[str, Any]) -> None:
    """In a vocabulary that has no word for the text by which transformers probes it."""
    targets = ["AH0 B IY1 K L OW2 M N"]
    sides: dict[str, Any] = {"target_algorithm": "word", "share_vocabulary": False} if algorithm == "char" else {}
    tokenizer = DragomanTokenizer.train(
        ["xyz" if sides else targets[0]], targets * 2, vocab_size=40, algorithm=algorithm, byte_fallback=False, **sides
    )
    sizes = {"vocab_size": tokenizer.target_vocab_size, "source_vocab_size": tokenizer.source_vocab_size}
    model = build(tiny(**sizes, share_embeddings=False, tie_word_embeddings=False), 3)
    source = tokenizer(["zyx" if sides else "B K"], return_tensors="pt")
    chosen = {"max_new_tokens": 6, "no_repeat_ngram_size": 1, "suppress_tokens": [0, 1, 2, 3], **mode}
    words = tokenizer.decode(model.generate(**source, **chosen)[0], skip_special_tokens=True).split()
    assert len(words) == 6
    known = tokenizer.get_vocab()
    ids = model.generate(**source, **chosen, stop_strings=[" ".join(words[2:4])], tokenizer=tokenizer)[0]
    stopped = tokenizer.decode(ids, skip_special_tokens=True).split()
    assert stopped == words[:4] or (mode and " ".join(words[2:4]) not in " ".join(stopped[:-1]))
    assert tokenizer.get_vocab() == known


def test_generating_in_train_mode_with_checkpointing_says_so() -> None:
    model, inputs = model_and_source()
    model.gradient_checkpointing_enable()
    model.train()
    with pytest.raises(ValueError, match=r"call model\.eval"):
        model.generate(**inputs)


def test_more_decoder_layers_than_encoder_layers() -> None:
    """Caches are sized from the decoder."""
    model, inputs = model_and_source(encoder_num_hidden_layers=1, decoder_num_hidden_layers=4)
    for cache in ("dynamic", "static"):
        assert (
            generate(model, inputs, cache_implementation=cache).tolist()
            == generate(model, inputs, use_cache=False).tolist()
        )


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_autocast(cache: str) -> None:
    """Rotated keys keep the narrow type that the cache was made for."""
    model, inputs = model_and_source(position_encoding="rotary")
    model.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert generate(model, inputs, cache_implementation=cache).shape[0] == 4


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", ["growing", "full"])
def test_a_static_cache_filled_by_hand(scheme: str, width: str) -> None:
    """Chunks of a left-padded row, with a plain 2-D mask that grows with them or is as long as the cache."""
    model, inputs = model_and_source(position_encoding=scheme)
    ids = torch.tensor([[0, 0, 1, 9, 8, 7], [1, 5, 6, 7, 8, 9], [0, 1, 4, 3, 5, 6], [1, 3, 4, 5, 6, 7]])
    mask = (ids != 0).long()
    expected = model(**inputs, decoder_input_ids=ids, use_cache=False).logits
    text = model.config.get_text_config(decoder=True)
    cache = EncoderDecoderCache(StaticCache(text, max_cache_len=11), StaticCache(text, max_cache_len=9))
    found, seen = [], 0
    for length in (3, 1, 2):
        seen += length
        known = mask[:, :seen] if width == "growing" else torch.nn.functional.pad(mask, (0, 5), value=1)
        piece = {"decoder_input_ids": ids[:, seen - length : seen], "decoder_attention_mask": known}
        found.append(model(**inputs, **piece, past_key_values=cache).logits)
    torch.testing.assert_close(torch.cat(found, 1)[mask.bool()], expected[mask.bool()])
