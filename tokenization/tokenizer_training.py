"""From texts to a `tokenizers.Tokenizer`: special tokens, language tags, bytes, then the pieces, in this order."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Tokenizer, models, processors

from .piece_learning import learn_bpe, learn_characters, learn_unigram, learn_words
from .text_segmentation import segmentation_for

ALGORITHMS = ("bpe", "unigram", "char", "word")
SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
UNK = SPECIAL_TOKENS["unk_token"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def language_tag(language: str) -> str:
    """The token that asks for a translation into `language`. Johnson et al., 2017 (arXiv:1611.04558)."""
    return f"<2{language}>"


def sequence_template(eos: tuple[str, int], tag: tuple[str, int] | None = None) -> processors.TemplateProcessing:
    """`x </s>`, or `<2de> x </s>`; a pair is `x </s> y </s>`."""
    tokens = [eos] if tag is None else [eos, tag]
    end, *front = names = [re.sub("[:$]", "_", token) for token, _ in tokens]  # which mean something in a template
    pieces = zip(names, tokens, strict=True)
    return processors.TemplateProcessing(
        single=[*front, "$A", end],
        pair=[*front, "$A", end, "$B", end],
        special_tokens=[{"id": name, "tokens": [token], "ids": [i]} for name, (token, i) in pieces],
    )


def renew_end(tokenizer: Tokenizer, eos: tuple[str, int]) -> None:
    """End rows with ``eos`` where a template of ours names another token; templates of others stay."""
    template = tokenizer.post_processor or sequence_template(eos)
    fields = json.loads(template.__getstate__())
    own = [(*entry["tokens"], *entry["ids"]) for entry in fields.get("special_tokens", {}).values()]
    if len(own) == 1 and template.__getstate__() == sequence_template(own[0]).__getstate__():
        tokenizer.post_processor = sequence_template(eos)


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, algorithm: str, byte_fallback: bool, languages: Sequence[str]
) -> Tokenizer:
    """`vocab_size` bounds everything: special tokens, tags, bytes and pieces. Raises ValueError if they cannot fit."""
    if algorithm not in ALGORITHMS:
        raise ValueError(f"unknown algorithm {algorithm!r}; choose from {', '.join(ALGORITHMS)}")
    special = [*SPECIAL_TOKENS.values(), *_tags(languages)]
    reserved = [*special, *(BYTES if byte_fallback else [])]
    minimum = len(reserved) if byte_fallback else len(reserved) + 1
    if vocab_size < minimum:
        contents = f"{len(special)} special tokens and " + ("256 bytes" if byte_fallback else "one piece")
        raise ValueError(f"vocab_size={vocab_size} is too small: {contents} need at least {minimum}")

    segmentation = segmentation_for(algorithm, byte_fallback)
    counts = segmentation.count_words(texts)
    tokenizer = Tokenizer(_learn_model(counts, reserved, vocab_size - len(reserved), algorithm, byte_fallback))
    if segmentation.normalizer is not None:
        tokenizer.normalizer = segmentation.normalizer
    tokenizer.pre_tokenizer = segmentation.pre_tokenizer
    if segmentation.decoder is not None:
        tokenizer.decoder = segmentation.decoder
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    eos = SPECIAL_TOKENS["eos_token"]
    tokenizer.post_processor = sequence_template((eos, reserved.index(eos)))
    return tokenizer


def _tags(languages: Sequence[str]) -> list[str]:
    for language in languages:
        if not language or any(character.isspace() or character in "<>" for character in language):
            raise ValueError(f"language {language!r} must be a name without spaces, '<' or '>'")
    if len(set(languages)) < len(languages):
        raise ValueError(f"languages {list(languages)} names one of them twice")
    return [language_tag(language) for language in languages]


def _learn_model(
    counts: Counter[str], reserved: list[str], size: int, algorithm: str, byte_fallback: bool
) -> models.Model:
    if algorithm == "unigram":
        scored = learn_unigram(counts, size, byte_fallback)
        lowest = min((score for _, score in scored), default=0.0)
        entries = [*((token, lowest) for token in reserved), *scored]
        return models.Unigram(entries, reserved.index(UNK), byte_fallback)

    merges: list[tuple[str, str]] = []
    if algorithm == "bpe":
        pieces, merges = learn_bpe(counts, size, byte_fallback)
    else:
        pieces = (learn_words if algorithm == "word" else learn_characters)(counts, size)
    vocabulary = {token: index for index, token in enumerate([*reserved, *pieces])}
    if algorithm == "word" and not byte_fallback:
        return models.WordLevel(vocabulary, UNK)  # an unknown word is one <unk>, not one a letter
    whole_words = algorithm == "word"
    return models.BPE(vocabulary, merges, unk_token=UNK, byte_fallback=byte_fallback, ignore_merges=whole_words)
