"""Training for a time instead of a number of steps."""

import time
from typing import Any

import torch.distributed
from tqdm import tqdm
from transformers import TrainerCallback


class WallClock(TrainerCallback):
    """Ends training after some minutes, with a checkpoint from which ``resume_from_checkpoint`` goes on exactly.

    The learning rate goes by steps, as without a clock: the steps of several sittings are those of one long run.

    With ``schedule_by_clock`` it reaches its end with the time instead, since how many steps fit is unknown: after a
    share t of the time, at least a share t of the schedule's steps count as done, and no checkpoint is saved that
    ``save_strategy`` does not ask for. A warm-up given in steps, not as a share, is left alone: the clock starts after
    it. Resumed, such a run walks the rest of its schedule in as many minutes again.

    Processes that train together stop at the same step, as soon as one of them is out of time, and have the rate of the
    one whose clock is ahead. With ``show`` there is
    a bar that fills with the time, for a trainer whose own bar of steps is off.
    """

    def __init__(self, minutes: float, schedule_by_clock: bool = False, show: bool = False) -> None:
        if not minutes > 0:
            raise ValueError(f"minutes={minutes!r} must be above 0.")
        self.seconds, self.schedule_by_clock = 60 * minutes, schedule_by_clock
        form = "{l_bar}{bar}| {n:.0f}/{total:.0f} s {postfix}"
        self.bar = tqdm(total=self.seconds, bar_format=form, disable=not show)

    def now(self) -> float:
        return time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, lr_scheduler: Any = None, **_: Any) -> None:
        self.begin = self.start = self.now()
        self.interrupted = False
        self.warmup = int(args.warmup_steps) if args.warmup_steps >= 1 else 0
        self.walked = max(self.warmup, lr_scheduler.last_epoch)  # steps of the schedule that the clock does not divide

    def on_step_end(self, args: Any, state: Any, control: Any, lr_scheduler: Any = None, **_: Any) -> None:
        now, end, due = self.now(), self.begin + self.seconds, 0
        if self.schedule_by_clock and now < end:
            if state.global_step <= self.warmup:
                self.start = now
            else:
                due = self.walked + int((now - self.start) / (end - self.start) * (state.max_steps - self.walked))
        due, over = most_anywhere(due, int(now >= end), device=args.device)
        lr_scheduler.last_epoch = max(lr_scheduler.last_epoch, due)
        if over:
            control.should_training_stop = True
            self.interrupted = not self.schedule_by_clock
            if self.interrupted:
                control.should_save = True
            else:  # as transformers ends a run by its steps
                control.should_save |= args.save_strategy in ("steps", "epoch")
                control.should_evaluate |= args.eval_strategy == "steps" and args.eval_delay <= state.global_step
        self.bar.update(min(now - self.begin, self.seconds) - self.bar.n)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Trainer calls an epoch ended that it broke off: its evaluation, and what is saved then, belong to its end.

        Where it did end, the checkpoint is saved once more, since the evaluation, which is part of it, comes only now.
        """
        if self.interrupted:
            ended = abs(state.epoch - round(state.epoch)) <= 1e-6
            control.should_save = control.should_evaluate = control.should_evaluate and ended

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.bar.set_postfix_str(f"loss {float(logs['loss']):.3f}, epoch {float(logs['epoch']):.1f}")

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.bar.close()


def most_anywhere(*here: int, device: torch.device) -> list[int]:
    """Each number's greatest value among the processes that train together."""
    if not torch.distributed.is_initialized():
        return [*here]
    most = torch.tensor(here, device=device)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    numbers: list[int] = most.tolist()
    return numbers
