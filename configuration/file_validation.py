"""What a config.json may hold that no configuration checks: the file may be somebody else's, or broken."""

import re
from collections.abc import Mapping
from typing import Any

from .validation import is_newer, shorten

# transformers takes these from a file as they come; None stands for their default.
_TYPES: dict[str, tuple[type, ...]] = {
    "_attn_implementation": (str,),  # transformers takes it for the one without the underscore
    "architectures": (list,),
    "attn_implementation": (str,),
    "auto_map": (dict,),
    "chunk_size_feed_forward": (int,),
    "custom_pipelines": (dict,),
    "dragoman_version": (str,),
    "finetuning_task": (str,),
    "id2label": (dict,),
    "label2id": (dict,),
    "name_or_path": (str,),
    "num_labels": (int,),
    "output_attentions": (bool, list),
    "output_hidden_states": (bool,),
    "prefix": (str,),
    "problem_type": (str,),
    "quantization_config": (dict,),
    "return_dict": (bool,),
    "rope_parameters": (dict,),
    "task_specific_params": (dict,),
    "transformers_version": (str,),
}
_DTYPE = re.compile(r"(bfloat16|float16|float32|float64|float8_\w+)")
# A file beside config.json and a class in it; or a note, which no repository can have as its name.
_REFERENCE = re.compile(r"\w+\.\w+|pip install [\w ;]+--no\.Code")
_MOST_LABELS = 2**20


def check_file(fields: Mapping[str, Any], version: str) -> str | None:
    """What is worth a warning about the fields of a file, if anything.

    Raises:
        ValueError: for a wrong type, an absurd size, or a name that leads out of the folder.
    """
    for name, types in _TYPES.items():
        value = fields.get(name)
        if (value is not None or name == "num_labels" in fields) and type(
            value
        ) not in types:  # True is an int to isinstance
            raise ValueError(f"{name} must be of type {types[0].__name__}, got {shorten(value)}.")
    for name in ("architectures", "id2label", "label2id"):
        if fields.get(name):
            check_names(name, fields[name])
    for name in ("dtype", "torch_dtype"):
        if fields.get(name) is not None and not _DTYPE.fullmatch(str(fields[name]).removeprefix("torch.")):
            raise ValueError(f"{name} must be a type of floating-point numbers, got {shorten(fields[name])}.")
    if not 0 <= fields.get("num_labels", 0) <= _MOST_LABELS:
        raise ValueError(f"num_labels must be from 0 to {_MOST_LABELS}, got {shorten(fields['num_labels'])}.")
    for name in ("attn_implementation", "_attn_implementation"):
        if "/" in (fields.get(name) or ""):
            raise ValueError(
                f"{name} names code on the Hub, {shorten(fields[name])}: a file cannot ask for that. Pass it to "
                "from_pretrained if you trust it."
            )
    tasks = fields.get("custom_pipelines") or {}
    pipelines = {name: task.get("impl") if isinstance(task, dict) else task for name, task in tasks.items()}
    for field, references in (("auto_map", fields.get("auto_map") or {}), ("custom_pipelines", pipelines)):
        for name, reference in references.items():
            if not (isinstance(reference, str) and _REFERENCE.fullmatch(reference)):
                raise ValueError(
                    f"{field}[{shorten(name)}] points outside the folder, to {shorten(reference)}. Remove {field} from "
                    "config.json: with dragoman imported it is not needed."
                )
    written_by = fields.get("dragoman_version") or version
    if is_newer(written_by, version):
        return (
            f"This checkpoint was written by Dragoman {shorten(written_by)}, newer than the {version} that loads it, "
            "which may not know all of its options: pip install -U dragoman."
        )
    return None


def check_names(name: str, value: Any) -> None:
    """``architectures`` is a list of names, ``id2label`` maps numbers to names and ``label2id`` names to numbers."""
    if name == "id2label":  # its numbers are strings in a file, and numbers in to_dict()
        good = all(str(key).isdigit() and isinstance(label, str) for key, label in value.items())
    else:
        good = all(isinstance(item, str) for item in value)
    if good and name == "label2id":
        good = all(type(index) is int for index in value.values())
    if not good:
        raise ValueError(f"{name} holds something of a wrong type: {shorten(value)}.")
