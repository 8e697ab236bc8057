"""Weights of other families, in and out: one readable architecture that holds the published encoder-decoders.

``convert_from`` makes a Dragoman model of one of transformers' own, or of a folder that holds one; ``convert_to`` makes
one of theirs of it, tensor for tensor. What a family cannot say is refused, all reasons together.
"""

import copy
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME

from ..modeling.modeling_conditional_generation import DragomanForConditionalGeneration
from .families import ConversionError, Family
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
    model = DragomanForConditionalGeneration.from_pretrained(None, config=ours, state_dict=state, dtype=dtype_of(state))
    model.generation_config = generation_config
    return model


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
    """A copy, in eval mode, as the class of transformers whose ``model_type`` is ``family``: "marian", "bart", ...

    Raises:
        ConversionError: for an unknown family, and for what the family cannot express; the message lists all of it.
    """
    target = family_of(family)
    config, state = target.write(model.config, tensors_of(model))
    theirs = target.in_tree_class().from_pretrained(None, config=config, state_dict=state, dtype=dtype_of(state))
    theirs.generation_config = copy.deepcopy(model.generation_config)
    return theirs
