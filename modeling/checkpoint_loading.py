"""Loading a checkpoint: every weight that was saved has to be there, in its shape; none is drawn at random instead."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from .checkpoint_files import check_files
from .int8_modules import Int8Matrix


class CheckpointLoading(PreTrainedModel):
    """``from_pretrained`` that raises where transformers would warn and go on with random weights."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Safetensors only, unless ``use_safetensors`` says otherwise: other formats can run code.

        Raises:
            ValueError: for a weight that the saved class owns and the folder lacks, or one of another shape.
            OSError: for a folder without config.json or weights, or weights that are cut off or damaged.
        """
        kwargs.setdefault("use_safetensors", True)
        where = pretrained_model_name_or_path
        folder = None if where is None else Path(where, kwargs.get("subfolder") or "")
        if folder is not None and folder.is_dir() and not is_adapter(folder):
            if kwargs.get("config") is None:
                refuse_half_saved(folder)
            if kwargs["use_safetensors"]:
                check_files(folder, kwargs.get("variant"))
        try:
            return super().from_pretrained(where, *args, **kwargs)
        except Exception as error:
            if type(error).__name__ != "SafetensorError":  # whose module the code that travels does not import
                raise
            raise OSError(
                f"The weights of {where} cannot be read ({error}). If a download was damaged, it stays in the cache "
                "until force_download=True repeats it."
            ) from error

    @staticmethod
    def _finalize_model_loading(model: Any, load_config: Any, loading_info: Any) -> Any:
        # Private in transformers, and the only place after reading and before the missing is allocated and drawn.
        where = load_config.pretrained_model_name_or_path
        if not load_config.ignore_mismatched_sizes:
            refuse_other_shapes(loading_info.mismatched_keys, where)
        is_int8 = getattr(model, "is_int8", False)  # recurrent models never are
        if load_config.hf_quantizer is None or is_int8:  # else others made the weights what they are
            refuse_other_types(model, loading_info.unexpected_keys, where)
        missing, ties = loading_info.missing_keys, model.all_tied_weights_keys
        stored = {owner for name, owner in ties.items() if name not in missing}  # by another of its names
        missing = missing - ties.keys() - stored
        refuse_missing(model, missing, where)
        if is_int8:
            refuse_new_int8(missing | {key for key, *_ in loading_info.mismatched_keys}, where)
        return PreTrainedModel._finalize_model_loading(model, load_config, loading_info)


def is_adapter(folder: Path) -> bool:
    """Whether it holds an adapter alone, whose model transformers finds elsewhere."""
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def refuse_half_saved(folder: Path) -> None:
    """transformers would take the default configuration."""
    if not (folder / "config.json").is_file():
        raise OSError(
            f"{folder} has no config.json, which is written last: saving did not get through, or a copy is not whole. "
            "Save or copy it again."
        )


def refuse_missing(model: Any, missing: set[str], where: Any) -> None:
    """A head may be new where another class was saved; the decoder too, where an encoder was."""
    name, config = type(model).__name__, model.config
    architectures = config.architectures or []
    saved = architectures[0] if architectures and architectures[0].startswith("Dragoman") else name
    classifies = saved.endswith("SequenceClassification") and config.classifier_backbone == "encoder"
    owned = ("encoder.",) if "Encoder" in saved or classifies else ("encoder.", "decoder.")
    prefix = f"{model.base_model_prefix}."
    lost = sorted(key for key in missing if saved == name or key.removeprefix(prefix).startswith(owned))
    if lost:
        raise ValueError(
            f"{where} lacks {_some(lost)}, which {saved} owns: nothing is drawn at random in its place. Save the model "
            "again, or copy all of its files."
        )


def refuse_new_int8(new: set[str], where: Any) -> None:
    """Nothing draws numbers of int8, and nothing trains them."""
    if new:
        raise ValueError(
            f"{where} holds int8 weights, but {_some(sorted(new))} would be new, and what is new cannot learn in int8: "
            "load it with the class that saved it, dequantize() and save it, and load that as what you want to train."
        )


def refuse_other_shapes(mismatched: set[tuple[str, Any, Any]], where: Any) -> None:
    if mismatched:
        shapes = sorted((key, tuple(stored), tuple(own)) for key, stored, own in mismatched)
        found = _some([f"{key} {stored} where config.json means {own}" for key, stored, own in shapes])
        raise ValueError(
            f"{where} holds weights of other shapes than its configuration says: {found}. Does config.json belong to "
            "them? ignore_mismatched_sizes=True draws such weights anew."
        )


def refuse_other_types(model: Any, unexpected: set[str], where: Any) -> None:
    """transformers would read int8 as the fp32 numbers −127 … 127, with a line in its report."""
    int8 = {id(module.weight) for module in model.modules() if isinstance(module, Int8Matrix)}
    if not int8 and any(key.endswith(".weight_scale") for key in unexpected):
        raise ValueError(
            f"{where} holds int8 weights, which its configuration does not say: config.json lacks the "
            "quantization_config that it was saved with."
        )
    wrong = sorted(name for name, p in model.named_parameters() if p.is_floating_point() == (id(p) in int8))
    if wrong:
        raise ValueError(
            f"{where} holds weights of another type than quantization_config in its config.json says: "
            f"{_some(wrong)}. Does config.json belong to them?"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
