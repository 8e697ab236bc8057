"""What is not converted, said in one error."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    BartForCausalLM,
    BartForConditionalGeneration,
    BartForSequenceClassification,
    BartModel,
    MBartForConditionalGeneration,
)

from bart_models import tiny
from dragoman import (
    DragomanEncoderModel,
    DragomanForSequenceClassification,
    DragomanModel,
    DragomanRecurrentConfig,
    quantize,
)
from dragoman.conversion import ConversionError, convert_from, convert_to
from dragoman.conversion.families import Family
from dragoman.conversion.folders import convert_folder
from dragoman.conversion.registry import FAMILIES
from ladder import assert_same_weights
from support import batch, build, relative_error
from support import tiny as our_config

BIASED = {"attention_bias": True, "feed_forward_bias": True, "scale_embedding": False}
OF_BART = {"position_encoding": "learned", "position_offset": 2, "norm_placement": "post", "embedding_norm": True}
EXPRESSIBLE: dict[str, dict[str, Any]] = {
    "bart": OF_BART,
    "mbart": OF_BART | {"norm_placement": "pre", "final_norm": True},
    "pegasus": {"position_encoding": "sinusoidal"},
    "blenderbot": {"position_encoding": "learned"},
    "blenderbot-small": OF_BART | {"position_offset": 0, "norm_before_positions": True},
}


@pytest.mark.parametrize("other", [BartModel, BartForSequenceClassification, BartForCausalLM])
def test_a_class_with_another_head(other: Any, tmp_path: Path) -> None:
    model = other(tiny("Bart").config)
    message = rf"it is a {other.__name__}; only BartForConditionalGeneration is converted"
    with pytest.raises(ConversionError, match=message):
        convert_from(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(ConversionError, match=message):
        convert_from(tmp_path)


def test_the_remedy(tmp_path: Path) -> None:
    """A folder of the base model has no head of its own: it is the embeddings."""
    theirs = tiny("Bart")
    theirs.model.save_pretrained(tmp_path)
    loaded = BartForConditionalGeneration.from_pretrained(tmp_path)
    theirs.final_logits_bias.zero_()
    assert_same_weights(convert_from(loaded), convert_from(theirs))


def test_a_subclass_is_one_of_the_family() -> None:
    class Own(MBartForConditionalGeneration):
        pass

    convert_from(Own(tiny("MBart").config))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_names_of_other_classes(family: Family) -> None:
    assert not family.is_other_class(family.architecture)
    assert family.is_other_class(
        family.architecture.replace("MTModel", "Model").replace("ForConditionalGeneration", "Model")
    )
    for name in ("AutoModel", "GPT2Model", "pipeline", "T5WithLMHeadModel", ""):
        assert not family.is_other_class(name)


def test_all_wrong_fields_are_named_together() -> None:
    theirs = tiny("Bart", activation_function="tanh", eos_token_id=None)
    with pytest.raises(ConversionError) as error:
        convert_from(theirs)
    assert len(error.value.problems) == 2
    for text in ("'hidden_act'", "tanh", "'eos_token_id'"):
        assert text in str(error.value)
    with pytest.raises(ConversionError, match="eos_token_id and pad_token_id are both 1"):
        convert_from(tiny("Bart", eos_token_id=1))


@pytest.mark.parametrize("family", EXPRESSIBLE)
def test_a_model_of_ours_that_the_family_can_say(family: str, tmp_path: Path) -> None:
    config = our_config(**{**BIASED, **EXPRESSIBLE[family]}, logits_bias=True)
    ours = build(config)
    theirs = convert_to(ours, family)
    theirs.save_pretrained(tmp_path)
    theirs = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert theirs.config.model_type == family
    inputs = batch(config)
    inputs["decoder_input_ids"] = ours.prepare_decoder_input_ids_from_labels(inputs["labels"])
    kept = inputs["labels"] != -100
    assert relative_error(ours(**inputs).logits[kept], theirs(**inputs).logits[kept]) < 1e-5
    assert_same_weights(convert_from(theirs), ours)
    assert_same_weights(convert_from(tmp_path), ours)


@pytest.mark.parametrize("family", EXPRESSIBLE)
def test_a_model_of_ours_that_it_cannot(family: str) -> None:
    """Every reason is named."""
    modern = {
        "position_encoding": "rotary",
        "norm_type": "rms_norm",
        "gated_feed_forward": True,
        "feed_forward_bias": False,
        "attention_scale": 1.0,
        "logits_scale": 0.5,
        "norm_eps": 1e-6,
        "head_dim": 10,
        "encoder_num_key_value_heads": 2,
        "share_embeddings": False,
        "source_vocab_size": 29,
    }
    with pytest.raises(ConversionError) as error:
        convert_to(build(our_config(**modern)), family)
    for name in (*modern.keys() - {"share_embeddings"}, "norm_bias", "attention_bias", "(share_embeddings, tie_word_"):
        assert any(problem.startswith(name) for problem in error.value.problems), name


def test_what_none_stands_for_may_be_said() -> None:
    bart = {**BIASED, **OF_BART}
    said = {"head_dim": 8, "attention_scale": 8**-0.5, "source_vocab_size": our_config().vocab_size}
    for name, value in said.items():
        config = our_config(**bart, **{name: value})
        assert config.head_dim_of(config.encoder_num_attention_heads) == 8
        assert_same_weights(convert_from(convert_to(build(config), "bart")), build(our_config(**bart)))
    other = {"encoder_num_attention_heads": 2, "head_dim": 8}  # None stands for 16 there
    with pytest.raises(ConversionError, match="head_dim=8; bart has None only"):
        convert_to(build(our_config(**bart, **other)), "bart")


def test_what_is_no_folder(tmp_path: Path) -> None:
    for convert in (convert_from, lambda name: convert_folder(Path(name), tmp_path / "ours")):
        with pytest.raises(NotADirectoryError, match=r"opus-mt-en-de is not a folder .* fetch it with `hf download`"):
            convert("Helsinki-NLP/opus-mt-en-de")


def test_the_copy_is_a_copy() -> None:
    """Neither weights nor generation settings of one model reach the other."""
    theirs = tiny("Bart")
    ours = convert_from(theirs)
    ours.generation_config.num_beams = 7
    with torch.no_grad():
        ours.lm_head.weight.zero_()
    assert theirs.generation_config.num_beams != 7
    assert theirs.lm_head.weight.any()
    back = convert_to(ours, "bart")
    back.generation_config.num_beams = 8
    assert ours.generation_config.num_beams == 7


@pytest.mark.parametrize("kind", [DragomanForSequenceClassification, DragomanModel, DragomanEncoderModel])
def test_classes_of_ours_that_write_no_text(kind: Any, tmp_path: Path) -> None:
    model = kind(our_config(**OF_BART, **BIASED))
    message = f"it is a {kind.__name__}; only DragomanForConditionalGeneration is converted"
    with pytest.raises(ConversionError, match=message):
        convert_to(model, "bart")
    model.save_pretrained(tmp_path / "ours")
    for family in ("bart", "ctranslate2"):
        with pytest.raises(ConversionError, match=message) as raised:
            convert_folder(tmp_path / "ours", tmp_path / "theirs", family)
        assert str(raised.value).count("Cannot convert") == 1
    assert not (tmp_path / "theirs").exists()


def test_int8(tmp_path: Path) -> None:
    model = quantize(build(our_config(**OF_BART, **BIASED)))
    model.save_pretrained(tmp_path)
    for source in (model, tmp_path):
        with pytest.raises(ConversionError, match=r"its weights are int8: convert what model\.dequantize\(\) gives"):
            convert_to(source, "bart")


@pytest.mark.parametrize("family", ["dragoman", "bart", "ctranslate2"])
def test_recurrent_models_have_no_counterpart(family: str, tmp_path: Path) -> None:
    config = DragomanRecurrentConfig(vocab_size=20, hidden_size=8)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / "gru")
    with pytest.raises(ConversionError, match="gru is recurrent, and no family has such a model"):
        convert_folder(tmp_path / "gru", tmp_path / "other", family)
    assert not (tmp_path / "other").exists()


def test_other_families_reach_the_engine_through_ours(tmp_path: Path) -> None:
    tiny("Bart").save_pretrained(tmp_path / "bart")
    with pytest.raises(ConversionError, match="bart goes to Dragoman first, and from there to ctranslate2"):
        convert_folder(tmp_path / "bart", tmp_path / "engine", "ctranslate2")
    assert not (tmp_path / "engine").exists()
