"""examples/sentiment_data.py: where a line ends."""

from pathlib import Path
from typing import Any

import pytest

import sentiment_data


@pytest.mark.parametrize("mark", ["\u2028", "\u0085", "\x0c", "\x1c"])
def test_a_text_may_hold_what_unicode_calls_the_end_of_a_line(mark: str, tmp_path: Path) -> None:
    file = tmp_path / "texts"
    file.write_bytes(f"\ufeffLabel\ttext\r\n1\tgood{mark}0 film\r\n0\tbad\n".encode())
    assert sentiment_data.read_file(file) == [(f"good{mark}0 film", "1"), ("bad", "0")]


def test_lines_end_as_on_any_system(tmp_path: Path) -> None:
    file = tmp_path / "texts"
    file.write_bytes(b"0 one long string\r\n1 fine\n\n1 good")
    assert sentiment_data.read_file(file) == [("one long string", "0"), ("fine", "1"), ("good", "1")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bpe_dropout": 1.5}, "bpe_dropout must be from 0 to 1, not 1.5"),
        ({"word_dropout": -0.1}, "word_dropout must be"),
        ({"max_length": 0}, "max_length must be at least 1, not 0"),
    ],
)
def test_rates_and_lengths_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sentiment_data.LabelledTexts([("good", "1")], ["0", "1"], None, **{"max_length": 9, **options})
