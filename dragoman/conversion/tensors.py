"""A model's tensors by name: copies of those in memory, or read from a folder one by one."""

import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..modeling.checkpoint_files import check_safetensors, shard_names


def existing_folder(name: str | os.PathLike[str]) -> Path:
    """Raises NotADirectoryError for what is none, such as a name on the Hub."""
    if not Path(name).is_dir():
        raise NotADirectoryError(f"{name} is not a folder on this machine; from the Hub fetch it with `hf download`.")
    return Path(name)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies, so that training one model leaves the other alone; names that share a tensor share its copy."""
    copies: dict[int, Tensor] = {}
    state = model.state_dict(keep_vars=True)
    return {name: copies.setdefault(id(value), value.detach().clone()) for name, value in state.items()}


def apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With a copy for each name but the first of a tensor: of names that share one, saving keeps one."""
    seen: set[int] = set()
    own = {}
    for name, value in state.items():
        own[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return own


def dtype_of(state: Mapping[str, Tensor]) -> torch.dtype:
    """That of most weights, if all of them fit without loss; else one that holds all."""
    floats = [value for value in state.values() if value.is_floating_point()]
    dtypes = [value.dtype for value in floats]
    common = max(set(dtypes), key=dtypes.count)
    if all(value.dtype == common or torch.equal(value.to(common).to(value.dtype), value) for value in floats):
        return common
    return functools.reduce(torch.promote_types, dtypes)


class FolderTensors(Mapping[str, Tensor]):
    """The tensors of a checkpoint folder, each read when it is asked for.

    Raises:
        OSError: for a folder without safetensors, or with damaged ones.
    """

    def __init__(self, folder: Path) -> None:
        whole, index = folder / SAFE_WEIGHTS_NAME, folder / SAFE_WEIGHTS_INDEX_NAME
        if not whole.is_file() and not index.is_file():
            raise OSError(
                f"{folder} has no {SAFE_WEIGHTS_NAME}. Other formats can run code and are not read: if you trust them, "
                "load the model with transformers and pass the model itself to convert_from, or save it anew."
            )
        self.files: dict[str, Path] = {}
        for shard in [whole] if whole.is_file() else [folder / name for name in shard_names(index)]:
            check_safetensors(shard)
            with safe_open(shard, framework="pt") as file:
                self.files |= dict.fromkeys(file.keys(), shard)

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self.files[name], framework="pt") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)
