"""The files of a CTranslate2 model, read without the engine. Nothing they say is trusted.

``model.bin`` is little-endian; a string is its length as uint16 and its bytes, a zero at the end::

    file      uint32 version · string specification · uint32 revision · uint32 n · n variables · uint32 m · m aliases
    variable  string name · uint8 rank · uint32 sizes … · uint8 type · uint32 bytes · data
    alias     string name · string name of the variable that it stands for

Before version 4 a variable says its item's size and the number of items instead of type and bytes, before version 3
there are no aliases. Quantized weights come back as the engine computes them in float32, ``q · (1 / scale)``.
"""

import json
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

VERSIONS = range(2, 7)
_TYPES = (torch.float32, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16)
_TYPES_OF_SIZE = {4: torch.float32, 2: torch.int16, 1: torch.int8}
_SETTINGS: dict[tuple[type, ...], str] = {  # null is allowed everywhere
    (str,): "bos_token eos_token unk_token decoder_start_token",
    (bool,): "add_source_bos add_source_eos",
    (float,): "layer_norm_epsilon",
}
_OLD_INT16_SCALE = 1000.0  # of files that do not say


@dataclass(frozen=True)
class EngineModel:
    """What a folder holds: names and tensors, settings, and the tokens of both sides in the order of their ids."""

    specification: str
    revision: int
    variables: dict[str, Tensor]
    settings: dict[str, Any]
    source_tokens: list[str]
    target_tokens: list[str]


def is_ctranslate2_folder(path: str | os.PathLike[str]) -> bool:
    """Whether the folder has a ``model.bin`` that begins as CTranslate2 begins one."""
    file = Path(path) / "model.bin"
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        start = stream.read(64)
    if len(start) < 8 or struct.unpack_from("<I", start)[0] not in range(1, 100):
        return False
    length = struct.unpack_from("<H", start, 4)[0]
    name = start[6 : 6 + length]
    return 0 < length == len(name) and name[-1] == 0 and name[:-1].isalnum()


def read_folder(path: str | os.PathLike[str]) -> EngineModel:
    """Raises FileNotFoundError for a file that is missing, ValueError for one that is cut, broken or foreign."""
    folder = Path(path)
    if not (folder / "model.bin").is_file():
        raise FileNotFoundError(f"{folder} has no model.bin: it is no model of CTranslate2.")
    if not is_ctranslate2_folder(folder):
        raise ValueError(f"{folder / 'model.bin'} is not a file of CTranslate2.")
    specification, revision, variables = read_variables(folder / "model.bin")
    settings = _old_settings(variables)
    if (folder / "config.json").is_file():
        settings |= _check_settings(read_json(folder / "config.json", dict))
    unknown = settings.get("unk_token") or "<unk>"
    sides = [_read_tokens(folder, side, unknown) for side in ("source", "target")]
    return EngineModel(specification, revision, _dequantize(variables), settings, *sides)


def read_variables(path: Path) -> tuple[str, int, dict[str, Tensor]]:
    """Specification, revision, and the variables as they are stored; aliases share memory."""
    with path.open("rb") as file:
        cursor = _Cursor(file, path)
        version = cursor.number("I")
        if version not in VERSIONS:
            raise ValueError(f"{path} has version {version} of the format; {VERSIONS[0]} to {VERSIONS[-1]} are known.")
        specification, revision = cursor.text(), cursor.number("I")
        variables: dict[str, Tensor] = {}
        for _ in range(cursor.number("I")):
            name = cursor.text()
            if name in variables:
                raise ValueError(f"{path} holds {name!r:.80} twice.")
            variables[name] = cursor.variable(name, version)
        for _ in range(cursor.number("I") if version >= 3 else 0):
            alias, name = cursor.text(), cursor.text()
            if name not in variables or alias in variables:
                raise ValueError(f"{path}: the alias {alias!r:.80} of {name!r:.80} is not one.")
            variables[alias] = variables[name]
            if f"{name}_scale" in variables:
                variables[f"{alias}_scale"] = variables[f"{name}_scale"]
        if cursor.left:
            raise ValueError(f"{path} goes on for {cursor.left} bytes after its last variable: it is broken.")
    return specification, revision, variables


def _old_settings(variables: dict[str, Tensor]) -> dict[str, Any]:
    """What was a variable before it moved to config.json."""
    flags = {"add_source_bos": "with_source_bos", "add_source_eos": "with_source_eos"}
    settings: dict[str, Any] = {name: bool(variables.pop(flag)) for name, flag in flags.items() if flag in variables}
    if not variables.pop("with_target_bos", torch.tensor(1)):
        settings["decoder_start_token"] = "</s>"
    return settings


def _check_settings(settings: dict[str, Any]) -> dict[str, Any]:
    for kind, names in _SETTINGS.items():
        for name in names.split():
            if not isinstance(settings.get(name), (*kind, type(None))):
                raise ValueError(f"config.json: {name} must not be {settings[name]!r:.60}.")
    return settings


class _Cursor:
    """Takes a file apart from its start, never more than is there."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file = file
        self.path = path
        self.left = path.stat().st_size

    def take(self, count: int) -> bytearray:
        if count > self.left:
            raise ValueError(
                f"{self.path} is cut short or broken: it announces {count} bytes at byte {self.file.tell()}, and "
                f"{self.left} are left."
            )
        self.left -= count
        return bytearray(self.file.read(count))

    def number(self, code: str) -> int:
        value: int = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]
        return value

    def text(self) -> str:
        raw = self.take(self.number("H"))
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path} is broken: a name is not UTF-8 at byte {self.file.tell()}.") from error
        if not text.endswith("\0"):
            raise ValueError(f"{self.path} is broken: a name does not end at byte {self.file.tell()}.")
        return text[:-1]

    def variable(self, name: str, version: int) -> Tensor:
        shape = [self.number("I") for _ in range(self.number("B"))]
        code, count = self.number("B"), self.number("I")
        known = dict(enumerate(_TYPES)) if version >= 4 else _TYPES_OF_SIZE
        if code not in known:
            raise ValueError(f"{self.path}: {name!r:.80} has the unknown type {code}.")
        dtype = known[code]
        size = count if version >= 4 else count * code
        if math.prod(shape) * dtype.itemsize != size:
            raise ValueError(f"{self.path}: {name!r:.80} has {size} bytes, which do not fill its shape {shape}.")
        data = self.take(size)
        return torch.frombuffer(data, dtype=dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)


def _dequantize(variables: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every ``weight`` that is a matrix of integers as float32; its scale, one a row or one for all, is used up."""
    found = {}
    for name, value in variables.items():
        quantized = value.dim() > 0 and value.dtype in (torch.int8, torch.int16)
        if name.endswith("weight_scale"):
            continue
        if quantized and name.endswith("weight"):
            scale = variables.get(f"{name}_scale")
            if scale is None and value.dtype == torch.int8:
                raise ValueError(f"{name!r:.80} is quantized, and {name}_scale is missing.")
            scale = torch.tensor(_OLD_INT16_SCALE) if scale is None else scale.float()
            rows = (-1, *[1] * (value.dim() - 1)) if scale.dim() else ()
            value = value.float() * (1 / scale).reshape(rows)
        found[name] = value.float() if value.dim() and value.is_floating_point() else value
    return found


def _read_tokens(folder: Path, side: str, unknown: str) -> list[str]:
    for stem in ("shared_vocabulary", f"{side}_vocabulary"):
        if (path := folder / f"{stem}.json").is_file():
            tokens = read_json(path, list)
            break
        if (path := folder / f"{stem}.txt").is_file():
            try:
                tokens = path.read_bytes().decode().removesuffix("\n").split("\n")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path} is not UTF-8: {error}") from error
            if all(token.endswith("\r") for token in tokens):
                tokens = [token[:-1] for token in tokens]
            break
    else:
        raise FileNotFoundError(f"{folder} has no {side}_vocabulary.txt, shared_vocabulary.txt or .json of that name.")
    if not all(isinstance(token, str) for token in tokens) or len(set(tokens)) < len(tokens):
        raise ValueError(f"{path} must hold tokens, each of them once.")
    return tokens if unknown in tokens else [*tokens, unknown]  # as the engine does


def read_json(path: Path, kind: type) -> Any:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path} must hold a JSON {kind.__name__}, not a {type(value).__name__}.")
    return value
