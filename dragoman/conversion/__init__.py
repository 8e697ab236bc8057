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
from .families import ConversionError, Family, with_ties
from .registry import family_of
from .tensors import FolderTensors, dtype_of, tensors_of

__all__ = ["ConversionError", "Family", "convert_from", "convert_to"]


def convert_from(model_or_folder: PreTrainedModel | str | os.PathLike[str]) -> DragomanForConditionalGeneration:
    """The Dragoman model that computes what an encoder-decoder of transformers computes, in eval mode.

    A model is copied; of a folder (safetensors) every tensor is read once, and no model of its own class is built.
    Whether embeddings and head are tied is read from the tensors.

    Raises:
        ConversionError: for a family that is not known, or a class of it with another head; for an option that
            Dragoman does not have, a tensor too many or too few. The message lists all of them.
        OSError: for a folder without config.json or safetensors.
    """
<<<<<<< HEAD
    config, tensors, generation_config = _opened(model_or_folder)
    ours, state = family_of(config.model_type).read(config, tensors)
=======
    tensors: Mapping[str, Tensor]
    if isinstance(model_or_folder, PreTrainedModel):
        config = model_or_folder.config
        family = family_of(config.model_type)
        if not isinstance(model_or_folder, family.in_tree_class()):
            raise _other_class(family, type(model_or_folder).__name__)
        tensors, generation_config = tensors_of(model_or_folder), copy.deepcopy(model_or_folder.generation_config)
    else:
        folder = Path(model_or_folder)
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        family = family_of(config.model_type)
        for name in filter(family.is_other_class, config.architectures or ()):
            raise _other_class(family, name)
        tensors, generation_config = FolderTensors(folder), _generation_config_in(folder)
    ours, state = family.read(config, tensors)
>>>>>>> bart
    model = DragomanForConditionalGeneration.from_pretrained(None, config=ours, state_dict=state, dtype=dtype_of(state))
    model.generation_config = generation_config
    return model


<<<<<<< HEAD
def convert_to(
    model_or_folder: DragomanForConditionalGeneration | str | os.PathLike[str], family: str
) -> PreTrainedModel:
=======
def _generation_config_in(folder: Path) -> GenerationConfig:
    """Where it has no file of its own, config.json holds its values, which transformers does not keep in a config."""
    if (folder / GENERATION_CONFIG_NAME).is_file():
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    return GenerationConfig.from_pretrained(folder, CONFIG_NAME, local_files_only=True, _from_model_config=True)


def _other_class(family: Family, name: str) -> ConversionError:
    known = family.architecture
    remedy = f"Where the weights fit, load them with {known}.from_pretrained, and convert what that returns"
    return ConversionError(family.model_type, [f"it is a {name}; only {known} is converted. {remedy}"])


def convert_to(model: DragomanForConditionalGeneration, family: str) -> PreTrainedModel:
>>>>>>> bart
    """A copy, in eval mode, as the class of transformers whose ``model_type`` is ``family``: "marian", "bart", ...

    Raises:
        ConversionError: for an unknown family, and for what the family cannot express; the message lists all of it.
        OSError: for a folder without config.json or safetensors.
    """
    target = family_of(family)
<<<<<<< HEAD
    config, tensors, generation_config = _opened(model_or_folder)
    if config.model_type != DragomanConfig.model_type:
        raise ConversionError(config.model_type, ["convert_to takes a Dragoman model, which convert_from makes of it"])
    theirs, state = target.write(config, with_ties(config, tensors))
    model = target.in_tree_class().from_pretrained(None, config=theirs, state_dict=state, dtype=dtype_of(state))
    model.generation_config = generation_config
    return model


def _opened(model_or_folder: Any) -> tuple[Any, Mapping[str, Tensor], GenerationConfig]:
    """Configuration, tensors and generation settings of a model or a folder."""
    if isinstance(model_or_folder, PreTrainedModel):
        config = model_or_folder.config
        settings = getattr(model_or_folder, "generation_config", None) or GenerationConfig.from_model_config(config)
        return config, tensors_of(model_or_folder), copy.deepcopy(settings)
    folder = Path(model_or_folder)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if (folder / GENERATION_CONFIG_NAME).is_file():
        settings = GenerationConfig.from_pretrained(folder, local_files_only=True)
    else:
        settings = GenerationConfig.from_model_config(config)
    return config, FolderTensors(folder), settings
=======
    config, state = target.write(model.config, tensors_of(model))
    theirs = target.in_tree_class().from_pretrained(None, config=config, state_dict=state, dtype=dtype_of(state))
    theirs.generation_config = copy.deepcopy(model.generation_config)
    return theirs
>>>>>>> bart
