"""Weights of other families, in and out: one readable architecture that holds the published encoder-decoders.

``convert_from`` makes a Dragoman model of one of transformers' own, or of a folder that holds one; ``convert_to`` makes
one of theirs of it, tensor for tensor. What a family cannot say is refused, all reasons together.
"""

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME

from ..configuration.configuration_dragoman import DragomanConfig
from ..modeling.modeling_conditional_generation import DragomanForConditionalGeneration
from .ctranslate2_files import is_ctranslate2_folder
from .ctranslate2_reader import read_ctranslate2
from .families import ConversionError, Family, with_ties
from .registry import family_of, refuse_other_heads
from .tensors import FolderTensors, apart, dtype_of, existing_folder, tensors_of

__all__ = ["ConversionError", "Family", "convert_from", "convert_to"]


def convert_from(model_or_folder: PreTrainedModel | str | os.PathLike[str]) -> DragomanForConditionalGeneration:
    """The Dragoman model that computes what an encoder-decoder of transformers computes, in eval mode.

    A model is copied; of a folder (safetensors, or one of CTranslate2) every tensor is read once, and no model of its
    own class is built. Whether embeddings and head are tied is read from the tensors.

    Raises:
        ConversionError: for a family that is not known, or a class of it with another head; for an option that
            Dragoman does not have, a tensor too many or too few. The message lists all of them.
        OSError: for a folder without config.json or safetensors.
    """
    if not isinstance(model_or_folder, PreTrainedModel) and is_ctranslate2_folder(Path(model_or_folder)):
        return read_ctranslate2(Path(model_or_folder))[0]
    config, tensors, generation_config, architectures = _opened(model_or_folder)
    family = family_of(config.model_type)
    for name in filter(family.is_other_class, architectures):
        remedy = (
            f"where the weights fit, load them with {family.architecture}.from_pretrained, and convert what it gives"
        )
        problem = f"it is a {name}; only {family.architecture} is converted: {remedy}"
        raise ConversionError(family.model_type, [problem])
    ours, state = family.read(config, tensors)
    carry(config, ours)
    model = DragomanForConditionalGeneration.from_pretrained(None, config=ours, state_dict=state, dtype=dtype_of(state))
    model.generation_config = generation_config
    return model


def convert_to(
    model_or_folder: DragomanForConditionalGeneration | str | os.PathLike[str], family: str
) -> PreTrainedModel:
    """A copy, in eval mode, as the class of transformers whose ``model_type`` is ``family``: "marian", "bart", ...

    Raises:
        ConversionError: for an unknown family, and for what the family cannot express; the message lists all of it.
        OSError: for a folder without config.json or safetensors.
    """
    target = family_of(family)
    config, tensors, generation_config, architectures = _opened(model_or_folder)
    if config.model_type != DragomanConfig.model_type:
        raise ConversionError(config.model_type, ["convert_to takes a Dragoman model, which convert_from makes of it"])
    refuse_other_heads(architectures)
    if getattr(config, "quantization_config", None):
        raise ConversionError(config.model_type, ["its weights are int8: convert what model.dequantize() gives"])
    theirs, state = target.write(config, with_ties(config, tensors))
    carry(config, theirs)
    if not theirs.tie_word_embeddings:
        state = apart(state)
    model = target.in_tree_class().from_pretrained(None, config=theirs, state_dict=state, dtype=dtype_of(state))
    model.generation_config = generation_config
    return model


def carry(config: Any, other: Any) -> None:
    """What no tensor depends on, and pipelines put before a text."""
    for name in ("prefix", "task_specific_params"):
        if getattr(config, name, None) is not None:
            setattr(other, name, copy.deepcopy(getattr(config, name)))


def _opened(model_or_folder: Any) -> tuple[Any, Mapping[str, Tensor], GenerationConfig, list[str]]:
    """Configuration, tensors, generation settings and class names of a model or a folder."""
    if isinstance(model_or_folder, PreTrainedModel):
        config = model_or_folder.config
        settings = getattr(model_or_folder, "generation_config", None) or GenerationConfig.from_model_config(config)
        return config, tensors_of(model_or_folder), copy.deepcopy(settings), [type(model_or_folder).__name__]
    folder = existing_folder(model_or_folder)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if (folder / GENERATION_CONFIG_NAME).is_file():
        settings = GenerationConfig.from_pretrained(folder, local_files_only=True)
    else:  # config.json holds its values, which transformers does not keep in a configuration
        settings = GenerationConfig.from_pretrained(folder, CONFIG_NAME, local_files_only=True, _from_model_config=True)
    return config, FolderTensors(folder), settings, config.architectures or []
