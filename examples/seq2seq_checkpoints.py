"""Where a training of `train_seq2seq.py` goes on from."""

from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint

from dragoman import DragomanTrainingArguments


def choose_checkpoint(args: DragomanTrainingArguments) -> str | None:
    """To go on from. Raises ValueError if there is none; or one though none is wanted: it would outlive new ones."""
    wanted, folder = args.resume_from_checkpoint, args.output_dir
    if not args.do_train and wanted in ("true", "True") and Path(folder, "config.json").is_file():
        return folder  # what training ended with: an average, or the best one
    found = get_last_checkpoint(folder) if Path(folder).is_dir() else None
    if wanted in ("true", "True") and found is None:
        raise ValueError(f"--resume_from_checkpoint true: {folder} has no checkpoint-* to go on from.")
    if args.do_train and wanted is None and found is not None:
        raise ValueError(f"{found} is of a run before: name a new --output_dir, or --resume_from_checkpoint true.")
    if wanted not in ("true", "True"):
        return wanted
    # The state is written last, and a run may have been killed before.
    states = Path(folder).glob("checkpoint-*/trainer_state.json")
    whole = {int(steps): path.parent for path in states if (steps := path.parent.name.rpartition("-")[2]).isdigit()}
    if not whole:
        raise ValueError(f"{found} was cut off while it was written, and there is none before it: begin anew.")
    return str(whole[max(whole)])
