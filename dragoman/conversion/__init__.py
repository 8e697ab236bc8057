"""Weights of other families, in and out: one readable architecture that holds the published encoder-decoders.

``convert_from`` makes a Dragoman model of one of transformers' own, or of a folder that holds one; ``convert_to`` makes
one of theirs of it, tensor for tensor. What a family cannot say is refused, all reasons together.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

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
        ConversionError: for a family that is not known, an option that Dragoman does not have, a tensor too many or too
            few; the message lists all of them.
        OSError: for a folder without config.json or safetensors.
    """
    tensors: Mapping[str, Tensor]
    if isinstance(model_or_folder, PreTrainedModel):
        config, tensors = model_or_folder.config, tensors_of(model_or_folder)
        generation_config = getattr(model_or_folder, "generation_config", None)
    else:
        folder = Path(model_or_folder)
        config, tensors = AutoConfig.from_pretrained(folder, local_files_only=True), FolderTensors(folder)
        generation_config = None
        if (folder / GENERATION_CONFIG_NAME).is_file():
            generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    ours, state = family_of(config.model_type).read(config, tensors)
    model = DragomanForConditionalGeneration.from_pretrained(None, config=ours, state_dict=state, dtype=dtype_of(state))
    model.generation_config = generation_config or GenerationConfig.from_model_config(config)
    return model


def convert_to(model: DragomanForConditionalGeneration, family: str) -> PreTrainedModel:
    """A copy, in eval mode, as the class of transformers whose ``model_type`` is ``family``: "marian", "bart", ...

    Raises:
        ConversionError: for an unknown family, and for what the family cannot express; the message lists all of it.
    """
    target = family_of(family)
    config, state = target.write(model.config, tensors_of(model))
    theirs = target.in_tree_class().from_pretrained(None, config=config, state_dict=state, dtype=dtype_of(state))
    theirs.generation_config = GenerationConfig.from_dict(model.generation_config.to_dict())
    return theirs
