"""A wrong configuration raises where it is written, and says what to change."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from dragoman.configuration import base_configuration
from dragoman.configuration.validation import is_newer
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig
from transformers.testing_utils import CaptureLogger

from dragoman import (
    DragomanConfig,
    DragomanForConditionalGeneration,
    DragomanRecurrentConfig,
    DragomanTokenizer,
    presets,
)
from support import build, tiny


@pytest.mark.parametrize("name", list(presets.PRESETS))
def test_presets_survive_their_file(name: str, tmp_path: Path) -> None:
    config = presets.PRESETS[name](vocab_size=123)
    assert config.vocab_size == 123
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "dragoman"
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is DragomanConfig
    assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}


@pytest.mark.parametrize("kind", [DragomanConfig, DragomanRecurrentConfig])
def test_a_dictionary_is_a_way_back(kind: Any) -> None:
    for config in (kind(), kind(vocab_size=77, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1})):
        again = kind.from_dict(config.to_dict())
        assert again.to_dict() == config.to_dict()
        assert again.id2label == config.id2label


def test_what_is_derived_from_a_configuration_shares_nothing_with_it() -> None:
    tokenizer = DragomanTokenizer.train(["a dog"], vocab_size=300)
    base = tiny(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4})
    derived = DragomanConfig.from_tokenizer(tokenizer, preset=base)
    assert derived.rope_parameters == base.rope_parameters
    derived.rope_parameters["factor"] = 4.0
    assert base.rope_parameters["factor"] == 2.0


def test_bare_is_the_base_model() -> None:
    assert DragomanConfig().to_dict() == presets.transformer_base().to_dict()


def test_presets_are_of_the_size_they_claim() -> None:
    """The published table of each; the modern one is about as large as the base model."""
    sizes = {}
    for name, preset in presets.PRESETS.items():
        config = preset()
        layers = config.encoder_num_hidden_layers, config.decoder_num_hidden_layers
        heads = config.encoder_num_attention_heads, config.decoder_num_attention_heads
        assert config.encoder_intermediate_size == config.decoder_intermediate_size
        sizes[name] = (*layers, config.hidden_size, config.decoder_intermediate_size, *heads, config.dropout)
    assert sizes == {
        "transformer_base": (6, 6, 512, 2048, 8, 8, 0.1),
        "transformer_big": (6, 6, 1024, 4096, 16, 16, 0.3),
        "deep_encoder": (12, 1, 512, 2048, 8, 8, 0.1),
        "multi30k_tiny": (4, 4, 128, 256, 4, 4, 0.3),
        "modern_base": (6, 6, 512, 1408, 8, 8, 0.1),
        "small": (3, 3, 256, 1024, 4, 4, 0.1),
        "tiny": (2, 2, 64, 128, 4, 4, 0.0),
    }
    with torch.device("meta"):
        base, big, modern = (
            DragomanForConditionalGeneration(preset()).num_parameters()
            for preset in (presets.transformer_base, presets.transformer_big, presets.modern_base)
        )
    assert (base, big) == pytest.approx((65e6, 213e6), rel=0.04)
    assert modern == pytest.approx(base, rel=0.08)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hiden_size": 64}, "no field 'hiden_size'. Did you mean hidden_size"),
        ({"d_model": 64}, "reading only; set hidden_size"),
        ({"num_hidden_layers": 3}, "set encoder_num_hidden_layers and decoder_num_hidden_layers"),
        ({"num_beams": 4}, "generation setting: set it in model.generation_config"),
        ({"rope_theta": 5.0}, "belongs into rope_parameters"),
        ({"nonsense": 5.0}, "Its fields are .*hidden_size"),
        ({"hidden_size": "64"}, "hidden_size.*expected int, got str"),
        ({"hidden_size": True}, "hidden_size.*expected int, got bool"),
        ({"dropout": "much"}, "dropout.*expected float"),
        ({"norm_type": "batch_norm"}, r"norm_type.*layer_norm.*rms_norm"),
        ({"position_encoding": "absolute"}, r"position_encoding.*sinusoidal.*rotary"),
        ({"hidden_act": "step"}, r"hidden_act.*relu"),
        ({"encoder_num_hidden_layers": 0}, "encoder_num_hidden_layers must be at least 1, got 0"),
        ({"encoder_num_attention_heads": 7}, "hidden_size 32 is not a multiple of encoder_num_attention_heads 7"),
        ({"decoder_num_key_value_heads": 3}, "decoder_num_key_value_heads 3 does not divide decoder_num_attention_heads 4"),
        ({"dropout": 1.0}, r"dropout is a probability in \[0, 1\), got 1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing is a probability"),
        ({"norm_eps": 0.0}, "norm_eps must be a positive number"),
        ({"attention_scale": float("inf")}, "attention_scale must be a positive number"),
        ({"norm_type": "rms_norm", "norm_bias": True}, "norm_bias=True needs norm_type='layer_norm'"),
        ({"pad_token_id": None}, "pad_token_id.*expected int, got NoneType"),
        ({"eos_token_id": 37}, "eos_token_id 37 is outside the vocabulary, which has ids 0 to 36"),
        ({"decoder_start_token_id": -1}, "decoder_start_token_id -1 is outside"),
        ({"pad_token_id": 30, "source_vocab_size": 20, "share_embeddings": False}, "pad_token_id 30 is outside .* 0 to 19"),
        ({"eos_token_id": 0}, "eos_token_id and pad_token_id are both 0"),
        ({"source_vocab_size": 20}, "share_embeddings=True needs one vocabulary.*set share_embeddings=False"),
        ({"position_encoding": "sinusoidal", "head_dim": 8, "hidden_size": 33}, "needs an even hidden_size"),
        ({"head_dim": 7}, "head_dim must be even, got 7"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type must be one of default, linear"),
        ({"rope_parameters": {"rope_type": "linear"}}, "Missing required keys in `rope_parameters` .*factor"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor is not supported"),
        ({"position_encoding": "alibi", "rope_parameters": {"rope_theta": 1e4}}, "belongs to position_encoding='rotary'"),
        ({"position_encoding": "rotary", "position_offset": 2}, "position_offset counts rows of a table"),
        ({"position_encoding": "learned", "sinusoidal_endpoint": True}, "sinusoidal_endpoint belongs to .* got 'learned'"),
        ({"norm_before_positions": True}, "set embedding_norm=True"),
        ({"position_encoding": "learned", "position_offset": -1}, "position_offset must be at least 0, got -1"),
        ({"position_encoding": "relative", "relative_attention_num_buckets": 3}, "at least 4 .* got 3"),
        ({"position_encoding": "relative", "relative_attention_max_distance": 4}, "max_distance 4 must exceed"),
        ({"relative_attention_per_layer": True}, "relative_attention_per_layer belongs to"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder must be True"),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_values(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, StrictDataclassError), match=f"(?s){message}"):
        tiny(**wrong)


@pytest.mark.parametrize(
    ("version", "than", "newer"),
    [("0.2.0", "0.1.9", True), ("0.1.9", "0.1.0", False), ("0.10", "0.9", True), ("1.0.dev3", "0.9", True),
     ("0.9.0", "1.0.0", False), ("", "0.1.0", False)],
)  # fmt: skip
def test_versions_are_compared_by_their_first_two_numbers(version: str, than: str, newer: bool) -> None:
    assert is_newer(version, than) is newer


def test_assignment_is_checked_too(tmp_path: Path) -> None:
    config = tiny()
    with pytest.raises(StrictDataclassError, match="hidden_size"):
        config.hidden_size = "wide"
    config.dropout = 2.0
    with pytest.raises(StrictDataclassError, match="dropout is a probability"):
        config.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_what_is_no_field_is_not_saved(tmp_path: Path) -> None:
    """Else the checkpoints of a whole run could not be loaded."""
    model = build(tiny())
    model.config.droput = 0.3
    with CaptureLogger(base_configuration.logger) as log:
        model.save_pretrained(tmp_path)
    assert "DragomanConfig has no field 'droput'. Did you mean dropout? It is not saved." in log.out
    assert not hasattr(DragomanForConditionalGeneration.from_pretrained(tmp_path).config, "droput")
    assert model.config.droput == 0.3


def test_whole_numbers_are_numbers() -> None:
    config = tiny(dropout=0, logits_scale=1, attention_scale=1, norm_eps=1)
    assert (config.dropout, config.logits_scale) == (0, 1)


def test_generic_code_reads_the_decoder() -> None:
    config = tiny(decoder_num_key_value_heads=2, encoder_num_attention_heads=2)
    assert (config.d_model, config.num_hidden_layers, config.num_attention_heads) == (32, 2, 4)
    decoder, encoder = config.get_text_config(decoder=True), config.get_text_config(encoder=True)
    assert (decoder.num_hidden_layers, decoder.num_key_value_heads) == (2, 2)
    assert (encoder.num_hidden_layers, encoder.num_attention_heads, encoder.num_key_value_heads) == (3, 2, 2)
    assert (config.encoder_num_hidden_layers, config.decoder_num_hidden_layers) == (3, 2)  # untouched


class Tokenizer:
    """What from_tokenizer may ask of any tokenizer."""

    def __init__(self, size: int = 50, **ids: Any) -> None:
        self.size = size
        self.pad_token_id, self.bos_token_id, self.eos_token_id = 4, 5, 6
        vars(self).update(ids)

    def __len__(self) -> int:
        return self.size

    def __call__(self, text_target: str) -> dict[str, list[int]]:
        return {"input_ids": [7, 6]}


class TestFromTokenizer:
    def test_fills_sizes_and_ids(self) -> None:
        config = DragomanConfig.from_tokenizer(Tokenizer(), preset="small", dropout=0.3)
        assert (config.vocab_size, config.source_vocab_size, config.share_embeddings) == (50, None, True)
        assert (config.pad_token_id, config.bos_token_id, config.eos_token_id, config.decoder_start_token_id) == (
            4,
            5,
            6,
            5,
        )
        assert (config.dropout, config.hidden_size) == (0.3, 256)

    def test_starts_with_padding_where_there_is_no_bos(self) -> None:
        assert DragomanConfig.from_tokenizer(Tokenizer(bos_token_id=None)).decoder_start_token_id == 4

    def test_a_tokenizer_with_languages_is_left_as_it_is(self) -> None:
        class Multilingual(Tokenizer):
            tgt_lang: str | None = None

            def __call__(self, text_target: str) -> dict[str, list[int]]:
                self.tgt_lang = self.tgt_lang or "en"
                return super().__call__(text_target)

        class WithoutLanguage(Tokenizer):
            def __call__(self, text_target: str) -> dict[str, list[int]]:
                raise KeyError(None)

        tokenizer = Multilingual()
        with CaptureLogger(presets.logger) as log:
            assert DragomanConfig.from_tokenizer(tokenizer).vocab_size == 50
            assert DragomanConfig.from_tokenizer(WithoutLanguage()).vocab_size == 50
        assert tokenizer.tgt_lang is None
        assert not log.out

    def test_an_end_that_no_text_has(self) -> None:
        with CaptureLogger(presets.logger) as log:
            DragomanConfig.from_tokenizer(Tokenizer())
            assert not log.io.getvalue()
            DragomanConfig.from_tokenizer(Tokenizer(eos_token_id=8, eos_token="[END]"))
        assert "does not put its eos_token '[END]' at the end of a text" in log.out

    def test_two_vocabularies(self) -> None:
        tokenizer = Tokenizer(separate_vocabularies=True, source_vocab_size=50, target_vocab_size=40)
        config = DragomanConfig.from_tokenizer(tokenizer)
        assert (config.source_vocab_size, config.vocab_size, config.share_embeddings) == (50, 40, False)

    def test_from_a_configuration(self) -> None:
        config = DragomanConfig.from_tokenizer(Tokenizer(), preset=tiny(position_encoding="alibi"), dropout=0.2)
        assert (config.position_encoding, config.vocab_size, config.dropout) == ("alibi", 50, 0.2)

    def test_derived_fields_follow_what_is_overridden(self) -> None:
        class Sub(DragomanConfig):
            pass

        def made(preset: object, **overrides: Any) -> DragomanConfig:
            return Sub.from_tokenizer(Tokenizer(), preset=preset, **overrides)

        base = tiny(source_vocab_size=29, share_embeddings=False)
        assert made(base, decoder_num_attention_heads=8).decoder_num_key_value_heads == 8
        assert made(base, norm_placement="post").final_norm is False
        assert made(base, norm_type="rms_norm").norm_bias is False
        assert made(base, position_encoding="alibi").rope_parameters is None
        assert made(base).source_vocab_size is None
        assert made(tiny(decoder_num_key_value_heads=2)).decoder_num_key_value_heads == 2
        assert type(made("tiny")) is type(made(base)) is Sub

    @pytest.mark.parametrize(
        ("tokenizer", "arguments", "message"),
        [
            (Tokenizer(pad_token_id=None), {}, "no pad_token.*add_special_tokens"),
            (Tokenizer(eos_token_id=None), {}, "no eos_token.*add_special_tokens"),
            (Tokenizer(eos_token_id=None, sep_token="[SEP]"), {}, "tokenizer.eos_token = tokenizer.sep_token"),
            (Tokenizer(), {"preset": "huge"}, "no preset 'huge'; choose from tiny, small"),
            (Tokenizer(), {"preset": presets.small}, "must be a DragomanConfig, not <function small"),
            (Tokenizer(), {"preset": DragomanRecurrentConfig()}, "must be a DragomanConfig, not DragomanRec"),
            (Tokenizer(), {"vocab_size": 49}, "vocab_size 49 does not hold the tokenizer's 50 ids"),
            (Tokenizer(), {"hiden_size": 49}, "Did you mean hidden_size"),
        ],
    )
    def test_errors(self, tokenizer: Tokenizer, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            DragomanConfig.from_tokenizer(tokenizer, **arguments)

    def test_a_preset_of_another_kind(self) -> None:
        with pytest.raises(ValueError, match="must be a DragomanRecurrentConfig, not 'tiny'"):
            DragomanRecurrentConfig.from_tokenizer(Tokenizer(), preset="tiny")  # type: ignore[arg-type]

    def test_a_misspelt_problem(self) -> None:
        with pytest.raises(
            StrictDataclassError, match="single_label_classification, multi_label_classification, got 'multi_lab"
        ):
            tiny(problem_type="multi_label")
