"""What several test files train: a few words, whose reversal is to be learnt, and a Trainer that says little."""

from pathlib import Path
from typing import Any

import torch
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

from dragoman import DragomanConfig, DragomanForConditionalGeneration, DragomanTokenizer
from support import tiny

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def word_tokenizer() -> DragomanTokenizer:
    return DragomanTokenizer.train(WORDS, algorithm="char", byte_fallback=False, vocab_size=40)


def rows(tokenizer: DragomanTokenizer, count: int = 32) -> list[dict[str, list[int]]]:
    """Word sequences of uneven lengths and their reversals, of other lengths."""
    chosen = [[WORDS[(i * 7 + j * 3) % 10] for j in range(1 + i % 4)] for i in range(count)]
    encoded = tokenizer([" ".join(words) for words in chosen], text_target=[words[-1][::-1] for words in chosen])
    return [{name: encoded[name][i] for name in ("input_ids", "attention_mask", "labels")} for i in range(count)]


def trainer(tokenizer: DragomanTokenizer, folder: Path, model: Any = None, **arguments: Any) -> Seq2SeqTrainer:
    if model is None:
        torch.manual_seed(0)
        model = DragomanForConditionalGeneration(DragomanConfig.from_tokenizer(tokenizer, preset=tiny(dropout=0.1)))
    collator = arguments.pop("collator", None) or DataCollatorForSeq2Seq(tokenizer, model=model)
    trainer_class = arguments.pop("trainer_class", Seq2SeqTrainer)
    functions = {name: arguments.pop(name, None) for name in ("compute_metrics", "compute_loss_func")}
    defaults = {
        "per_device_train_batch_size": 8,
        "learning_rate": 3e-3,
        "max_steps": 6,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
    }
    return trainer_class(
        model=model,
        args=Seq2SeqTrainingArguments(output_dir=str(folder), **{**defaults, **arguments}),
        data_collator=collator,
        train_dataset=rows(tokenizer),
        eval_dataset=rows(tokenizer, 11),
        processing_class=tokenizer,
        **functions,
    )


def logged(run: Seq2SeqTrainer, name: str) -> list[float]:
    return [entry[name] for entry in run.state.log_history if name in entry]


def likelihood(model: Any, tokenizer: Any) -> float:
    """Mean −log p of the evaluation set's target tokens, one row at a time."""
    total, tokens = 0.0, 0
    for row in rows(tokenizer, 11):
        loss = model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss
        total, tokens = total + loss.item() * len(row["labels"]), tokens + len(row["labels"])
    return total / tokens
