"""A moving average of the weights, kept while they train."""

from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback

KEY = "exponential_moving_average"  # in the optimizer's state of each parameter
STEP = "exponential_moving_average_step"  # beside it, of the last weights in it


class ExponentialMovingAverageCallback(TrainerCallback):
    """Keeps ``s ← d·s + (1 − d)·w`` over the steps of any Trainer, and ends with the model's weights being s.

    d is ``min(decay, (1 + t) / (10 + t))`` at step t, so that the beginning is soon forgotten. Evaluation while
    training is of s, however many sets it has: ``model.eval()`` gives the model s, ``model.train()``, the end of an
    evaluation and saving take it back. Training, and the weights in its checkpoints, stay what they were without it. s
    is kept in the state of the optimizer, so that ``resume_from_checkpoint`` goes on exactly; it takes the memory of
    the weights once.

    After Polyak and Juditsky, 1992; the warm-up is that of TensorFlow's ExponentialMovingAverage.

    Raises:
        ValueError: for a decay outside (0, 1); in training, for weights in half precision, which cannot hold small
            changes; for ``load_best_model_at_end``; for a checkpoint to resume whose last steps are not in the average.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay={decay!r} must be between 0 and 1, such as 0.999.")
        self.decay = decay
        self._swapped = False
        self._unfollow: list[Callable[[], Any]] = []

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        if args.load_best_model_at_end:
            raise ValueError(
                "load_best_model_at_end=True would end with the weights of a checkpoint, not with their average: leave "
                "it out."
            )
        if state.global_step and not any(KEY in kept for _, kept in self._trained(optimizer)):
            raise ValueError(
                "The checkpoint to resume was trained without ExponentialMovingAverageCallback, or saved without its "
                "optimizer (save_only_model=True), which holds the average: resume one that has optimizer.pt, or leave "
                "the callback out."
            )
        for parameter, kept in self._trained(optimizer):
            if state.global_step and kept.get(STEP, state.global_step) != state.global_step:
                raise ValueError(
                    f"The checkpoint to resume, of step {state.global_step}, holds the average of step {kept[STEP]}: "
                    "between them it was trained without ExponentialMovingAverageCallback. Resume an earlier one, or "
                    "leave the callback out."
                )
            if parameter.dtype in (torch.float16, torch.bfloat16):
                raise ValueError(
                    f"weights in {parameter.dtype} cannot hold the small changes of a moving average: load the "
                    "model in dtype=torch.float32, and train with bf16=True."
                )
        self._follow(model, optimizer)

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        step = state.global_step + 1  # counted only afterwards
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, weights = [], []
        for parameter, kept in self._trained(optimizer):
            if KEY in kept:
                averages.append(kept[KEY])
                weights.append(parameter)
            elif parameter.grad is not None:  # else it never moved, and optimizers set up an empty state
                kept[KEY] = parameter.detach().clone()
            if KEY in kept:
                kept[STEP] = step
        if averages:
            get_ema_multi_avg_fn(decay)(averages, weights, 0)

    def on_evaluate(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        self._show(False, optimizer)

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any, optimizer: Any = None, **_: Any) -> None:
        self._show(False, optimizer)

    def on_train_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        self._stop_following()
        self._show(True, optimizer)
        self._swapped = False

    def _follow(self, model: nn.Module, optimizer: Any) -> None:
        """The model's mode, which evaluations of any kind set first; no hook on forward, which compilers pass over."""
        self._stop_following()  # of a training that was broken off
        self._swapped = False

        def train(module: nn.Module, mode: bool = True) -> nn.Module:
            if module is model:  # else a copy
                self._show(not mode, optimizer)
            return type(module).train(module, mode)

        model.train = MethodType(train, model)  # type: ignore[method-assign]
        hook = model.register_state_dict_pre_hook(lambda *_: self._show(False, optimizer))
        self._unfollow = [hook.remove, lambda: delattr(model, "train")]

    def _stop_following(self) -> None:
        while self._unfollow:
            self._unfollow.pop()()

    def _show(self, average: bool, optimizer: Any) -> None:
        if average != self._swapped:
            self._swap(optimizer)

    @torch.no_grad()
    def _swap(self, optimizer: Any) -> None:
        """Weights and their average change places."""
        for parameter, kept in self._trained(optimizer):
            if KEY in kept:
                now = parameter.detach().clone()
                parameter.copy_(kept[KEY])
                kept[KEY].copy_(now)
        self._swapped = not self._swapped

    def _trained(self, optimizer: Any) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                yield parameter, optimizer.state[parameter]
