"""Saving a checkpoint whole or not at all: what lies in the folder stays readable until all of the new is written."""

import filecmp
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from huggingface_hub import HfApi
from transformers import PreTrainedModel

STAGE = ".saving-"
RECORD = "config.json"  # nothing loads a folder without it
SEEN = ("*.py", "tokenizer_config.json")  # what writing code beside a checkpoint looks at
LEFTOVER_AGE = 24 * 3600  # seconds, after which nobody is writing there any more


class CheckpointSaving(PreTrainedModel):
    """``save_pretrained`` that writes beside the old checkpoint, then moves file by file, ``config.json`` last.

    A process that dies while it writes leaves the old one; while it moves, a folder without ``config.json``, which
    loads nowhere. transformers alone writes over the old one: after a crash, shards of both would load as one model.
    """

    write_card: ClassVar[Callable[..., Any] | None] = None  # set by `import dragoman`

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Any] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "50GB",
        variant: str | None = None,
        token: str | bool | None = None,
        save_peft_format: bool = True,
        save_original_format: bool = True,
        distributed_checkpoint: bool = False,
        **kwargs: Any,
    ) -> None:
        options: dict[str, Any] = {
            "is_main_process": is_main_process,
            "state_dict": state_dict,
            "max_shard_size": max_shard_size,
            "variant": variant,
            "save_peft_format": save_peft_format,
            "save_original_format": save_original_format,
        }
        if getattr(self, "hf_quantizer", None) is None:  # maybe a new model, of a quantized one's configuration
            vars(self.config).pop("quantization_config", None)
        folder = Path(save_directory)
        # Many processes write one folder, or none is written here.
        if distributed_checkpoint or folder.is_file() or not self.should_save_on_this_rank(is_main_process):
            options |= {"push_to_hub": push_to_hub, "token": token, "distributed_checkpoint": distributed_checkpoint}
            super().save_pretrained(folder, **options, **kwargs)
            return
        with staging(folder) as stage:
            before = _states(stage)
            super().save_pretrained(stage, **options)
            written = [name for name, state in sorted(_states(stage).items()) if before.get(name) != state]
            commit(stage, folder, variant)
        if self.write_card is not None:
            self.write_card(folder)
        if push_to_hub:  # transformers would push before the files are in place
            self._push(folder, written, token, variant, **kwargs)

    def _push(
        self,
        folder: Path,
        names: list[str],
        token: str | bool | None,
        variant: str | None = None,
        repo_id: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        **creation: Any,
    ) -> None:
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id or folder.resolve().name, exist_ok=True, **creation).repo_id
        if self.write_card is not None:
            self.write_card(folder, repo_id, token=token, fetch=True)
            names = [*names, "README.md"]
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=names,
            commit_message=commit_message or "Upload model",
            create_pr=create_pr,
            delete_patterns=replaced_weights(names, variant),
        )

    def _upload_modified_files(
        self,
        working_dir: str | os.PathLike[str],
        repo_id: str,
        files_timestamps: dict[str, float],
        commit_message: str | None = None,
        token: str | bool | None = None,
        create_pr: bool = False,
        revision: str | None = None,
        commit_description: str | None = None,
    ) -> Any:
        # Private in transformers, and the only place after push_to_hub wrote a README.md of its own over ours.
        if self.write_card is not None:
            self.write_card(working_dir, repo_id, token=token, revision=revision, fetch=True)
        if files_timestamps:  # of many processes: not all that lies in the folder is pushed
            return super()._upload_modified_files(
                working_dir, repo_id, files_timestamps, commit_message, token, create_pr, revision, commit_description
            )
        api = HfApi(token=token)
        if revision is not None and not revision.startswith("refs/pr"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=Path(working_dir),
            commit_message=commit_message or f"Upload {type(self).__name__}",
            revision=revision,
            delete_patterns=replaced_weights(os.listdir(working_dir)),
            create_pr=create_pr,
            commit_description=commit_description,
        )


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A folder within ``folder``, on its file system, that begins with what is ``SEEN``; gone in the end."""
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{STAGE}*"):
        if time.time() - leftover.stat().st_mtime > LEFTOVER_AGE:
            shutil.rmtree(leftover, ignore_errors=True)
    with TemporaryDirectory(prefix=STAGE, dir=folder, ignore_cleanup_errors=True) as name:
        for file in _seen(folder):
            shutil.copy2(file, name)
        yield Path(name)


def commit(stage: Path, folder: Path, variant: str | None = None) -> None:
    """Move what was written in ``stage`` into ``folder``, and remove what it replaces."""
    new = {path.name for path in stage.iterdir()}
    moves = sorted(name for name in new if not _is_same(stage / name, folder / name))
    old = {path.name for path in _seen(folder)} - new
    if RECORD in new:  # else it is an adapter, and the weights here are those it adapts
        old |= {path.name for path in folder.iterdir() if _weights_of(variant).fullmatch(path.name)} - new
        if len(moves) + len(old) > 1:
            (folder / RECORD).unlink(missing_ok=True)  # from here on no checkpoint, until the last move
            moves = [*(name for name in moves if name != RECORD), RECORD]
    for name in old:
        (folder / name).unlink()
    for name in moves:
        (stage / name).replace(folder / name)


def _seen(folder: Path) -> list[Path]:
    return [path for pattern in SEEN for path in folder.glob(pattern) if path.is_file()]


def _states(folder: Path) -> dict[str, tuple[int, int]]:
    """Of each file, by name: other ones, once it is written anew."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


def _is_same(new: Path, old: Path) -> bool:
    """Whether a file need not be moved. Weights are not compared: reading them takes as long as writing them did."""
    return new.suffix != ".safetensors" and old.is_file() and filecmp.cmp(new, old, shallow=False)


def _weights_of(variant: str | None) -> re.Pattern[str]:
    """Where transformers leaves what it does not write anew, it loads a single file rather than newer shards."""
    middle = "" if variant is None else re.escape(f".{variant}")
    return re.compile(rf"model{middle}(-\d{{5}}-of-\d{{5}})?\.safetensors|model\.safetensors\.index{middle}\.json")


def replaced_weights(names: Iterable[str], variant: str | None = None) -> list[str]:
    """Patterns of what a push of these files shall delete on the Hub, but for themselves: weights, if it brings any."""
    if not any(_weights_of(variant).fullmatch(name) for name in names):
        return []
    middle = "" if variant is None else f".{variant}"
    return [
        f"model{middle}.safetensors",
        f"model{middle}-?????-of-?????.safetensors",
        f"model.safetensors.index{middle}.json",
    ]
