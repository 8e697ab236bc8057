"""Int8 against fp32: how fast one product is, and what a trained model loses.

    python benchmarks/quantization.py products
    python benchmarks/quantization.py quality runs/pronounce     # what examples/pronounce.py trained
    python benchmarks/quantization.py workers

``products`` times ``Int8Linear`` beside ``nn.Linear``, in turns. ``quality`` reads words that were held out of training
with both models: the tokens they choose after the same beginning, and what they write on their own. ``workers`` asks
whether two processes of one thread each, which share the weights, beat two threads on one batch after the other.
"""

import argparse
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from dragoman.modeling.int8_arithmetic import quantize_rows
from dragoman.modeling.int8_modules import Int8Linear, frozen
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import dragoman
from dragoman import DragomanForConditionalGeneration, presets

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))

SHAPES = [(256, 256), (256, 1024), (256, 8000), (512, 512), (512, 2048), (512, 32000)]  # inputs, outputs
ROWS = (1, 4, 16, 64)


def median_time(call: Callable[[], object], calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - started) / calls


@torch.inference_mode()
def products(rounds: int) -> None:
    print(
        "| inputs to outputs | " + " | ".join(f"{rows} rows" for rows in ROWS) + " |\n|--:" + "|--:" * len(ROWS) + "|"
    )
    for inputs, outputs in SHAPES:
        torch.manual_seed(0)
        layer = nn.Linear(inputs, outputs)
        q, scale = quantize_rows(layer.weight)
        int8 = Int8Linear(frozen(q), frozen(scale), layer.bias)
        cells = []
        for rows in ROWS:
            x = torch.randn(rows, inputs)
            times: dict[nn.Module, list[float]] = {layer: [], int8: []}
            calls = max(3, 2**24 // (rows * inputs * outputs))
            for _ in range(rounds + 1):
                for module, measured in times.items():
                    measured.append(median_time(lambda m=module, x=x: m(x), min(calls, 300)))  # type: ignore[misc]
            fp32, fast = (1e6 * statistics.median(measured[1:]) for measured in times.values())
            cells.append(f"{fp32 / fast:.1f} ({fast:,.0f} µs)")
        print(f"| {inputs} to {outputs:,} | " + " | ".join(cells) + " |", flush=True)


@torch.inference_mode()
def quality(folder: Path, words: int) -> None:
    from pronounce import is_held_out, measure, pronounce, read_dictionary

    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    models = {"fp32": model, "int8": dragoman.quantize(model)}
    dictionary = read_dictionary()
    held_out = sorted(filter(is_held_out, dictionary))
    held_out = held_out[:: max(1, len(held_out) // words)][:words]
    said = {name: pronounce(held_out, m, tokenizer) for name, m in models.items()}
    losses: dict[str, float] = dict.fromkeys(models, 0.0)
    tokens = agreeing = 0
    for start in range(0, len(held_out), 256):
        chunk = held_out[start : start + 256]
        ways = [dictionary[word][0] for word in chunk]
        inputs = dict(tokenizer(chunk, text_target=ways, padding=True, return_tensors="pt"))
        inputs["labels"] = inputs["labels"].masked_fill(inputs["labels"] == model.config.pad_token_id, -100)
        real = inputs["labels"] != -100
        choices: list[Tensor] = []
        for name, m in models.items():
            outputs = m(**inputs)
            losses[name] += float(outputs.loss) * int(real.sum())
            choices.append(outputs.logits.argmax(-1)[real])
        tokens, agreeing = tokens + int(real.sum()), agreeing + int((choices[0] == choices[1]).sum())
    print(f"{len(held_out):,} held-out words, {tokens:,} tokens, {model.num_parameters():,} parameters\n")
    print("| | loss | word errors | phoneme errors |\n|--|--:|--:|--:|")
    for name in models:
        word_errors, phoneme_errors = measure(dictionary, held_out, said[name])
        print(f"| {name} | {losses[name] / tokens:.4f} | {word_errors:.2f} % | {phoneme_errors:.2f} % |")
    equal = sum(a == b for a, b in zip(said["fp32"], said["int8"], strict=True))
    print(f"\nThe same next token: {agreeing / tokens:.2%}. The same pronunciation: {equal / len(held_out):.2%}.")


def workers(rounds: int, batches: int = 6, length: int = 32) -> None:
    if not hasattr(os, "fork"):
        raise SystemExit("The workers are forks, which this system has none of.")
    torch.manual_seed(0)
    torch.set_num_threads(1)  # a process that has started threads cannot be forked
    config = presets.small(vocab_size=8000)
    model = dragoman.quantize(DragomanForConditionalGeneration(config))
    inputs = [torch.randint(3, config.vocab_size, (16, 20)) for _ in range(batches)]

    def work(part: list[Tensor]) -> None:
        for ids in part:
            model.generate(ids, max_new_tokens=length, min_new_tokens=length)

    def two_processes() -> None:
        children = []
        for number in range(2):
            child = os.fork()
            if child == 0:
                work(inputs[number::2])
                os._exit(0)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)

    times = {}
    work(inputs[:1])
    for name, threads, call in (("processes", 1, two_processes), ("threads", 2, lambda: work(inputs))):
        torch.set_num_threads(threads)
        times[name] = statistics.median(median_time(call, 1) for _ in range(rounds))
    print(f"small, batch 16, {length} tokens: two processes of one thread do ", end="")
    print(f"{times['threads'] / times['processes']:.2f} of the work of two threads in the same time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("products", "quality", "workers"))
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/pronounce"))
    parser.add_argument("--words", type=int, default=6456)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads\n")
    if options.what == "products":
        products(options.rounds)
    elif options.what == "quality":
        quality(options.folder, options.words)
    else:
        workers(options.rounds)


if __name__ == "__main__":
    main()
