"""What a Trainer trains on: batches filled by tokens, or grouped by length in an order that resuming finds again."""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import Seq2SeqTrainer
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import seed_worker

from .lengths import read_lengths
from .packing import DataCollatorForPackedSeq2Seq
from .token_budget import TokenBudgetBatchSampler


class SeededLengthGroupedSampler(LengthGroupedSampler):
    """Rows of like lengths beside each other, in an order drawn from ``(seed, epoch)`` alone.

    transformers' own draws from torch's global generator, whose state a run that is resumed within an epoch gets back
    only after the first batch: it would skip the beginning of one order, and go on with another.
    """

    def __init__(self, drawn: LengthGroupedSampler, seed: int) -> None:
        super().__init__(drawn.batch_size, lengths=drawn.lengths, generator=torch.Generator())
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed + self.epoch)
        return super().__iter__()


class TrainingBatches(Seq2SeqTrainer):
    """``Seq2SeqTrainer`` whose batches are, with ``DragomanTrainingArguments(tokens_per_batch=...)``, those of
    `TokenBudgetBatchSampler`, with ``packing=True`` packed ones; with ``train_sampling_strategy="group_by_length"``
    those of `SeededLengthGroupedSampler`. That strategy is for training: what is evaluated stays in its order.
    """

    _examples_per_batch: float | None = None  # the mean of what the budget makes

    # Two private hooks, where transformers chooses its samplers.
    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int] | None:
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            sampler = SeededLengthGroupedSampler(sampler, self._data_seed())
        return sampler

    def _get_eval_sampler(self, eval_dataset: Dataset[Any]) -> None:
        """None: one row after the other."""

    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def get_train_dataloader(self) -> DataLoader[Any]:
        args: Any = self.args
        budget, packing = getattr(args, "tokens_per_batch", None), getattr(args, "packing", False)
        if budget is None or self.train_dataset is None:
            self._examples_per_batch = None
            prepared = super().get_train_dataloader()
            batches = getattr(prepared.batch_sampler, "batch_sampler", prepared.batch_sampler)  # of several processes
            rows = getattr(batches, "sampler", None)
            if isinstance(rows, SeededLengthGroupedSampler):
                hand_on_epochs(prepared, rows)
            return prepared
        if args.n_gpu > 1:
            raise ValueError(
                f"tokens_per_batch={budget} is for one device, and here one process has {args.n_gpu}: start a process "
                "for each (accelerate launch, torchrun), or show it one (CUDA_VISIBLE_DEVICES=0)."
            )
        collator: Any = self.data_collator
        multiple = getattr(collator, "pad_to_multiple_of", None) or 1
        if not packing and getattr(collator, "padding", True) == "max_length":
            raise ValueError(
                f"The collator pads every row to max_length={getattr(collator, 'max_length', None)}, whatever "
                f"tokens_per_batch={budget} allows: leave its padding at True."
            )
        if packing:
            collator, multiple = DataCollatorForPackedSeq2Seq(self.processing_class, model=self.model), 1
        lengths = read_lengths(self.train_dataset, packing)
        if packing and (empty := [i for i, sides in enumerate(zip(*lengths, strict=True)) if 0 in sides]):
            raise ValueError(
                f"{len(empty):,} of {len(lengths[0]):,} examples have no source or no target tokens (the first is "
                f"number {empty[0]}), and cannot be packed: leave them out of the data, or end every sequence with the "
                "end token."
            )
        sampler = TokenBudgetBatchSampler(
            *lengths,
            tokens_per_batch=budget,
            packed=packing,
            pad_to_multiple_of=multiple,
            num_processes=args.world_size,
            seed=self._data_seed(),
        )
        self._examples_per_batch = sampler.num_examples / len(sampler)
        return self._prepare_batches(sampler, collator)

    def _prepare_batches(self, sampler: TokenBudgetBatchSampler, collator: Any) -> DataLoader[Any]:
        """As the stock trainer's private ``_get_dataloader``, which takes no batch sampler but its own."""
        dataset: Any = self.train_dataset
        args = self.args
        if hasattr(dataset, "remove_columns"):
            dataset = self._remove_unused_columns(dataset, description="Training")
        else:
            collator = self._get_collator_with_removed_columns(collator, description="Training")
        loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            prefetch_factor=args.dataloader_prefetch_factor,
            in_order=args.dataloader_in_order,
            worker_init_fn=functools.partial(
                seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index
            ),
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        hand_on_epochs(prepared, sampler)
        return prepared

    def get_total_train_batch_size(self, args: Any) -> int:
        total: int = super().get_total_train_batch_size(args)
        if self._examples_per_batch is None:
            return total
        return round(total / self._train_batch_size * self._examples_per_batch)


def hand_on_epochs(prepared: DataLoader[Any], sampler: SeededLengthGroupedSampler | TokenBudgetBatchSampler) -> None:
    """On several processes the trainer, resuming in an epoch, sets the epoch on accelerate's shard alone."""
    prepared.batch_sampler.set_epoch = sampler.set_epoch  # type: ignore[union-attr]
