"""Share a trained model: see what would be pushed, then push it.

    python examples/push_to_hub.py runs/mine me/my-model
    python examples/push_to_hub.py runs/mine me/my-model --push --private

Without --push nothing leaves this machine: the repository is prepared in a folder of its own, the model and its
tokenizer with the code that loads them and a model card, and checked. What training left besides is not taken along:
optimizer states, checkpoints, training_args.bin. Pushing needs `hf auth login`.
"""

import argparse
import shutil
from pathlib import Path

from dragoman.modeling.checkpoint_saving import replaced_weights
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from transformers import AutoTokenizer

from dragoman import DragomanTokenizer
from dragoman.averaging import load
from dragoman.model_cards import CARD, adopt, is_edited, refresh
from dragoman.verification import verify

REPORTS = ("all_results.json", "trainer_state.json")  # what the card's figures are read from


def prepare(source: Path, repo_id: str, target: Path, max_shard_size: str) -> None:
    """Raises ValueError for no source, a target that holds something else, or a result that `verify` refuses."""
    if not source.is_dir():
        raise ValueError(f"{source}: no such folder.")
    if target.is_dir() and any(target.iterdir()):
        refuse_problems(target)
    model, tokenizer = load(source), AutoTokenizer.from_pretrained(source)
    target.mkdir(parents=True, exist_ok=True)
    names = ["LICENSE", *REPORTS]
    if not (target / CARD).is_file() or (is_edited(source / CARD) and not is_edited(target / CARD)):
        names.append(CARD)
    for name in names:
        if (source / name).is_file():
            shutil.copy(source / name, target)
    model.save_pretrained(target, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(target)
    refresh(target, repo_id)
    for name in REPORTS:
        (target / name).unlink(missing_ok=True)
    refuse_problems(target)


def refuse_problems(folder: Path) -> None:
    problems = [f"{finding.path}: {finding.problem}" for finding in verify(folder) if finding.problem is not None]
    if problems:
        raise ValueError(f"{folder} holds what should not be pushed:\n  " + "\n  ".join(problems))


def push(folder: Path, repo_id: str, private: bool) -> str:
    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    adopt(folder, repo_id)  # a card that was written on the Hub stays
    names = [path.name for path in folder.iterdir()]
    # Of the model and the tokenizer that were there before: it would be loaded with these, or instead of them.
    stale = [*replaced_weights(names), *DragomanTokenizer.vocab_files_names.values()]
    message = "Upload model and tokenizer"
    return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, delete_patterns=stale))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="What training saved.")
    parser.add_argument("repo_id", help="The repository: me/my-model.")
    parser.add_argument("--output_dir", type=Path, help="Where it is prepared. Default: FOLDER-to-push.")
    parser.add_argument("--max_shard_size", default="5GB", help="The largest file of weights. Default: 5GB.")
    parser.add_argument("--push", action="store_true", help="Push it; else only prepare it.")
    parser.add_argument("--private", action="store_true", help="Nobody else sees the repository, if it is new.")
    args = parser.parse_args(argv)
    folder = args.folder.resolve()  # it may be "."
    target = args.output_dir or folder.with_name(f"{folder.name}-to-push")
    try:
        validate_repo_id(args.repo_id)
        prepare(folder, args.repo_id, target, args.max_shard_size)
    except (ValueError, OSError) as error:
        raise SystemExit(f"push_to_hub: {error}") from error
    for path in sorted(target.iterdir()):
        print(f"{path.stat().st_size:>14,}  {path.name}")
    if not args.push:
        print(f"{target} is what --push would push to {args.repo_id}. Complete its {CARD} before.")
        return
    try:
        print(f"Pushed: {push(target, args.repo_id, args.private)}")
    except (HTTPError, OSError, ValueError) as error:
        raise SystemExit(f"push_to_hub: {args.repo_id} was not pushed: {' '.join(str(error).split())}") from error


if __name__ == "__main__":
    main()
