"""How text is cut before a vocabulary sees it, and how pieces are put together again.

A word keeps its leading space as a plain space: no stand-in character, so U+2581 is ordinary text. One space is put
before the text, so that its first word shares a piece with the same word elsewhere; decoding takes it off again.
Letters, single digits, punctuation and white space are cut apart, so that text which spells a special token (`</s>`)
or a byte (`<0x41>`) spans several words and no vocabulary entry of that name can ever match it.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import Regex, decoders, normalizers, pre_tokenizers

WORDS = r" ?\p{L}[\p{L}\p{M}]*| ?\p{N}\p{M}*| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LOOKS_SPECIAL = r"^<(?=.+>$)"  # the "<" of a symbol such as <s>


@dataclass(frozen=True)
class Segmentation:
    """The parts of a `tokenizers.Tokenizer` that surround its model."""

    normalizer: normalizers.Normalizer | None
    pre_tokenizer: pre_tokenizers.PreTokenizer
    decoder: decoders.Decoder | None

    def count_words(self, texts: Iterable[str]) -> Counter[str]:
        counts: Counter[str] = Counter()
        for text in texts:
            if self.normalizer is not None:
                text = self.normalizer.normalize_str(text)
            counts.update(word for word, _ in self.pre_tokenizer.pre_tokenize_str(text))
        return counts


def segmentation_for(algorithm: str, byte_fallback: bool) -> Segmentation:
    """`word` without byte fallback reads symbols between white space (phonemes) and writes them one space apart."""
    if algorithm == "word" and not byte_fallback:
        unmask = pre_tokenizers.Split(Regex(LOOKS_SPECIAL), "isolated")
        return Segmentation(None, pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), unmask]), None)
    prefixed = algorithm != "char"  # characters have no piece to share
    return Segmentation(
        normalizers.Prepend(" ") if prefixed else None,
        pre_tokenizers.Split(Regex(WORDS), "isolated"),
        decoders.Sequence(
            [
                *([decoders.ByteFallback()] if byte_fallback else []),
                decoders.Fuse(),
                *([decoders.Strip(" ", 1, 0)] if prefixed else []),
            ]
        ),
    )
