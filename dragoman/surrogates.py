"""Halves of characters, which Python lets stand alone in a text and no tokenizer reads."""

import re

_SURROGATE = re.compile("[\ud800-\udfff]")


def check_characters(text: str) -> str:
    """``text``; raises ValueError where it holds a surrogate."""
    if found := _SURROGATE.search(text):
        raise ValueError(
            f"the text holds U+{ord(found[0]):04X} at position {found.start()}, half a character, which no tokenizer "
            'reads: decode its bytes with errors="replace", or leave it out.'
        )
    return text
