"""EnsembleLogitsProcessor: against loops and a wrapper that run every member anew on all rows, at every step."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationMixin, GPT2Config, GPT2LMHeadModel, LogitsProcessorList, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from dragoman import EnsembleLogitsProcessor
from ladder import pad_after_end, randomise
from support import build
from test_fast_decoding import Runs, prepare, runs  # noqa: F401, a fixture
from test_pipelines import family

LENGTH = 9
MEMBERS = (
    ("dragoman", "another dragoman"),
    ("dragoman", "recurrent"),
    ("recurrent", "dragoman", "another dragoman"),
    ("bart", "t5"),
    ("t5", "marian", "bart"),
)
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 0.7, "num_return_sequences": 2},
    "beam": {"num_beams": 3, "num_return_sequences": 2, "output_scores": True, "return_dict_in_generate": True},
    "beam sampling": {"num_beams": 3, "do_sample": True, "early_stopping": True},
}
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
ensembles = pytest.mark.parametrize("names", MEMBERS, ids=" and ".join)


def member(name: str) -> Any:
    model = family(name.removeprefix("another "))[0]
    if name == "another dragoman":
        model.config.position_encoding, model.config.decoder_num_hidden_layers = "rotary", 3
        model = build(model.config, seed=5).double()
    elif name in ("bart", "marian", "t5"):
        randomise(model, seed=3, std=0.8)  # else they repeat one token, whatever the source
    inputs = sources(model.config)
    with torch.no_grad():  # none so sure that the others have no say
        logits = model(**inputs, decoder_input_ids=inputs["input_ids"]).logits
        model.get_output_embeddings().weight.mul_(2 / logits.std())
    model.generation_config.update(max_length=None, eos_token_id=[model.config.eos_token_id, 3, 7, 18])
    return model


def sources(config: Any, sizes: tuple[int, ...] = (9, 2, 6, 1, 4)) -> dict[str, Tensor]:
    """Ragged, padded on the right."""
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(4, config.vocab_size, (size,), generator=generator) for size in sizes]
    ids = pad_sequence(rows, batch_first=True, padding_value=config.pad_token_id)
    return {"input_ids": ids, "attention_mask": (torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]).long()}


def write(models: list[Any], inputs: dict[str, Tensor], **options: Any) -> Any:
    torch.manual_seed(0)
    together = EnsembleLogitsProcessor(models, **inputs)
    return models[0].generate(**inputs, logits_processor=LogitsProcessorList([together]), **options)


class SourceIds(nn.Module):
    """An encoder whose states are the ids."""

    main_input_name = "input_ids"

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=input_ids[..., None].double())


class Mean(PreTrainedModel, GenerationMixin):
    """A model that is an ensemble: nothing is kept from step to step."""

    _supports_sdpa = True
    main_input_name = "input_ids"

    def __init__(self, models: list[Any]) -> None:
        super().__init__(models[0].config)
        self.encoder, self.models = SourceIds(), nn.ModuleList(models)
        self.generation_config = models[0].generation_config

    def get_encoder(self, *_: Any, **__: Any) -> nn.Module:
        return self.encoder

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Any = None,
        encoder_outputs: Any = None,
        **_: Any,
    ) -> Seq2SeqLMOutput:
        given = {"input_ids": encoder_outputs.last_hidden_state[..., 0].long(), "attention_mask": attention_mask}
        given |= {"decoder_input_ids": decoder_input_ids, "decoder_attention_mask": torch.ones_like(decoder_input_ids)}
        probabilities = [model(**given, use_cache=False).logits.softmax(-1) for model in self.models]
        return Seq2SeqLMOutput(logits=(sum(probabilities) / len(probabilities)).log())


@ensembles
def test_greedy_search_by_hand(names: tuple[str, ...]) -> None:
    """Row by row, without padding, and unlike the first one's own."""
    models = [member(name) for name in names]
    config, ends = models[0].config, models[0].generation_config.eos_token_id
    inputs = sources(config)
    expected = []
    for ids, mask in zip(*inputs.values(), strict=True):
        row = [config.decoder_start_token_id]
        while len(row) <= LENGTH and not (len(row) > 1 and row[-1] in ends):
            total = torch.zeros(config.vocab_size, dtype=torch.float64)
            for model in models:
                with torch.no_grad():
                    prefix = torch.tensor([row])
                    logits = model(
                        ids[None, : mask.sum()],
                        decoder_input_ids=prefix,
                        decoder_attention_mask=torch.ones_like(prefix),
                    ).logits[0, -1]
                total += logits.softmax(-1)
            row.append(int(total.argmax()))
        expected.append(row)
    found = write(models, inputs, max_new_tokens=LENGTH)
    assert [ids[: len(row)].tolist() for ids, row in zip(found, expected, strict=True)] == expected
    assert len(set(map(len, expected))) > 1  # some end before others
    assert all((ids[len(row) :] == config.pad_token_id).all() for ids, row in zip(found, expected, strict=True))
    assert all(model.generate(**inputs, max_new_tokens=LENGTH).tolist() != found.tolist() for model in models)


@modes
@ensembles
def test_every_mode_as_of_one_model(names: tuple[str, ...], mode: dict[str, Any]) -> None:
    """Tokens, and the scores of beams; the recurrent and fast loops of the first against transformers' own."""
    models = [member(name) for name in names]
    inputs = sources(models[0].config)
    found = write(models, inputs, max_new_tokens=LENGTH, **mode)
    torch.manual_seed(0)
    expected = Mean(models).generate(**inputs, max_new_tokens=LENGTH, use_cache=False, **mode)
    if "output_scores" in mode:
        torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, rtol=1e-5, atol=1e-5)
        for ours, theirs in zip(found.scores, expected.scores, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        found, expected = found.sequences, expected.sequences
    end, pad = models[0].generation_config.eos_token_id, models[0].config.pad_token_id
    assert pad_after_end(found, end, pad).tolist() == pad_after_end(expected, end, pad).tolist()


@modes
@pytest.mark.parametrize("name", ["dragoman", "recurrent", "bart", "t5"])
def test_with_itself_as_alone(name: str, mode: dict[str, Any]) -> None:
    """What generate() forbids stays forbidden, and the rest is a distribution."""
    model = member(name)
    inputs = sources(model.config)
    options = mode | {"output_scores": False, "return_dict_in_generate": False, "max_new_tokens": LENGTH}
    pad = model.config.pad_token_id
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id = pad
    # a start, and a pad token that somebody wrote
    start = {"decoder_input_ids": torch.full((5, 2), pad), "decoder_attention_mask": torch.ones(5, 2).long()}
    for asked in ({}, start, {"suppress_tokens": [0, 7], "no_repeat_ngram_size": 1, "renormalize_logits": True}):
        torch.manual_seed(0)
        expected = model.generate(**inputs, **options, **asked)
        asked.pop("renormalize_logits", None)
        assert write([model] * 3, inputs, **options, **asked).tolist() == expected.tolist()


@modes
def test_the_fast_loops(mode: dict[str, Any], runs: Runs) -> None:  # noqa: F811
    """They run, leave finished sources out, and give what the stock ones give."""
    models = [member("dragoman"), member("another dragoman")]
    inputs = sources(models[0].config)
    together = LogitsProcessorList([EnsembleLogitsProcessor(models, **inputs)])
    runs.same(models[0], **inputs, logits_processor=together, max_new_tokens=LENGTH, **mode)


def test_scores_are_probabilities_of_what_is_allowed() -> None:
    models = [member("dragoman"), member("recurrent")]
    inputs = sources(models[0].config)
    size, prefix = models[0].config.vocab_size, torch.full((10, 1), models[0].config.decoder_start_token_id)
    logits = torch.randn(10, size, generator=torch.Generator().manual_seed(0))  # two rows a source
    logits[:, 5:8] = -math.inf
    with torch.no_grad():
        other = models[1](**inputs, decoder_input_ids=prefix[:5]).logits[:, -1].repeat_interleave(2, 0).float()
    other[:, 5:8] = -math.inf
    together = EnsembleLogitsProcessor(models, **inputs)
    expected = (logits.softmax(-1) + other.softmax(-1)) / 2
    for scores in (logits, logits.log_softmax(-1)):  # of greedy search, of beam search
        found = together(prefix, scores)
        torch.testing.assert_close(found.exp(), expected)
        assert found.dtype == torch.float32
    logits[3] = -math.inf  # a beam for which nothing is left
    torch.testing.assert_close(together(prefix, logits)[3], logits[3])


def test_without_a_mask_padding_is_read_off_the_ids() -> None:
    model, inputs = prepare(family("dragoman")[0].config)
    ids = inputs["input_ids"]
    assert bool((ids == model.config.pad_token_id).any())
    found, expected = (
        model.generate(ids, logits_processor=LogitsProcessorList([together]), max_new_tokens=6).tolist()
        for together in (
            EnsembleLogitsProcessor([model, model], ids),
            EnsembleLogitsProcessor([model, model], **inputs),
        )
    )
    assert found == expected


def test_what_cannot_write_together() -> None:
    model, inputs = prepare(family("dragoman")[0].config)
    with pytest.raises(ValueError, match="the list is empty"):
        EnsembleLogitsProcessor([], **inputs)
    for name, value in (("vocab_size", 9), ("source_vocab_size", 9), ("pad_token_id", 4), ("eos_token_id", 5)):
        other = member("dragoman")
        ours = getattr(other.config, name)
        setattr(other.config, name, value)
        with pytest.raises(ValueError, match=rf"Models 0 and 2 .* differ in their {name} \({ours} and {value}\)"):
            EnsembleLogitsProcessor([model, model, other], **inputs)
    with pytest.raises(ValueError, match=r"differ in their decoder_start_token_id \(1 and 0\)"):
        EnsembleLogitsProcessor([model, member("t5")], **inputs)
    with pytest.raises(ValueError, match="Model 0 of the ensemble, GPT2LMHeadModel, is no encoder-decoder"):
        EnsembleLogitsProcessor([GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1))], **inputs)
    together = LogitsProcessorList([EnsembleLogitsProcessor([model, model], **inputs)])  # of four rows
    for rows in (3, 5):
        with pytest.raises(ValueError, match=rf"over 4 sources cannot go on with {rows} rows"):
            model.generate(**sources(model.config, (2,) * rows), logits_processor=together)
