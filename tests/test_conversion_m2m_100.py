"""The weights of M2M100 and NLLB, in and out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForSeq2SeqLM, M2M100Config, M2M100ForConditionalGeneration, NllbMoeConfig

from conversion_checks import check_every_key_counts, check_fine_tuning, check_permuted_heads_are_seen
from dragoman.conversion import ConversionError, convert_from, convert_to
from dragoman.conversion.folders import convert_folder
from ladder import SIDES, assert_same_weights, climb, go_around, ragged, randomise
from old_folders import rewrite
from support import batch, build, relative_error, tiny

VARIANTS = {
    "as published": {},
    "unscaled": {"scale_embedding": False, "activation_function": "gelu"},
    "swish": {"activation_function": "swish"},
    "padding 5": {"pad_token_id": 5},
    "padding 0": {"pad_token_id": 0, "bos_token_id": 1},
    "untied": {"tie_word_embeddings": False},
}


def m2m_100(**options: object) -> M2M100ForConditionalGeneration:
    sizes = {"vocab_size": 61, **SIDES, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}
    return randomise(M2M100ForConditionalGeneration(M2M100Config(**{**sizes, **options})))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_ladder(variant: str, side: str) -> None:
    theirs = m2m_100(**VARIANTS[variant])
    climb(theirs, go_around(theirs), side)


@pytest.mark.parametrize("variant", ["as published", "untied"])
def test_every_key_counts(variant: str, tmp_path: Path) -> None:
    check_every_key_counts(m2m_100(**VARIANTS[variant]), tmp_path)


def test_permuted_heads_are_seen() -> None:
    check_permuted_heads_are_seen(m2m_100())


@pytest.mark.parametrize("variant", ["as published", "untied"])
def test_fine_tuning(variant: str, tmp_path: Path) -> None:
    check_fine_tuning(m2m_100(dropout=0.0, attention_dropout=0.0, **VARIANTS[variant]), tmp_path)


TABLES = ("model.encoder.embed_positions.weights", "model.decoder.embed_positions.weights")
OLD = {  # as published; the first three belong to generate(), the rest says nothing to the in-tree class
    "max_length": 14,
    "num_beams": 5,
    "early_stopping": True,
    "gradient_checkpointing": False,
    "num_hidden_layers": 3,
    "transformers_version": "4.4.0.dev0",
}


def test_an_old_folder(tmp_path: Path) -> None:
    """All names of the embeddings, tables of positions, generation settings in config.json, a language code."""
    theirs = m2m_100()
    theirs.save_pretrained(tmp_path / "theirs")
    names = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
    copies = dict.fromkeys(names, theirs.model.shared.weight)
    table = theirs.model.encoder.embed_positions.weights
    rewrite(tmp_path / "theirs", copies | dict.fromkeys(TABLES, table), **OLD)
    theirs, ours = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "theirs"), convert_from(tmp_path / "theirs")
    assert_same_weights(ours, convert_from(theirs))
    assert ours.generation_config.to_dict() == theirs.generation_config.to_dict()
    assert ours.generation_config.num_beams == 5

    ours.save_pretrained(tmp_path / "ours")
    ours = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours")
    back = convert_to(ours, "m2m_100")
    back.save_pretrained(tmp_path / "back")
    back = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "back")
    assert_same_weights(back, theirs)
    inputs = ragged(theirs)
    source = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    expected = theirs.generate(**source, forced_bos_token_id=17)
    assert expected[:, 1].tolist() == [17] * 4
    for model in (ours, back):
        torch.testing.assert_close(model.generate(**source, forced_bos_token_id=17), expected)

    rewrite(tmp_path / "theirs", {TABLES[1]: table.roll(1, dims=1)})
    with pytest.raises(ConversionError, match=r"model\.decoder\.embed_positions\.weights holds no sinusoids"):
        convert_from(tmp_path / "theirs")


def test_a_folder_on_disk_keeps_its_language(tmp_path: Path) -> None:
    theirs = m2m_100(vocab_size=97)
    theirs.generation_config.forced_bos_token_id = 17
    theirs.generation_config.eos_token_id = [2, 9]
    theirs.save_pretrained(tmp_path / "theirs")
    assert convert_folder(tmp_path / "theirs", tmp_path / "ours").comparison.holds
    assert convert_folder(tmp_path / "ours", tmp_path / "back", "m2m_100").comparison.holds
    for name in ("ours", "back"):
        settings = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / name).generation_config
        assert (settings.forced_bos_token_id, settings.eos_token_id) == (17, [2, 9])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_shards_of_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    m2m_100().to(dtype).save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    theirs, ours = AutoModelForSeq2SeqLM.from_pretrained(tmp_path), convert_from(tmp_path)
    assert ours.dtype == theirs.dtype == dtype
    assert_same_weights(convert_to(ours, "m2m_100"), theirs)
    inputs = ragged(theirs)
    kept = inputs["decoder_attention_mask"].bool()
    found, expected = (model(**inputs).logits[kept].float() for model in (ours, theirs))
    assert relative_error(found, expected) < 10 * torch.finfo(dtype).eps


def test_beyond_the_table() -> None:
    """In-tree it grows; ours raises, and says how to go further."""
    theirs = m2m_100(max_position_embeddings=8)
    ours, inputs = convert_from(theirs), ragged(theirs)
    theirs(**inputs)
    with pytest.raises(ValueError, match="does not fit max_position_embeddings = 8"):
        ours(**inputs)


def test_a_target_prefix_padded_on_the_left() -> None:
    """In-tree a token of it stands elsewhere once a cache is in use; ours computes the same with and without."""
    theirs = m2m_100()
    ours, inputs = convert_from(theirs), ragged(theirs, "left")
    source = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    ids, mask = inputs["decoder_input_ids"], inputs["decoder_attention_mask"]
    expected = theirs(**source, decoder_input_ids=ids, decoder_attention_mask=mask).logits[:, -1]

    def step_by_step(model: Any) -> torch.Tensor:
        prefix = {"decoder_input_ids": ids[:, :-1], "decoder_attention_mask": mask[:, :-1]}
        cache = model(**source, **prefix, use_cache=True).past_key_values
        last = {"decoder_input_ids": ids[:, -1:], "decoder_attention_mask": mask}
        return model(**source, **last, past_key_values=cache).logits[:, -1]

    assert relative_error(step_by_step(ours), expected) < 1e-5
    assert relative_error(step_by_step(theirs), expected) > 0.01


ENDPOINT = {"sinusoidal_endpoint": True, "attention_bias": True, "position_encoding": "sinusoidal"}


def test_a_model_of_ours_that_m2m_100_can_say() -> None:
    config = tiny(norm_type="layer_norm", position_offset=1, **ENDPOINT)
    ours = build(config)
    theirs = convert_to(ours, "m2m_100")
    assert (theirs.config.encoder_layerdrop, theirs.config.decoder_layerdrop) == (0.0, 0.0)
    inputs = batch(config)
    inputs["decoder_input_ids"] = ours.prepare_decoder_input_ids_from_labels(inputs["labels"])
    kept = inputs["labels"] != -100
    assert relative_error(ours(**inputs).logits[kept], theirs(**inputs).logits[kept]) < 1e-5
    assert_same_weights(convert_from(theirs), ours)


def test_what_cannot_be_said_is_said_together() -> None:
    ours = build(tiny(norm_type="rms_norm", position_offset=2, logits_bias=True, decoder_start_token_id=0, **ENDPOINT))
    with pytest.raises(ConversionError) as error:
        convert_to(ours, "m2m_100")
    reasons = ("norm_type='rms_norm'", "position_offset=2; m2m_100 has pad_token_id + 1 = 1", "logits_bias=True")
    for reason in (*reasons, "decoder_start_token_id and pad_token_id are both 0"):
        assert any(problem.startswith(reason) for problem in error.value.problems), reason
    theirs = m2m_100(decoder_start_token_id=1, activation_function="tanh")
    with pytest.raises(ConversionError) as error:
        convert_from(theirs)
    assert "decoder_start_token_id and pad_token_id are both 1" in str(error.value)
    assert "hidden_act" in str(error.value)


def test_mixtures_of_experts_are_refused(tmp_path: Path) -> None:
    NllbMoeConfig().save_pretrained(tmp_path)
    save_file({"lm_head.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(ConversionError, match="'nllb-moe': its feed-forward layers are mixtures of experts"):
        convert_folder(tmp_path, tmp_path / "ours")
