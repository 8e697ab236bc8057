"""Train an encoder-decoder on your own pairs of texts.

A TSV file, a pair a line, no header; the tokenizer is trained on it too:

    python examples/train_seq2seq.py --output_dir out --do_train --do_eval --do_predict --num_beams 4 \\
        --train_file train.tsv --validation_file valid.tsv --test_file test.tsv --max_minutes 20

Parallel text files, compressed or not (CSV, JSON lines and `datasets` folders do as well: see --help):

    python examples/train_seq2seq.py --output_dir out --do_train --do_eval --config_overrides dropout=0.2 \\
        --train_file train.en.gz --train_target_file train.de.gz \\
        --validation_file val.en.gz --validation_target_file val.de.gz

`--tokens_per_batch 4096` fills batches by tokens instead of rows; see docs/training.md.
`--max_minutes 20` fits the learning rate to that time; with `--schedule_by_clock False` it stops there, to be resumed.
With `--teachers out1 out2` it also learns from what these checkpoints would write.
Afterwards: `import dragoman; AutoModelForSeq2SeqLM.from_pretrained("out")`. Needs `pip install dragoman[examples]`.
"""

import json
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    set_seed,
)

from dragoman import (
    DragomanConfig,
    DragomanForConditionalGeneration,
    DragomanTokenizer,
    DragomanTrainer,
    DragomanTrainingArguments,
    ExponentialMovingAverageCallback,
)
from seq2seq_checkpoints import check_fits, check_same_ids, choose_checkpoint, load_teachers
from seq2seq_data import encode_for_evaluation, encode_for_training, read
from seq2seq_scores import Scorer, check_bleu_tokenizer

logger = logging.getLogger("train_seq2seq")

# Where transformers' own defaults suit fine-tuning rather than training from scratch.
DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "adam_beta2": 0.98,
    "num_train_epochs": 20,
    "per_device_train_batch_size": 64,
    "per_device_eval_batch_size": 64,
    "train_sampling_strategy": "group_by_length",
    "logging_steps": 100,
    "save_total_limit": 2,
    "predict_with_generate": True,
    "use_cache": True,  # what training writes into the checkpoint
}


@dataclass
class ModelArguments:
    preset: str = field(default="small", metadata={"help": "The architecture: a function of dragoman.presets."})
    config_overrides: str = field(default="", metadata={"help": "Its fields: dropout=0.2,label_smoothing=0.1"})
    model_name_or_path: str | None = field(default=None, metadata={"help": "A checkpoint's folder, to start from."})
    tokenizer_name_or_path: str | None = field(default=None, metadata={"help": "A folder. Else the model's, or new."})
    algorithm: Literal["bpe", "unigram", "char", "word"] = field(default="bpe", metadata={"help": "Of a new tokenizer"})
    target_algorithm: str | None = field(default=None, metadata={"help": "If the targets need another one."})
    vocab_size: int = field(default=8000, metadata={"help": "At most so many tokens in a new tokenizer."})
    separate_vocabularies: bool = field(default=False, metadata={"help": "Train a vocabulary for each side."})
    target_vocab_size: int | None = field(default=None, metadata={"help": "If unlike the source's."})
    byte_fallback: bool = field(default=True, metadata={"help": "Spell unseen characters in bytes; without, <unk>."})
    teachers: list[str] | None = field(default=None, metadata={"help": "Folders of checkpoints to learn from, too."})
    moving_average: float | None = field(default=None, metadata={"help": "Decay of the weights' average: 0.999."})


@dataclass
class DataArguments:
    train_file: str | None = field(default=None, metadata={"help": ".tsv, .csv, .jsonl, .json; with .gz, too. UTF-8."})
    train_target_file: str | None = field(default=None, metadata={"help": "Its targets: then both are plain text."})
    validation_file: str | None = field(default=None, metadata={"help": "For --do_eval."})
    validation_target_file: str | None = None
    test_file: str | None = field(default=None, metadata={"help": "For --do_predict."})
    test_target_file: str | None = None
    dataset: str | None = field(default=None, metadata={"help": "Instead: a folder, of save_to_disk or data files."})
    source_column: str | None = field(default=None, metadata={"help": "By name. Else `source`; in TSV the first one."})
    target_column: str | None = field(default=None, metadata={"help": "If not named, a TSV file has no header."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only the first so many pairs."})
    max_eval_samples: int | None = None
    max_predict_samples: int | None = None
    max_source_length: int = field(
        default=256, metadata={"help": "In tokens. Longer pairs do not train; longer sources to evaluate are cut."}
    )
    max_target_length: int = field(default=256, metadata={"help": "In tokens; also the limit of generation."})
    num_beams: int | None = field(default=None, metadata={"help": "When trained; else a checkpoint's own, or 1."})
    bleu_tokenize: str = field(default="13a", metadata={"help": "sacrebleu's: 13a, char, zh, ja-mecab, none, ..."})


def parse_overrides(text: str) -> dict[str, Any]:
    overrides: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            raise ValueError(f"--config_overrides: {item!r} is not of the form name=value.")
        with suppress(json.JSONDecodeError):
            value = json.loads(value)
        if isinstance(getattr(DragomanConfig, name, None), float):
            with suppress(TypeError, ValueError):  # what is no number, the configuration refuses
                value = float(value)
        overrides[name] = value
    return overrides


def build(args: ModelArguments, start: str | None, train: Dataset | None) -> tuple[Any, Any]:
    """Model and tokenizer: from the checkpoint `start`, or new ones; the tokenizer of teachers is theirs."""
    overrides, teachers = parse_overrides(args.config_overrides), args.teachers or []
    for folder in filter(None, (args.tokenizer_name_or_path, start, *teachers)):
        if not Path(folder).is_dir():
            raise ValueError(f"{folder}: no such folder.")
    if known := args.tokenizer_name_or_path or start or next(iter(teachers), None):
        tokenizer = AutoTokenizer.from_pretrained(known)
    elif train is None:
        raise ValueError("Without --do_train there must be a --model_name_or_path.")
    else:
        tokenizer = DragomanTokenizer.train(
            train["source"],
            train["target"],
            vocab_size=args.vocab_size,
            target_vocab_size=args.target_vocab_size,
            algorithm=args.algorithm,
            target_algorithm=args.target_algorithm,
            byte_fallback=args.byte_fallback,
            share_vocabulary=not args.separate_vocabularies,
        )
    if start:
        config, unknown = AutoConfig.from_pretrained(start, return_unused_kwargs=True, **overrides)
        if unknown:
            raise ValueError(f"--config_overrides: the checkpoint's configuration has no {', '.join(unknown)}.")
        if args.tokenizer_name_or_path:
            check_same_ids(tokenizer, start)
        return AutoModelForSeq2SeqLM.from_pretrained(start, config=config), tokenizer
    config = DragomanConfig.from_tokenizer(tokenizer, args.preset, **overrides)
    return DragomanForConditionalGeneration(config), tokenizer


def main(argv: list[str] | None = None) -> DragomanTrainer:
    parts: Any = (ModelArguments, DataArguments, DragomanTrainingArguments)
    parser = HfArgumentParser(parts, description=(__doc__ or "").partition("\n")[0])
    parser.set_defaults(**DEFAULTS)
    given = parser.parse_known_args(argv)[0]
    if given.tokens_per_batch:
        parser.set_defaults(train_sampling_strategy="random")  # these batches are of like lengths anyway
    parser.set_defaults(schedule_by_clock=bool(given.max_minutes))
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)
    try:
        model_args, data, args = parser.parse_args_into_dataclasses(args=argv)
        set_seed(args.seed)
        if not (args.do_train or args.do_eval or args.do_predict):
            raise ValueError("Nothing to do: pass --do_train, --do_eval or --do_predict.")
        decay = model_args.moving_average
        averages = [] if decay is None else [ExponentialMovingAverageCallback(decay)]
        if averages and args.load_best_model_at_end:
            raise ValueError("--load_best_model_at_end would end with a checkpoint, not with --moving_average.")
        args.resume_from_checkpoint = choose_checkpoint(args)
        if data.num_beams is not None and data.num_beams < 1:
            raise ValueError(f"--num_beams must be at least 1, not {data.num_beams}.")
        check_bleu_tokenizer(data.bleu_tokenize)
        train = read(data, "train", args.do_train, data.max_train_samples)
        validation = read(data, "validation", args.do_eval, data.max_eval_samples)
        test = read(data, "test", args.do_predict, data.max_predict_samples)
        model, tokenizer = build(model_args, model_args.model_name_or_path or args.resume_from_checkpoint, train)
        teachers = load_teachers(model_args.teachers or [], tokenizer)
        lengths = data.max_source_length, data.max_target_length
        check_fits(model, tokenizer, *lengths)
        train = train and encode_for_training(train, tokenizer, *lengths)
        validation = validation and encode_for_evaluation(validation, tokenizer, *lengths, "validation")
        test = test and encode_for_evaluation(test, tokenizer, *lengths, "test")
    except (ValueError, OSError, StrictDataclassError) as error:
        raise SystemExit(f"train_seq2seq: {error}") from error
    first = f", the first {train[0]['source']!r:.40} → {train[0]['target']!r:.40}" if train else ""
    logger.info(f"{model.num_parameters():,} parameters; {len(train or ())} training pairs{first}")

    num_beams = data.num_beams or model.generation_config.num_beams or 1
    beams_alone = {"early_stopping": False, "length_penalty": 1.0} if num_beams == 1 else {}  # else refused in saving
    model.generation_config.update(max_length=data.max_target_length + 1, num_beams=num_beams, **beams_alone)
    args.generation_num_beams = args.generation_num_beams or 1  # while training
    trainer = DragomanTrainer(
        model=model,
        args=args,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        callbacks=averages,
        teachers=teachers,
    )
    score = validation and Scorer(tokenizer, validation, data.bleu_tokenize)
    trainer.compute_metrics = score if args.predict_with_generate else None
    if args.do_train:
        result = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        trainer.save_model()  # and the tokenizer
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()
    args.predict_with_generate = True  # evaluation while training may have been by the loss alone
    if score:
        trainer.compute_metrics = score
        score.report(trainer, "eval", trainer.evaluate(num_beams=num_beams))
    if test:
        trainer.compute_metrics = score = Scorer(tokenizer, test, data.bleu_tokenize)
        output = trainer.predict(test, metric_key_prefix="predict", num_beams=num_beams)
        score.report(trainer, "predict", output.metrics or {})
        if trainer.is_world_process_zero():
            score.write(Path(args.output_dir, "generated_predictions.txt"), output.predictions)
    return trainer


if __name__ == "__main__":
    main()
