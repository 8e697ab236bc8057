"""Int8 for the CPU: a quarter of the disk, under half of the memory, and large products several times as fast."""

import copy
from typing import TypeVar

import torch
from torch import nn

from .modeling.embeddings import TokenEmbedding
from .modeling.int8_arithmetic import missing_kernel
from .modeling.int8_loading import Int8Config, Int8Quantizer
from .modeling.linear import PLAIN
from .modeling.modeling_dragoman import DragomanPreTrainedModel

Model = TypeVar("Model", bound=DragomanPreTrainedModel)


def quantize(model: Model) -> Model:
    """An int8 copy of a trained model, for inference on the CPU; ``model`` itself stays as it is.

    Every linear projection, the head and the token vectors become int8 with one fp32 scale a row; where they were tied
    they still are. Biases, norms, positions and relative biases stay fp32. Activations are rounded to int8 row by row
    as they come, with no calibration, so that no row depends on the rest of its batch. ``save_pretrained`` writes it,
    ``from_pretrained`` loads it, and ``dequantize()`` turns it into an fp32 model again.

    Raises:
        TypeError: for what is no Dragoman model.
        ValueError: for a model that is int8 already, not on the CPU, with adapters or projections of another class, or
            with weights not finite.
        RuntimeError: where this machine has no kernel for int8.
    """
    if not isinstance(model, DragomanPreTrainedModel):
        raise TypeError(f"quantize takes a Transformer of Dragoman's, not a {type(model).__name__}.")
    if model.is_int8:
        raise ValueError("This model is int8 already.")
    if getattr(model, "_hf_peft_config_loaded", False) or any("peft" in type(m).__module__ for m in model.modules()):
        raise ValueError("This model has adapters: merge them into it first (peft: merge_and_unload()).")
    if model.device.type != "cpu":
        raise ValueError(f"int8 is for the CPU, and this model is on {model.device}: call model.cpu() first.")
    if (reason := missing_kernel()) is not None:
        raise RuntimeError(f"This machine cannot use int8: {reason}.")
    matrices = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear | TokenEmbedding)}
    for name, module in matrices.items():
        if type(module) not in (*PLAIN, TokenEmbedding):
            raise ValueError(
                f"{name} is a {type(module).__name__}, which may compute more than its weight and bias say: put a "
                "torch.nn.Linear in its place first."
            )
    replaced = [module.weight for module in matrices.values()]
    copied = copy.deepcopy(model, {id(weight): weight for weight in replaced})  # which are not worth a copy
    quantizer = Int8Quantizer(Int8Config())
    quantizer.preprocess_model(copied)  # as from_pretrained does, but with weights in it
    nn.Module.float(copied)
    copied.config.dtype = torch.float32
    copied.hf_quantizer = quantizer  # type: ignore[assignment]
    quantizer.postprocess_model(copied)
    return copied.eval()
