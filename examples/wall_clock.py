"""Training for a time instead of a number of steps."""

import time
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback


class WallClock(TrainerCallback):
    """Trains for a time instead of a number of steps: a bar in seconds, and a rate that falls to 0 at their end."""

    def __init__(self, minutes: float) -> None:
        self.seconds = minutes * 60
        self.bar = tqdm(total=round(self.seconds), unit="s", bar_format="{l_bar}{bar}| {n:.0f}/{total} s {postfix}")
        self.start: float | None = None

    def progress(self) -> float:
        return 0.0 if self.start is None else min(1.0, (time.monotonic() - self.start) / self.seconds)

    def schedule(self, step: int) -> float:
        """Warm up over 300 steps, then fall along a line."""
        return min(1.0, (step + 1) / 300) * (1.0 - self.progress())

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.start = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.n = self.progress() * self.seconds
        self.bar.refresh()
        control.should_training_stop = self.progress() >= 1.0

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.bar.set_postfix_str(f"loss {logs['loss']:.3f}, epoch {logs['epoch']:.1f}")

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.bar.close()
