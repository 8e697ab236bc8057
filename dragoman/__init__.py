"""Dragoman: an encoder-decoder Transformer, a first-class citizen of Hugging Face.

Importing it registers configuration, models and tokenizer with transformers' Auto classes; twice is harmless.
"""

from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoModelForTextEncoding

from .configuration import presets
from .configuration.configuration_dragoman import VERSION as __version__
from .configuration.configuration_dragoman import DragomanConfig
from .modeling.modeling_dragoman import DragomanEncoderModel, DragomanForConditionalGeneration, DragomanModel

AutoConfig.register("dragoman", DragomanConfig, exist_ok=True)
AutoModel.register(DragomanConfig, DragomanModel, exist_ok=True)
AutoModelForTextEncoding.register(DragomanConfig, DragomanEncoderModel, exist_ok=True)
AutoModelForSeq2SeqLM.register(DragomanConfig, DragomanForConditionalGeneration, exist_ok=True)

__all__ = [
    "DragomanConfig",
    "DragomanEncoderModel",
    "DragomanForConditionalGeneration",
    "DragomanModel",
    "__version__",
    "presets",
]
