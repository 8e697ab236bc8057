"""From a checkpoint and a text to an explanation: what ``python -m dragoman explain`` does."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, AutoTokenizer

from .attribution import Attribution, attribute


def explain(
    checkpoint: str | Path, text: str, target: str | None = None, tgt_lang: str | None = None, **options: Any
) -> Attribution:
    """:func:`dragoman.attribute` on a classifier or a model that writes, whichever ``config.architectures`` names.

    Raises OSError where there is no checkpoint, ValueError for a ``tgt_lang`` that the tokenizer does not know, and
    what ``attribute`` raises.
    """
    architectures = AutoConfig.from_pretrained(checkpoint).architectures or []
    classifies = any(name.endswith("ForSequenceClassification") for name in architectures)
    kind = AutoModelForSequenceClassification if classifies else AutoModelForSeq2SeqLM
    # Other implementations of models in transformers do not return attention weights.
    eager = {"attn_implementation": "eager"} if options.get("method", "").startswith("attention") else {}
    model, tokenizer = kind.from_pretrained(checkpoint, **eager), AutoTokenizer.from_pretrained(checkpoint)
    if tgt_lang is not None:
        if not hasattr(tokenizer, "target_language"):
            raise ValueError(f"tgt_lang={tgt_lang!r} is for tokenizers of Dragoman that know several languages.")
        tokenizer.target_language = tgt_lang
    return attribute(model, tokenizer, text, target, **options)
