"""BART's weights, in and out, and those of the families around it."""

from pathlib import Path

import pytest
import torch

from bart_models import ARCHITECTURES, VARIANTS, tiny
from conversion_checks import check_every_key_counts, check_fine_tuning, check_permuted_heads_are_seen
from dragoman.conversion import convert_from, convert_to
from ladder import TOLERANCE, climb, go_around, ragged
from support import relative_error


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_ladder(architecture: str, variant: str) -> None:
    theirs = tiny(architecture, **VARIANTS[variant])
    climb(theirs, go_around(theirs))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_key_counts(architecture: str, tmp_path: Path) -> None:
    check_every_key_counts(tiny(architecture), tmp_path / "tied")
    check_every_key_counts(tiny(architecture, tie_word_embeddings=False), tmp_path / "untied")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_permuted_heads_are_seen(architecture: str) -> None:
    check_permuted_heads_are_seen(tiny(architecture))


@pytest.mark.parametrize("variant", ["scaled", "untied"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fine_tuning(architecture: str, variant: str, tmp_path: Path) -> None:
    check_fine_tuning(tiny(architecture, dropout=0.0, **VARIANTS[variant]), tmp_path)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_untied_embeddings_come_back_from_a_folder(architecture: str, tmp_path: Path) -> None:
    """Of names that share a tensor, saving keeps one; the decoder's was drawn at random in loading."""
    theirs = tiny(architecture, tie_word_embeddings=False)
    back = convert_to(convert_from(theirs), theirs.config.model_type)
    back.save_pretrained(tmp_path)
    read = type(theirs).from_pretrained(tmp_path).eval()
    for name in ("encoder.embed_tokens", "decoder.embed_tokens"):
        expected = theirs.get_submodule(f"model.{name}").weight
        torch.testing.assert_close(read.get_submodule(f"model.{name}").weight, expected, rtol=0, atol=0, msg=name)
    torch.testing.assert_close(read(**ragged(theirs)).logits, theirs(**ragged(theirs)).logits)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_pad_row_is_not_trained_as_input(architecture: str) -> None:
    """Not even where a mask lets a pad token be seen."""
    theirs = tiny(architecture, tie_word_embeddings=False)
    ours, inputs = convert_from(theirs), ragged(theirs)
    pad = ours.config.pad_token_id
    for name in ("input_ids", "decoder_input_ids"):
        inputs[name][:, 1] = pad
        inputs[name.replace("input_ids", "attention_mask")].fill_(1)
    for model in (theirs, ours):
        model(**inputs).loss.backward()
    for side in ("encoder", "decoder"):
        name = f"model.{side}.embed_tokens"
        found, expected = (model.get_submodule(name).weight.grad for model in (ours, theirs))
        assert not found[pad].any()
        assert relative_error(found, expected) < TOLERANCE


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_on_the_left(architecture: str) -> None:
    """In-tree the padding shifts positions; ours writes as without it."""
    theirs = tiny(architecture)
    ours, row = convert_from(theirs), ragged(theirs)["input_ids"][:1]
    padded = torch.cat([torch.full((1, 3), ours.config.pad_token_id), row], dim=1)
    start = torch.tensor([[ours.config.decoder_start_token_id]])
    expected = ours(input_ids=row, decoder_input_ids=start).logits
    assert relative_error(ours(input_ids=padded, decoder_input_ids=start).logits, expected) < TOLERANCE
