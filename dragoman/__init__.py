"""Dragoman: an encoder-decoder Transformer, a first-class citizen of Hugging Face.

Importing it registers configuration, models and tokenizer with transformers' Auto classes; twice is harmless.
"""

from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoModelForTextEncoding, AutoTokenizer

from .adapters import register_lora_targets
from .configuration import presets
from .configuration.configuration_dragoman import VERSION, DragomanConfig
from .conversion import convert_from, convert_to
from .hub import install
from .model_cards import install_cards
from .modeling.modeling_conditional_generation import DragomanForConditionalGeneration
from .modeling.modeling_dragoman import DragomanEncoderModel, DragomanModel
from .tokenization.tokenization_dragoman import DragomanTokenizer
from .trainer import DragomanTrainer

__version__ = VERSION

AutoConfig.register("dragoman", DragomanConfig, exist_ok=True)
AutoTokenizer.register(DragomanConfig, tokenizer_class=DragomanTokenizer, exist_ok=True)
AutoModel.register(DragomanConfig, DragomanModel, exist_ok=True)
AutoModelForTextEncoding.register(DragomanConfig, DragomanEncoderModel, exist_ok=True)
AutoModelForSeq2SeqLM.register(DragomanConfig, DragomanForConditionalGeneration, exist_ok=True)

install()
install_cards()
register_lora_targets()

__all__ = [
    "DragomanConfig",
    "DragomanEncoderModel",
    "DragomanForConditionalGeneration",
    "DragomanModel",
    "DragomanTokenizer",
    "DragomanTrainer",
    "__version__",
    "convert_from",
    "convert_to",
    "presets",
]
