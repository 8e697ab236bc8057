"""What all configurations here share: strict fields, errors that name the nearest one, saving with the code."""

# No `from __future__ import annotations` here: strict dataclasses check real types, and skip strings.
import difflib
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

from transformers import GenerationConfig, PreTrainedConfig
from transformers.utils import logging

from .file_validation import check_file
from .validation import is_newer

VERSION = "0.1.0"

logger = logging.get_logger(__name__)

# What transformers itself passes through a configuration's constructor, or writes into config.json.
_TRANSFORMERS_KEYWORDS = frozenset(
    "_attn_implementation _attn_implementation_internal _commit_hash _experts_implementation "
    "_experts_implementation_internal _name_or_path _output_attentions attn_implementation auto_map "
    "custom_pipelines experts_implementation finetuning_task model_type name_or_path num_labels "
    "output_attentions prefix quantization_config task_specific_params torch_dtype".split()
)


class DragomanBaseConfig(PreTrainedConfig):
    """A configuration of an encoder-decoder. Subclasses are strict dataclasses with a field ``dragoman_version``."""

    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "encoder_last_hidden_state"]
    entry_points: ClassVar[dict[str, str]]  # what the Auto classes find in a folder with this code: the auto_map
    export_code: ClassVar[Callable[..., Any] | None] = None  # set by `import dragoman`

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs = self._refuse_unknown_keywords(kwargs)
        self.dragoman_version = VERSION
        for name, value in self.derived_fields().items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        super().__post_init__(**kwargs)

    def derived_fields(self) -> dict[str, Any]:
        """What the fields that may be None stand for."""
        return {}

    def _refuse_unknown_keywords(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        unknown = [name for name in kwargs if name not in _TRANSFORMERS_KEYWORDS]
        if unknown and is_newer(self.dragoman_version, VERSION):
            logger.warning(f"Dragoman {VERSION} ignores what it does not know: {', '.join(unknown)}.")
            return {name: value for name, value in kwargs.items() if name not in unknown}
        if unknown:
            raise ValueError(self._describe_unknown(unknown[0]))
        return kwargs

    def _describe_unknown(self, name: str) -> str:
        names = [field.name for field in fields(self)]
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.75)
        hint = f"Did you mean {near[0]}?" if near else f"Its fields are {', '.join(names)}."
        if name in self.attribute_map:
            sides = [n for n in names if n.endswith(f"coder_{name}")] or [self.attribute_map[name]]
            hint = f"It is a name for reading only; set {' and '.join(sides)}."
        elif hasattr(GenerationConfig, name) or name in vars(GenerationConfig()):
            hint = "It is a generation setting: set it in model.generation_config."
        elif name in ("rope_theta", "rope_scaling"):
            hint = "It belongs into rope_parameters."
        return f"{type(self).__name__} has no field {name!r}. {hint}"

    def _strays(self) -> list[str]:
        """What was set and is no field. Refused at once, it would stop transformers, which sets such on its copies."""
        known = {*self.__dataclass_fields__, *_TRANSFORMERS_KEYWORDS}
        return [name for name in vars(self) if not name.startswith("_") and name not in known]

    def to_dict(self) -> dict[str, Any]:
        """Without what is no field, which no file may hold: it would be refused when it is loaded."""
        strays = self._strays()
        return {name: value for name, value in super().to_dict().items() if name not in strays}

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """With the plugin imported, write the code that loads the folder without it, too."""
        for name in self._strays():
            logger.warning(f"{self._describe_unknown(name)} It is not saved.")
        auto_map = self.entry_points if self.export_code is None else self.export_code(save_directory)
        if auto_map is not None:
            self.auto_map = dict(auto_map)
        super().save_pretrained(save_directory, **kwargs)
        if push_to_hub:  # transformers would push what changes from here on, without the code
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        warning = check_file(config_dict, VERSION)
        if warning is not None:
            logger.warning(warning)
        return super().from_dict(config_dict, **kwargs)

    @property
    def output_attentions(self) -> Any:
        """Every attention implementation returns weights on request here, so nothing is refused."""
        return self._output_attentions

    @output_attentions.setter
    def output_attentions(self, value: Any) -> None:
        self._output_attentions = value

    def validate_output_attentions(self) -> None:
        pass
