"""A model's tensors by name: copies of those in memory, or read from a folder one by one."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..modeling.checkpoint_files import check_safetensors, shard_names


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies, so that training one model leaves the other alone; names that share a tensor share its copy."""
    copies: dict[int, Tensor] = {}
    state = model.state_dict(keep_vars=True)
    return {name: copies.setdefault(id(value), value.detach().clone()) for name, value in state.items()}


def dtype_of(state: Mapping[str, Tensor]) -> torch.dtype:
    """That of most weights."""
    dtypes = [value.dtype for value in state.values() if value.is_floating_point()]
    return max(set(dtypes), key=dtypes.count)


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
