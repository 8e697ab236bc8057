"""BART's weights, in and out, and those of the families around it."""

from pathlib import Path

import pytest

from bart_models import ARCHITECTURES, VARIANTS, tiny
from conversion_checks import check_every_key_counts, check_fine_tuning, check_permuted_heads_are_seen
from ladder import climb, go_around


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
