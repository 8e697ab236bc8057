"""LoRA through peft: which projections it adapts where the user names none."""

import importlib.util


def register_lora_targets() -> None:
    """Tell peft, where it is installed, that queries and values are adapted by default, as for BART and T5."""
    if importlib.util.find_spec("peft") is None:
        return
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as TARGETS

    TARGETS.setdefault("dragoman", ["q_proj", "v_proj"])
