"""What transformers needs to load an int8 checkpoint: its ``quantization_config``, and who acts on it."""

import logging
from typing import Any

import torch
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from .int8_arithmetic import missing_kernel

logger = logging.getLogger(__name__)
METHOD = "dragoman_int8"


class Int8Config(QuantizationConfigMixin):
    """``quantization_config`` of a checkpoint with int8 weights and one fp32 scale an output row. Nothing to choose."""

    def __init__(self, quant_method: str = METHOD, **unknown: Any) -> None:
        if quant_method != METHOD or unknown:
            raise ValueError(
                f"quantization_config of an int8 model of dragoman holds quant_method={METHOD!r} and nothing else, "
                f"got quant_method={quant_method!r:.80} and {list(unknown)!r:.200}."
            )
        self.quant_method = METHOD  # type: ignore[assignment]


class Int8Quantizer(HfQuantizer):
    """What ``from_pretrained`` asks where ``config.json`` holds an :class:`Int8Config`.

    Where the CPU has no kernel, the model that is loaded is the fp32 one that the int8 weights stand for.

    Raises:
        ValueError: for a device other than the CPU, or a dtype other than float32.
    """

    requires_calibration = True  # none of another model's weights while they load: dragoman.quantize(model) does that

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        places = device_map.values() if isinstance(device_map, dict) else [device_map or "auto"]
        elsewhere = sorted({str(place) for place in places} - {"cpu", "auto"})
        if elsewhere:
            raise ValueError(
                f"An int8 model of dragoman runs on the CPU only, and device_map asks for {', '.join(elsewhere)}: load "
                "it without a device_map; model.dequantize() gives an fp32 model, which can be moved."
            )

    def update_device_map(self, device_map: Any) -> Any:
        return None if device_map is None else {"": "cpu"}

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        if dtype != torch.float32:
            raise ValueError(
                f"An int8 model of dragoman computes in float32 between its products, not in {dtype}: leave dtype "
                "out; model.dequantize() gives an fp32 model, which can be cast."
            )
        return dtype

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> torch.dtype | None:
        """Numbers are not cut to int8: where they are no int8 yet, the model refuses them."""
        return None if dtype == torch.int8 else super().get_new_dtype(converter, param, dtype)

    # The model acts itself: code beside checkpoints has classes of its own, whoever registered the quantizer first.
    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        model.become_int8()

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> None:
        model.requires_grad_(False)  # loading made parameters anew
        reason = missing_kernel()
        if reason is not None:
            logger.warning(f"This machine cannot use the int8 weights, which are fp32 from now on: {reason}.")
            self.dequantize(model)

    def _dequantize(self, model: Any, dtype: torch.dtype | str | None = None) -> Any:
        model.become_fp32()
        return model.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)

    def remove_quantization_config(self, model: Any) -> None:
        super().remove_quantization_config(model)
        model.config._is_quantized = False

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def register_int8() -> None:
    """Make ``METHOD`` known to transformers; twice is harmless."""
    # transformers' own functions refuse a second time, and the plugin and the code beside a checkpoint, or that of two
    # checkpoints, may run in one process.
    AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(METHOD, Int8Config)
    AUTO_QUANTIZER_MAPPING.setdefault(METHOD, Int8Quantizer)
