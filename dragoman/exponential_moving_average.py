"""A moving average of the weights, kept while they train."""

import functools
from collections.abc import Callable, Iterator
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
    the weights once. Where a training is broken off, and another one takes the model over, the callback lets go of it.

    After Polyak and Juditsky, 1992; the warm-up is that of TensorFlow's ExponentialMovingAverage.

    Raises:
        ValueError: for a decay outside (0, 1); in training, for weights in half precision, which cannot hold small
            changes; for ``load_best_model_at_end`` and ``save_strategy="best"``; for a checkpoint to resume whose last
            steps are not in the average.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay={decay!r} must be between 0 and 1, such as 0.999.")
        self.decay = decay
        self._optimizer: Any = None
        self._swapped = False
        self._taken_over = False  # by somebody else who trains or loads the weights
        self._seen: list[Tensor] | None = None  # of the weights, when they were last known to be this training's own
        self._unfollow: list[Callable[[], Any]] = []

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        if args.load_best_model_at_end:
            raise ValueError(
                "load_best_model_at_end=True would end with the weights of a checkpoint, not with their average: leave "
                "it out."
            )
        if args.save_strategy == "best":
            raise ValueError(
                'save_strategy="best" would keep weights that were not measured, their average was: save by steps or '
                "epochs."
            )
        if state.global_step and not any(KEY in kept for _, kept in _trained(optimizer)):
            raise ValueError(
                "The checkpoint to resume was trained without ExponentialMovingAverageCallback, or saved without its "
                "optimizer (save_only_model=True), which holds the average: resume one that has optimizer.pt, or leave "
                "the callback out."
            )
        for parameter, kept in _trained(optimizer):
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
        self._taken_over, self._seen = False, None
        skipped = getattr(optimizer, "step_was_skipped", False)  # of accelerate's: gradients overflowed
        averages, weights = [], []
        for parameter, kept in _trained(optimizer):
            if KEY in kept:
                averages.append(kept[KEY])
                weights.append(parameter)
            elif parameter.grad is not None and not skipped:  # else optimizers have yet to set up their empty state
                kept[KEY] = parameter.detach().clone()
            if KEY in kept:
                kept[STEP] = step
        if averages:
            get_ema_multi_avg_fn(decay)(averages, weights, 0)

    def on_evaluate(self, *_: Any, **__: Any) -> None:
        self._show(False)

    def on_predict(self, *_: Any, **__: Any) -> None:
        self._show(False)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self._taken_over, self._seen = False, None
        self._show(True)
        self._let_go()

    def _follow(self, model: nn.Module, optimizer: Any) -> None:
        """The model's mode, which evaluations of any kind set first; no hook on forward, which compilers pass over."""
        of_before = getattr(vars(model).get("train"), "callback", self)
        for callback in (self, of_before):  # of trainings that were broken off
            if callback._unfollow:
                callback._show(False)
                callback._let_go()
        self._optimizer = optimizer

        def train(mode: bool = True) -> nn.Module:
            self._show(not mode)
            if mode and self._seen is None:
                self._seen = self._look()
            return type(model).train(model, mode)

        model.train = _WhileFollowed(self, train, (type(model).train, model))  # type: ignore[method-assign]
        show_weights = _WhileFollowed(self, lambda *_: self._show(False), (_do_nothing,))
        hook = model.register_state_dict_pre_hook(show_weights)
        self._unfollow = [hook.remove, lambda: delattr(model, "train")]

    def _let_go(self) -> None:
        while self._unfollow:
            self._unfollow.pop()()
        self._optimizer, self._swapped, self._taken_over, self._seen = None, False, False, None

    def _show(self, average: bool) -> None:
        if average == self._swapped or self._taken_over:
            return
        if self._seen is None or all(map(torch.equal, self._seen, self._look())):
            self._swap()
        else:
            self._taken_over, self._swapped = True, False

    def _look(self) -> list[Tensor]:
        """A few numbers from all over the weights, of which any training changes some."""
        parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        return [p.detach().flatten()[-9:].clone() for p in parameters[:: -(-len(parameters) // 9)]]

    @torch.no_grad()
    def _swap(self) -> None:
        """Weights and their average change places."""
        for parameter, kept in _trained(self._optimizer):
            if KEY in kept:
                now = parameter.detach().clone()
                parameter.copy_(kept[KEY])
                kept[KEY].copy_(now)
        self._swapped, self._seen = not self._swapped, self._look()


class _WhileFollowed:
    """A function that a model has while it trains; its copies (in a data loader's workers, say) have the stock one."""

    def __init__(
        self, callback: ExponentialMovingAverageCallback, function: Callable[..., Any], stock: tuple[Any, ...]
    ) -> None:
        self.callback, self.function, self.stock = callback, function, stock

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial, self.stock


def _do_nothing(*_: Any) -> None:
    pass


def _trained(optimizer: Any) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield parameter, optimizer.state[parameter]
