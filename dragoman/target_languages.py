"""Asking a multilingual model for a language: a tag or a text at the front of the source, or a forced first token."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase


def encode_for(
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    text: str,
    src_lang: str | None = None,
    tgt_lang: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """``tokenizer(text, **options)``, asking for ``tgt_lang`` as models of this kind were trained to be asked.

    - Tokenizers with ``languages`` (Dragoman): the tag before the source.
    - With ``src_lang`` (M2M100, NLLB, mBART): its codes around the source, and ``forced_bos_token_id`` in the result.
    - With ``supported_language_codes`` (Marian, several targets): ``>>fra<<`` before the text.
    - Models whose configuration has a prefix for ``translation_{src_lang}_to_{tgt_lang}`` (T5): that one.

    Raises:
        ValueError: for a language that this tokenizer or model cannot be asked for; names those it can.
    """
    if src_lang is None and tgt_lang is None:
        return dict(tokenizer(text, **options))
    if getattr(tokenizer, "languages", None):
        if src_lang is not None:
            raise ValueError(f"src_lang={src_lang!r}: this tokenizer is asked for a target language alone.")
        return dict(tokenizer(text, target_language=tgt_lang, **options))
    if hasattr(tokenizer, "src_lang"):
        codes = getattr(tokenizer, "lang_code_to_id", None) or dict(
            zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
        )
        for language in (src_lang, tgt_lang):
            if language is not None and language not in codes:
                raise unknown(language, codes)
        with reading(tokenizer, src_lang):
            encoding = dict(tokenizer(text, **options))
        if tgt_lang is None:
            return encoding
        return encoding | {"forced_bos_token_id": codes[tgt_lang]}
    if src_lang is None and (tags := getattr(tokenizer, "supported_language_codes", None)):
        if f">>{tgt_lang}<<" not in tags:
            raise unknown(str(tgt_lang), [tag.strip("<>") for tag in tags])
        return dict(tokenizer(f">>{tgt_lang}<< {text}", **options))
    tasks = getattr(config, "task_specific_params", None) or {}
    prefix = tasks.get(f"translation_{src_lang}_to_{tgt_lang}", {}).get("prefix")
    if prefix is None:
        raise ValueError(
            f"src_lang={src_lang!r}, tgt_lang={tgt_lang!r}: {type(tokenizer).__name__} has no languages, and the "
            f"configuration no prefix for this pair. Leave them out, or write into the text what the model expects."
        )
    return dict(tokenizer(prefix + text, **options))


@contextmanager
def reading(tokenizer: Any, language: str | None) -> Iterator[None]:
    """Within, sources are in this language; afterwards the tokenizer is as it was."""
    before = tokenizer.src_lang
    tokenizer.src_lang = language or before
    try:
        yield
    finally:
        tokenizer.src_lang = before


def unknown(language: str, codes: Iterable[str]) -> ValueError:
    known = sorted(codes)
    near = difflib.get_close_matches(language, known, n=3, cutoff=0.3) or known[:3]
    return ValueError(f"unknown language {language!r}: of {len(known)} known codes, the nearest are {', '.join(near)}.")
