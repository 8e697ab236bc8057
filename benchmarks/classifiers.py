"""Small classifiers that the benchmark of attribution trains: on a planted key word, and on sentences of films."""

import random
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from dragoman import DragomanConfig, DragomanTokenizer

Examples = list[tuple[str, int]]
KEYS = {"hate": 0, "love": 1}


def planted(count: int, seed: int) -> Examples:
    """4 to 20 words of 200 at random, and among them one of two that decides."""
    generator = random.Random(seed)
    common = [f"{first}{second}" for first in "bdfgklmnpr" for second in "ab eb ib ob ub ax ex ix ox ux".split()]
    common += [word[::-1] for word in common]
    examples = []
    for _ in range(count):
        words = generator.choices(common, k=generator.randint(4, 20))
        key = generator.choice(list(KEYS))
        words.insert(generator.randint(0, len(words)), key)
        examples.append((" ".join(words), KEYS[key]))
    return examples


def read_sst2(file: Path) -> Examples:
    lines = (line.split(" ", 1) for line in file.read_text("utf-8").splitlines())
    return [(text, int(label)) for label, text in lines]


def train_classifier(examples: Examples, seed: int, epochs: int, **fields: Any) -> tuple[Any, DragomanTokenizer]:
    """An encoder of 2 layers under a linear head, from scratch, by the stock Trainer."""
    set_seed(seed)
    texts = [text for text, _ in examples]
    tokenizer = DragomanTokenizer.train(texts, vocab_size=fields.pop("vocab_size"))
    config = DragomanConfig.from_tokenizer(tokenizer, preset="tiny", id2label={0: "negative", 1: "positive"}, **fields)
    model = AutoModelForSequenceClassification.from_config(config)
    rows = [
        {"input_ids": ids, "labels": label}
        for ids, (_, label) in zip(tokenizer(texts).input_ids, examples, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=32,
            learning_rate=1e-3,
            warmup_steps=100,
            weight_decay=0.01,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            use_cpu=True,
            seed=seed,
        )
        Trainer(
            model=model, args=arguments, train_dataset=rows, data_collator=DataCollatorWithPadding(tokenizer)
        ).train()
    return model.eval(), tokenizer


@torch.no_grad()
def accuracy(model: Any, tokenizer: DragomanTokenizer, examples: Examples) -> float:
    right = 0
    for start in range(0, len(examples), 64):
        texts, labels = zip(*examples[start : start + 64], strict=True)
        logits = model(**tokenizer(list(texts), padding=True, return_tensors="pt")).logits
        right += int((logits.argmax(1) == torch.tensor(labels)).sum())
    return right / len(examples)
