"""The weights of FSMT, in and out."""

import copy
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, FSMTConfig, FSMTForConditionalGeneration
from transformers.models.fsmt import modeling_fsmt

import ladder
from conversion_checks import check_every_key_counts, check_fine_tuning, check_permuted_heads_are_seen
from dragoman.conversion import ConversionError, convert_from, convert_to
from dragoman.conversion.folders import convert_folder
from ladder import SIDES, assert_same_weights, climb, go_around, ragged, randomise
from old_folders import rewrite
from support import batch, build, relative_error, tiny

VARIANTS = {
    "two vocabularies": {},
    "one vocabulary": {"src_vocab_size": 57},
    "tied": {"src_vocab_size": 57, "tie_word_embeddings": True},
    "unscaled": {"scale_embedding": False, "activation_function": "gelu"},
    "swish": {"activation_function": "swish"},
    "padding 5": {"pad_token_id": 5},
}


def fsmt(std: float = 0.2, **options: object) -> FSMTForConditionalGeneration:
    """At a deviation of 0.25 some gradients round by more than 1e-5: see the test in float64."""
    sizes = {"src_vocab_size": 61, "tgt_vocab_size": 57, **SIDES}
    return randomise(FSMTForConditionalGeneration(FSMTConfig(**{**sizes, **options})), std=std)


def with_trained_positions(theirs: FSMTForConditionalGeneration) -> FSMTForConditionalGeneration:
    generator = torch.Generator().manual_seed(2)
    for stack in (theirs.model.encoder, theirs.model.decoder):
        table = stack.embed_positions.weight.detach()
        table[2:].copy_(0.5 * torch.randn(table[2:].shape, generator=generator))
    return theirs


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_ladder(variant: str, side: str) -> None:
    theirs = fsmt(**VARIANTS[variant])
    climb(theirs, go_around(theirs), side, use_cache=False)


@pytest.mark.parametrize("variant", ["two vocabularies", "tied", "unscaled"])
def test_the_ladder_in_float64(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In-tree the number that hides the future does not fit float64."""
    monkeypatch.setattr(modeling_fsmt, "fill_with_neg_inf", lambda t: torch.full_like(t, torch.finfo(t.dtype).min))
    monkeypatch.setattr(ladder, "TOLERANCE", 1e-12)
    theirs = fsmt(std=0.25, **VARIANTS[variant]).double()
    ours = convert_from(theirs)
    assert ours.dtype == torch.float64
    climb(theirs, ours, use_cache=False)


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_ladder_with_trained_positions(side: str) -> None:
    theirs = with_trained_positions(fsmt())
    ours = go_around(theirs)
    assert ours.config.position_encoding == "learned"
    climb(theirs, ours, side, use_cache=False)


@pytest.mark.parametrize("variant", ["two vocabularies", "tied"])
def test_every_key_counts(variant: str, tmp_path: Path) -> None:
    check_every_key_counts(fsmt(**VARIANTS[variant]), tmp_path)


def test_permuted_heads_are_seen() -> None:
    check_permuted_heads_are_seen(fsmt(), use_cache=False)


@pytest.mark.parametrize("variant", ["two vocabularies", "tied"])
def test_fine_tuning(variant: str, tmp_path: Path) -> None:
    """In-tree positions are not to be trained, which they are."""
    check_fine_tuning(fsmt(dropout=0.0, **VARIANTS[variant]), tmp_path)


def test_fine_tuning_with_trained_positions(tmp_path: Path) -> None:
    check_fine_tuning(with_trained_positions(fsmt(dropout=0.0)), tmp_path)


EMBEDDINGS, PROJECTION = "model.decoder.embed_tokens.weight", "model.decoder.output_projection.weight"
TABLES = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")
OLD = {  # as published
    "num_beams": 3,
    "length_penalty": 1.15,
    "early_stopping": True,
    "max_length": 14,
    "decoder": {"bos_token_id": 2, "model_type": "fsmt_decoder", "vocab_size": 57},
    "add_bias_logits": False,
    "num_hidden_layers": 3,
    "langs": ["ru", "en"],
    "transformers_version": None,
}


@pytest.mark.parametrize("missing", [EMBEDDINGS, PROJECTION])
def test_an_old_folder(missing: str, tmp_path: Path) -> None:
    """No tables, one tensor for head and decoder input, and generation settings in config.json."""
    published = fsmt()
    with torch.no_grad():
        published.model.decoder.output_projection.weight.copy_(published.model.decoder.embed_tokens.weight)
    published.save_pretrained(tmp_path / "theirs")
    rewrite(tmp_path / "theirs", remove=(missing, *TABLES), **OLD)
    ours = convert_from(tmp_path / "theirs")
    assert_same_weights(ours, convert_from(published))
    assert (
        ours.generation_config.to_dict()
        == AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "theirs").generation_config.to_dict()
    )

    ours.save_pretrained(tmp_path / "ours")
    ours = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours")
    convert_to(ours, "fsmt").save_pretrained(tmp_path / "back")
    back = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "back")
    assert_same_weights(back, published)
    inputs = ragged(published)
    source = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    options = {"num_beams": 3, "length_penalty": 1.15, "early_stopping": True, "max_length": 14}
    expected = published.generate(**source, **options)
    for model in (ours, back):
        assert {name: getattr(model.generation_config, name) for name in options} == options
        torch.testing.assert_close(model.generate(**source), expected)

    rewrite(tmp_path / "theirs", transformers_version="5.23.0")
    with pytest.raises(ConversionError, match=rf"there is no {missing} for our"):
        convert_from(tmp_path / "theirs")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_shards_of_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    fsmt().to(dtype).save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    theirs, ours = AutoModelForSeq2SeqLM.from_pretrained(tmp_path), convert_from(tmp_path)
    assert ours.dtype == theirs.dtype == dtype
    assert ours.config.position_encoding == "sinusoidal"
    assert_same_weights(convert_to(ours, "fsmt"), theirs)
    inputs = ragged(theirs)
    kept = inputs["decoder_attention_mask"].bool()
    found, expected = (model(**inputs).logits[kept].float() for model in (ours, theirs))
    assert relative_error(found, expected) < 10 * torch.finfo(dtype).eps


def test_a_folder_on_disk(tmp_path: Path) -> None:
    theirs = fsmt(src_vocab_size=101, tgt_vocab_size=97)
    theirs.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "tokenizer_config.json").write_text('{"langs": ["ru", "en"]}')
    assert convert_folder(tmp_path / "theirs", tmp_path / "ours").comparison.holds
    fields = json.loads((tmp_path / "ours" / "tokenizer_config.json").read_text())
    assert fields == {"langs": ["ru", "en"], "tokenizer_class": "FSMTTokenizer"}
    assert convert_folder(tmp_path / "ours", tmp_path / "back", "fsmt").comparison.holds
    back = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "back")
    assert_same_weights(back, theirs)
    assert back.generation_config.num_beams == theirs.generation_config.num_beams == 5


def test_the_start_of_a_target() -> None:
    """The end token, which in-tree takes from the labels, and overwrites what it was given."""
    theirs = fsmt()
    labels = torch.tensor([[9, 8, 7, 2, -100], [5, 2, -100, -100, -100]])
    kept, given = labels != -100, copy.deepcopy(labels)
    found = convert_from(theirs).prepare_decoder_input_ids_from_labels(labels)
    expected = theirs.prepare_decoder_input_ids_from_labels(given)
    torch.testing.assert_close(found[kept], expected[kept])
    assert (labels == -100).any()
    assert not (given == -100).any()


def test_in_tree_a_cache_does_without_the_mask_of_the_future() -> None:
    theirs = fsmt()
    ours, inputs = convert_from(theirs), ragged(theirs)
    kept = inputs["decoder_attention_mask"].bool()
    del inputs["labels"]
    found = ours(**inputs, use_cache=True).logits[kept]
    assert relative_error(found, theirs(**inputs, use_cache=False).logits[kept]) < 1e-5
    assert relative_error(found, theirs(**inputs, use_cache=True).logits[kept]) > 0.1


OF_FSMT = {
    "norm_type": "layer_norm",
    "norm_placement": "post",
    "attention_bias": True,
    "position_offset": 1,
    "share_embeddings": False,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize("scheme", [("sinusoidal", True), ("learned", False)])
def test_a_model_of_ours_that_fsmt_can_say(scheme: tuple[str, bool]) -> None:
    config = tiny(position_encoding=scheme[0], sinusoidal_endpoint=scheme[1], source_vocab_size=29, **OF_FSMT)
    ours = build(config)
    theirs = convert_to(ours, "fsmt")
    inputs = batch(config)
    inputs["decoder_input_ids"] = ours.prepare_decoder_input_ids_from_labels(inputs["labels"])
    kept = inputs["labels"] != -100
    assert relative_error(ours(**inputs).logits[kept], theirs(**inputs).logits[kept]) < 1e-5
    again = convert_from(theirs)
    assert_same_weights(again, ours)
    assert again.config.position_encoding == scheme[0]


def test_what_cannot_be_said_is_said_together() -> None:
    options = OF_FSMT | {"norm_placement": "pre", "position_encoding": "sinusoidal", "tie_word_embeddings": True}
    with pytest.raises(ConversionError) as error:
        convert_to(build(tiny(**options, logits_bias=True)), "fsmt")
    reasons = ("norm_placement='pre'", "final_norm=True", "logits_bias=True", "(share_embeddings, tie_word_embeddings)")
    for reason in (*reasons, "(position_encoding, sinusoidal_endpoint)=('sinusoidal', False); fsmt has"):
        assert any(problem.startswith(reason) for problem in error.value.problems), reason
