"""examples/sentiment_data.py: where a line ends."""

from pathlib import Path

import pytest

import sentiment_data


@pytest.mark.parametrize("mark", ["\u2028", "\u0085", "\x0c", "\x1c"])
def test_a_text_may_hold_what_unicode_calls_the_end_of_a_line(mark: str, tmp_path: Path) -> None:
    file = tmp_path / "texts"
    file.write_bytes(f"\ufefflabel\ttext\r\n1\tgood{mark}0 film\r\n0\tbad\n".encode())
    assert sentiment_data.read_file(file) == [(f"good{mark}0 film", "1"), ("bad", "0")]


def test_lines_end_as_on_any_system(tmp_path: Path) -> None:
    file = tmp_path / "texts"
    file.write_bytes(b"0 one long string\r\n1 fine\n\n1 good")
    assert sentiment_data.read_file(file) == [("one long string", "0"), ("fine", "1"), ("good", "1")]
