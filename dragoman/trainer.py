"""The thin glue that stock ``Seq2SeqTrainer`` lacks: an exact evaluation without logits, teachers, Muon, a clock."""

import copy
import functools
import inspect
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer
from transformers.modelcard import TrainingSummary
from transformers.trainer_utils import EvalLoopOutput

from .card_facts import stated_facts, summary_facts
from .distillation import Teachers, may_return_logits
from .model_cards import CARD, adopt, refresh
from .modeling.checkpoint_saving import CheckpointSaving
from .modeling.loss import IGNORE_INDEX
from .muon import MuonAdamW
from .packing import DataCollatorForPackedSeq2Seq
from .training_batches import TrainingBatches
from .wall_clock import WallClock

logger = logging.getLogger(__name__)


class DragomanTrainer(TrainingBatches):
    """``Seq2SeqTrainer`` whose ``eval_loss`` is ``Σ −log p(token) / tokens`` over the evaluation set.

    The same for every evaluation batch size and number of processes; the stock trainer's is a mean over batches of
    their means, which counts rows that processes repeat to fill their last batch, and smooths with
    ``label_smoothing_factor``. (Of several GPUs in one process, ``nn.DataParallel``, it stays the mean; on several
    processes rows that are repeated count of a stream, of a collator that packs, and where the labels of a model that
    is not ours are numbers.) Logits are asked for only where ``compute_metrics`` or ``predict()`` reads them, so that
    the memory of an evaluation does not grow with the vocabulary. The model card says all that the stock trainer's
    does, and is never written over one that a person edited.

    Training is the stock trainer's, of any encoder-decoder, on the batches of `TrainingBatches`. With
    ``teachers=[...]`` it learns from what these models would write, too (see ``Teachers``). Where tokens are counted
    (``include_num_input_tokens_seen``), those of the target count too.
    """

    _likelihood: list[tuple[float, int]]  # of each batch: summed −log p, and tokens

    def __init__(self, *args: Any, teachers: Sequence[PreTrainedModel] = (), **kwargs: Any) -> None:
        self._likelihood = []
        super().__init__(*args, **kwargs)
        given: Any = self.args
        has_own_loss = self.compute_loss_func is not None
        packed = getattr(given, "packing", False) or isinstance(self.data_collator, DataCollatorForPackedSeq2Seq)
        self.teachers = Teachers(teachers, self.model, given, has_own_loss, packed) if teachers else None
        if getattr(given, "max_minutes", None) is not None:
            self.add_callback(WallClock(given.max_minutes, given.schedule_by_clock))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        args, trained = self.args, self.model if model is None else model
        if self.optimizer is None and trained is not None and getattr(args, "muon", False):
            betas = (args.adam_beta1, args.adam_beta2)
            self.optimizer = MuonAdamW(
                trained, args.learning_rate, args.weight_decay, betas=betas, eps=args.adam_epsilon
            )
        return super().create_optimizer(model)

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        super()._track_num_input_tokens(inputs)
        counted, labels = self.args.include_num_input_tokens_seen, inputs.get("labels")
        if counted != "no" and labels is not None and labels.dim() == 2 and not labels.is_floating_point():  # tokens
            tokens = (labels != IGNORE_INDEX).sum() if counted == "non_padding" else torch.tensor(labels.numel())
            everywhere = self.accelerator.gather(tokens.to(self.args.device))
            self.state.num_input_tokens_seen += int(everywhere.sum())

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        self._likelihood = []
        smoother, self.label_smoother = self.label_smoother, None
        # else a loss by the tokens of all processes, times their number, as the mean of their gradients needs it
        averaging, self.args.average_tokens_across_devices = self.args.average_tokens_across_devices, False
        settings = getattr(self.model, "generation_config", None)
        asked = {} if settings is None else copy.deepcopy(vars(settings))
        if self.args.world_size > 1 and self._sequences_a_row() == 1:
            # Seq2SeqTrainer sets one that keeps the rows which processes repeat to fill the last batches.
            self.gather_function = self.accelerator.gather_for_metrics
        try:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        finally:
            self.label_smoother, self.args.average_tokens_across_devices = smoother, averaging
            if settings is not None:
                vars(settings).update(asked)  # Seq2SeqTrainer writes defaults into it: max_length=20, to be saved
        batches = gather_object(self._likelihood)  # of all processes
        tokens = sum(count for _, count in batches)
        if tokens and output.metrics is not None:
            output.metrics[f"{metric_key_prefix}_loss"] = sum(total for total, _ in batches) / tokens
        return output

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **gen_kwargs: Any,
    ) -> tuple[Any, Tensor | None, Tensor | None]:
        tokens = 0
        inputs = {name: value for name, value in inputs.items() if value is not None}  # stock collators: labels=None
        if "labels" in inputs:
            inputs["labels"] = self._without_repeated_rows(inputs["labels"])
            tokens = int((inputs["labels"] != IGNORE_INDEX).sum())
        unread = prediction_loss_only or self.args.predict_with_generate  # type: ignore[attr-defined]
        # else who computes the loss may want the logits, and look at the model
        ours = self.compute_loss_func is None and type(self).compute_loss is DragomanTrainer.compute_loss
        call: Any = model
        if unread and ours and may_return_logits(self.model):
            call = functools.partial(model, return_logits=False)
        loss, predictions, labels = super().prediction_step(
            call, inputs, prediction_loss_only, ignore_keys, **gen_kwargs
        )
        if tokens and loss is not None:
            self._likelihood.append((float(loss) * tokens, tokens))
        return loss, predictions, labels

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        # In evaluation the mean over this process's batch. A compute_loss_func gets the count that it gets elsewhere.
        evaluating = self.model is not None and not self.model.training
        count = None if evaluating and self.compute_loss_func is None else num_items_in_batch
        if self.teachers is not None and not evaluating:
            model = self.teachers.beside(model, self.state.global_step)
        return super().compute_loss(model, inputs, return_outputs, count)

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Take over a card that a person wrote on the Hub: what is pushed from here on replaces the one there."""
        super().init_hf_repo(*args, **kwargs)
        if self.is_world_process_zero() and self.hub_model_id is not None:
            adopt(Path(str(self.args.output_dir)), self.hub_model_id, self.args.hub_token)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card of a Dragoman model from all that the stock trainer would put into it."""
        if not isinstance(self.accelerator.unwrap_model(self.model), CheckpointSaving):
            super().create_model_card(*args, **kwargs)
            return
        if not self.is_world_process_zero():
            return
        given = inspect.signature(Trainer.create_model_card).bind(self, *args, **kwargs).arguments
        given.pop("self")
        summary = TrainingSummary.from_trainer(self, **given)
        folder = Path(str(self.args.output_dir))
        live = {"training": summary_facts(summary, self), "stated": stated_facts(summary)}
        if not refresh(folder, self.hub_model_id or given.get("model_name"), live):
            logger.warning(f"{folder / CARD} is not dragoman's and stays as it is; delete it to have it written anew.")

    def _sequences_a_row(self) -> int:
        settings = getattr(self.model, "generation_config", None)
        given: dict[str, Any] = getattr(self, "_gen_kwargs", {})
        return given.get("num_return_sequences") or getattr(settings, "num_return_sequences", None) or 1

    def _without_repeated_rows(self, labels: Tensor) -> Tensor:
        """Ignore the rows that accelerate repeats to fill the last batches, as ``gather_for_metrics`` drops them."""
        state = self.accelerator.gradient_state  # of one process it may be the training's
        if self.args.world_size == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return labels
        if labels.is_floating_point() and not isinstance(self.accelerator.unwrap_model(self.model), CheckpointSaving):
            return labels  # which would be compared with a number that is none
        labels = labels.clone()
        labels[max(0, state.remainder - self.args.process_index * len(labels)) :] = IGNORE_INDEX
        return labels
