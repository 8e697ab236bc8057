"""The thin glue that stock ``Seq2SeqTrainer`` lacks: an evaluation that is exact, and needs no logits."""

import functools
import inspect
import logging
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Seq2SeqTrainer, Trainer
from transformers.modelcard import TrainingSummary
from transformers.trainer_utils import EvalLoopOutput, unwrap_peft_model

from .card_facts import stated_facts, summary_facts
from .model_cards import CARD, adopt, refresh
from .modeling.loss import IGNORE_INDEX
from .modeling.modeling_dragoman import DragomanPreTrainedModel

logger = logging.getLogger(__name__)


class DragomanTrainer(Seq2SeqTrainer):
    """``Seq2SeqTrainer`` whose ``eval_loss`` is ``Σ −log p(token) / tokens`` over the evaluation set.

    The same for every evaluation batch size and number of processes; the stock trainer's is a mean over batches of
    their means, which counts rows that processes repeat to fill their last batch, and smooths with
    ``label_smoothing_factor``. Logits are asked for only where ``compute_metrics`` or ``predict()`` reads them, so
    that the memory of an evaluation does not grow with the vocabulary. The model card says all that the stock trainer's
    does, and is never written over one that a person edited. Training is the stock trainer's, and takes any
    encoder-decoder.
    """

    _likelihood: list[tuple[float, int]]  # of each batch: summed −log p, and tokens

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
        try:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        finally:
            self.label_smoother = smoother
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
        read = not (prediction_loss_only or self.args.predict_with_generate)  # type: ignore[attr-defined]
        parameters = inspect.signature(unwrap_peft_model(self.model).forward).parameters
        call: Any = model
        if not read and "return_logits" in parameters:
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
        # In evaluation the mean over this process's batch: with a count, the stock trainer would average devices.
        evaluating = self.model is not None and not self.model.training
        count = None if evaluating else num_items_in_batch
        return super().compute_loss(model, inputs, return_outputs, count)

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Take over a card that a person wrote on the Hub: what is pushed from here on replaces the one there."""
        super().init_hf_repo(*args, **kwargs)
        if self.is_world_process_zero() and self.hub_model_id is not None:
            adopt(Path(str(self.args.output_dir)), self.hub_model_id, self.args.hub_token)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card of a Dragoman model from all that the stock trainer would put into it."""
        if not isinstance(self.accelerator.unwrap_model(self.model), DragomanPreTrainedModel):
            super().create_model_card(*args, **kwargs)
            return
        if not self.is_world_process_zero():
            return
        given = inspect.signature(Trainer.create_model_card).bind(self, *args, **kwargs).arguments
        given.pop("self")
        summary = TrainingSummary.from_trainer(self, **given)
        folder = Path(str(self.args.output_dir))
        live = {"training": summary_facts(summary), "stated": stated_facts(summary)}
        if not refresh(folder, self.hub_model_id or given.get("model_name"), live):
            logger.warning(f"{folder / CARD} is not dragoman's and stays as it is; delete it to have it written anew.")

    def _without_repeated_rows(self, labels: Tensor) -> Tensor:
        """Ignore the rows that accelerate repeats to fill the last batches, as ``gather_for_metrics`` drops them."""
        state = self.accelerator.gradient_state
        if not state.end_of_dataloader or state.remainder <= 0:
            return labels
        labels = labels.clone()
        labels[max(0, state.remainder - self.args.process_index * len(labels)) :] = IGNORE_INDEX
        return labels
