"""From a checkpoint and a text to an explanation: what ``python -m dragoman explain`` does."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, AutoTokenizer

from .attribution import Attribution, attribute


def explain(checkpoint: str | Path, text: str, target: str | None = None, **options: Any) -> Attribution:
    """:func:`dragoman.attribute` on a classifier or a model that writes, whichever ``config.architectures`` names.

    Raises OSError where there is no checkpoint, and what ``attribute`` raises.
    """
    architectures = AutoConfig.from_pretrained(checkpoint).architectures or []
    classifies = any(name.endswith("ForSequenceClassification") for name in architectures)
    kind = AutoModelForSequenceClassification if classifies else AutoModelForSeq2SeqLM
    model, tokenizer = kind.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    return attribute(model, tokenizer, text, target, **options)
