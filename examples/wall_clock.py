"""Training for a time instead of a number of steps."""

import time
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback


class WallClock(TrainerCallback):
    """Ends training after some minutes, with the learning rate at its end.

    How many steps fit is unknown. So the clock walks the schedule: after a share t of the time, at least a share t of
    its steps count as done. A warm-up given in steps, not as a share, is left alone: the clock starts after it.
    With ``show`` there is a bar that fills with the time, for a trainer whose own bar of steps is off.
    """

    def __init__(self, minutes: float, show: bool = False) -> None:
        self.seconds = 60 * minutes
        form = "{l_bar}{bar}| {n:.0f}/{total:.0f} s {postfix}"
        self.bar = tqdm(total=self.seconds, bar_format=form, disable=not show)

    def now(self) -> float:
        return time.monotonic()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.begin = self.start = self.now()

    def on_step_end(self, args: Any, state: Any, control: Any, lr_scheduler: Any = None, **_: Any) -> None:
        now, end = self.now(), self.begin + self.seconds
        warmup = int(args.warmup_steps) if args.warmup_steps >= 1 else 0
        if state.global_step <= warmup:
            self.start = now
        elif now < end:
            due = warmup + int((now - self.start) / (end - self.start) * (state.max_steps - warmup))
            lr_scheduler.last_epoch = max(lr_scheduler.last_epoch, due)
        control.should_training_stop = control.should_training_stop or now >= end
        self.bar.update(min(now - self.begin, self.seconds) - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.bar.set_postfix_str(f"loss {float(logs['loss']):.3f}, epoch {float(logs['epoch']):.1f}")

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.bar.close()


class ProcessorClock(WallClock):
    """The same by processor time of this process, all its threads together: what else the machine does, or that it
    pauses the process, takes nothing away. Data must be loaded in the process, and the model be trained on the CPU."""

    def now(self) -> float:
        return time.process_time()
