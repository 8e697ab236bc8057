"""Tiny random models of the families around BART."""

from typing import Any

import transformers
from transformers import PreTrainedModel

from ladder import SIDES, randomise

ARCHITECTURES = ("Bart", "MBart", "Pegasus", "Blenderbot", "BlenderbotSmall")
VARIANTS: dict[str, dict[str, Any]] = {
    "gelu": {},
    "scaled": {"scale_embedding": True, "activation_function": "swish"},
    "relu": {"activation_function": "relu", "encoder_layers": 1},
    "untied": {"tie_word_embeddings": False},
    "untied, scaled": {"tie_word_embeddings": False, "scale_embedding": True, "activation_function": "gelu_new"},
}


def tiny(architecture: str, seed: int = 0, **options: Any) -> PreTrainedModel:
    start = {"decoder_start_token_id": 2} if architecture == "MBart" else {}
    config = getattr(transformers, f"{architecture}Config")(**{"vocab_size": 61, **SIDES, **start, **options})
    return randomise(getattr(transformers, f"{architecture}ForConditionalGeneration")(config), seed)
