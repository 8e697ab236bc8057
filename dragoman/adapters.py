"""Adapters through peft: which modules they change where the user names none."""

import importlib.util


def register_adapter_targets() -> None:
    """Tell peft, where it is installed, what is adapted by default, as for BART and T5."""
    if importlib.util.find_spec("peft") is None:
        return
    from peft.utils import constants

    feed_forward = ["down_proj"]
    for kind, targets in (
        ("LORA_TARGET", ["q_proj", "v_proj"]),
        ("IA3_TARGET", ["k_proj", "v_proj", *feed_forward]),
        ("IA3_FEEDFORWARD", feed_forward),
        ("LNTUNING_TARGET", ["norm"]),
    ):
        getattr(constants, f"TRANSFORMERS_MODELS_TO_{kind}_MODULES_MAPPING").setdefault("dragoman", targets)
