"""Marian's weights, in and out."""

from pathlib import Path

import pytest
from transformers import MarianConfig, MarianMTModel

from conversion_checks import check_every_key_counts, check_fine_tuning, check_permuted_heads_are_seen
from ladder import SIDES, climb, go_around, randomise

VARIANTS = {
    "shared": {},
    "scaled": {"scale_embedding": True, "activation_function": "swish"},
    "relu": {"activation_function": "relu"},
    "two vocabularies": {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 57},
    "two vocabularies, untied": {
        "share_encoder_decoder_embeddings": False,
        "decoder_vocab_size": 57,
        "tie_word_embeddings": False,
    },
    "one vocabulary, untied": {"share_encoder_decoder_embeddings": False, "tie_word_embeddings": False},
}


def marian(**options: object) -> MarianMTModel:
    special = {"pad_token_id": 56, "decoder_start_token_id": 56, "eos_token_id": 0}
    return randomise(MarianMTModel(MarianConfig(**{"vocab_size": 61, **SIDES, **special, **options})))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_ladder(variant: str) -> None:
    theirs = marian(**VARIANTS[variant])
    climb(theirs, go_around(theirs))


def test_every_key_counts(tmp_path: Path) -> None:
    check_every_key_counts(marian(), tmp_path)


def test_permuted_heads_are_seen() -> None:
    check_permuted_heads_are_seen(marian())


@pytest.mark.parametrize("variant", ["shared", "two vocabularies, untied"])
def test_fine_tuning(variant: str, tmp_path: Path) -> None:
    check_fine_tuning(marian(dropout=0.0, **VARIANTS[variant]), tmp_path)
