"""Dragoman: an encoder-decoder Transformer, a first-class citizen of Hugging Face.

Importing it registers configuration, models and tokenizer with transformers' Auto classes; twice is harmless.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    AutoTokenizer,
)

from .adapters import register_adapter_targets
from .alignment import align
from .attribution import attribute
from .averaging import average_checkpoints
from .configuration import presets
from .configuration.base_configuration import VERSION
from .configuration.configuration_dragoman import DragomanConfig
from .configuration.configuration_dragoman_recurrent import DragomanRecurrentConfig
from .conversion import convert_from, convert_to
from .conversion.ctranslate2_registration import register_ctranslate2_loader
from .ensemble import EnsembleLogitsProcessor
from .exponential_moving_average import ExponentialMovingAverageCallback
from .hub import install
from .model_cards import install_cards
from .modeling.modeling_conditional_generation import DragomanForConditionalGeneration
from .modeling.modeling_dragoman import DragomanEncoderModel, DragomanModel
from .modeling.modeling_dragoman_recurrent import DragomanRecurrentForConditionalGeneration, DragomanRecurrentModel
from .modeling.modeling_sequence_classification import DragomanForSequenceClassification
from .muon import MuonAdamW
from .packing import DataCollatorForPackedSeq2Seq
from .pipelines import register_pipelines
from .quantization import quantize
from .token_budget import TokenBudgetBatchSampler
from .tokenization.tokenization_dragoman import DragomanTokenizer
from .trainer import DragomanTrainer
from .training_arguments import DragomanTrainingArguments

__version__ = VERSION

AutoConfig.register("dragoman", DragomanConfig, exist_ok=True)
AutoTokenizer.register(DragomanConfig, tokenizer_class=DragomanTokenizer, exist_ok=True)
AutoModel.register(DragomanConfig, DragomanModel, exist_ok=True)
AutoModelForTextEncoding.register(DragomanConfig, DragomanEncoderModel, exist_ok=True)
AutoModelForSeq2SeqLM.register(DragomanConfig, DragomanForConditionalGeneration, exist_ok=True)
AutoModelForSequenceClassification.register(DragomanConfig, DragomanForSequenceClassification, exist_ok=True)

AutoConfig.register("dragoman_recurrent", DragomanRecurrentConfig, exist_ok=True)
AutoTokenizer.register(DragomanRecurrentConfig, tokenizer_class=DragomanTokenizer, exist_ok=True)
AutoModel.register(DragomanRecurrentConfig, DragomanRecurrentModel, exist_ok=True)
AutoModelForSeq2SeqLM.register(DragomanRecurrentConfig, DragomanRecurrentForConditionalGeneration, exist_ok=True)

install()
install_cards()
register_adapter_targets()
register_ctranslate2_loader()
register_pipelines()

__all__ = [
    "DataCollatorForPackedSeq2Seq",
    "DragomanConfig",
    "DragomanEncoderModel",
    "DragomanForConditionalGeneration",
    "DragomanForSequenceClassification",
    "DragomanModel",
    "DragomanRecurrentConfig",
    "DragomanRecurrentForConditionalGeneration",
    "DragomanRecurrentModel",
    "DragomanTokenizer",
    "DragomanTrainer",
    "DragomanTrainingArguments",
    "EnsembleLogitsProcessor",
    "ExponentialMovingAverageCallback",
    "MuonAdamW",
    "TokenBudgetBatchSampler",
    "__version__",
    "align",
    "attribute",
    "average_checkpoints",
    "convert_from",
    "convert_to",
    "presets",
    "quantize",
]
