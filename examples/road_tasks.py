"""What the models on the road to attention learn, and how right they are, by the length of what they read.

A task hands the stock Trainer its data (``trainer_options``), the model its vocabulary (``fields``), and measures a
trained model on what it never saw (``measure``). Tuning looks at other data than that, ``validation``.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from sacrebleu import BLEU
from transformers import DataCollatorForSeq2Seq, PreTrainedModel

from dragoman import DragomanRecurrentConfig, DragomanTokenizer
from pronounce import is_held_out, pronounce, read_dictionary
from recall_tasks import CHANCE, SHORTEST, TASKS, VOCABULARY, BatchStream, make_batch, whole_batch
from seq2seq_data import read_pairs

References = dict[str, list[str]]  # a source, and all its right targets
VALIDATION_SEED, TEST_SEED = 900_001, 900_002  # of recall; runs have seeds far below
WORD_LENGTHS, SENTENCE_LENGTHS = (4, 6, 8, 10, 12, 16), (10, 20, 30, 40, 60)  # upper ends; what is longer is left out
TEXT_TASKS = ("words", "translation")


class Point(NamedTuple):
    """How right a model was on so many ``sources`` of ``length``; of texts: at most so long, longer than the last."""

    length: int
    percent: float
    sources: int


class Task(Protocol):
    name: str
    unit: str  # of lengths
    metric: str
    both_ways: bool  # whether recurrent encoders read in both directions
    fields: dict[str, Any]
    chance: float | None  # percent
    max_length: int | None  # of what is generated; None: measure() says
    minutes: float  # of processor time that a run takes unless told otherwise

    def trainer_options(self, seed: int) -> dict[str, Any]: ...
    def training_arguments(self) -> dict[str, Any]: ...
    def measure(self, model: PreTrainedModel) -> list[Point]: ...


class RecallTask:
    """The tasks of :mod:`recall_tasks`. Encoders read one way: what is at the start must survive all that follows."""

    unit, metric, both_ways = "symbols to pass over", "symbols right in their place, %", False
    chance: float | None = CHANCE
    max_length: int | None = None
    minutes = 0.5

    def __init__(self, name: str, longest: int, tokens: int, rows: int) -> None:
        self.name, self.longest, self.tokens = name, longest, tokens
        self.rows = rows if name.startswith("recall-") else max(1, rows // 4)  # which have many more symbols each
        self.fields = {"vocab_size": VOCABULARY, "dropout": 0.0}
        if not name.startswith("recall-"):
            self.unit = "symbols in the source"

    def trainer_options(self, seed: int) -> dict[str, Any]:
        return {
            "train_dataset": BatchStream(self.name, self.longest, self.tokens, seed),
            "eval_dataset": BatchStream(self.name, self.longest, self.tokens, VALIDATION_SEED, count=32),
            "data_collator": whole_batch,
        }

    def training_arguments(self) -> dict[str, Any]:
        sizes = {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1}  # an item is a batch
        return {**sizes, "train_sampling_strategy": "sequential"}

    @torch.inference_mode()
    def measure(self, model: PreTrainedModel) -> list[Point]:
        """Greedy, on new rows of each length: 4, 8, 16, ... steps."""
        points, steps = [], SHORTEST
        while steps <= self.longest:
            batch = make_batch(self.name, steps, self.rows, torch.Generator().manual_seed(TEST_SEED + steps))
            target = batch["labels"].to(model.device)  # (B, T)
            written = generate_ids(model, batch["input_ids"].to(model.device), target.shape[1])
            right = (written == target)[:, :-1].float().mean()  # its end aside
            points.append(Point(steps, 100 * float(right), self.rows))
            steps *= 2
        return points


def generate_ids(model: Any, ids: torch.Tensor, length: int) -> torch.Tensor:
    """Greedily, exactly ``length`` tokens a row: (B, S) to (B, length)."""
    written = model.generate(ids, max_new_tokens=length, do_sample=False, num_beams=1)[:, 1:]
    return torch.nn.functional.pad(written, (0, length - written.shape[1]))


class TextTask:
    """Pairs of texts: a part to train on, and two held-out ones, for tuning and for measuring."""

    both_ways = True
    chance: float | None = None
    max_length: int | None
    minutes = 1.0

    def __init__(
        self,
        name: str,
        pairs: Sequence[tuple[str, str]],
        tokenizer_options: dict[str, Any],
        lengths: Sequence[int],
        length_of: Callable[[str], int],
        score: Callable[[list[str], list[list[str]]], float],
        unit: str,
        metric: str,
        limit: int | None,
    ) -> None:
        self.name, self.unit, self.metric = name, unit, metric
        self.lengths, self.length_of, self.score = lengths, length_of, score
        pairs = [pair for pair in pairs if length_of(pair[0]) <= lengths[-1]]
        train = [pair for pair in pairs if not is_held_out(pair[0])]
        held_out = [pair for pair in pairs if is_held_out(pair[0])]
        self.test: References = {}
        for source, target in held_out:
            if not is_for_tuning(source):
                self.test.setdefault(source, []).append(target)
        validation = [pair for pair in held_out if is_for_tuning(pair[0])]
        if not (train and validation and self.test):
            raise ValueError(f"{name}: {len(pairs)} pairs are too few to hold some out for tuning and for measuring.")
        shuffled = sorted(self.test, key=lambda source: hashlib.sha256(source.encode()).digest()[::-1])
        self.test = {source: self.test[source] for source in shuffled[:limit]}
        sources, targets = map(list, zip(*train, strict=True))
        self.tokenizer = DragomanTokenizer.train(sources, targets, **tokenizer_options)
        self.train, self.validation = self._encode(train), self._encode(validation[:limit])
        self.max_length = max(len(example["labels"]) for example in self.train) + 1  # and the start
        fitted = DragomanRecurrentConfig.from_tokenizer(self.tokenizer)
        names = "vocab_size source_vocab_size share_embeddings pad_token_id bos_token_id eos_token_id"
        self.fields = {name: getattr(fitted, name) for name in [*names.split(), "decoder_start_token_id"]}
        self.fields["dropout"] = 0.1

    def _encode(self, pairs: Sequence[tuple[str, str]]) -> list[dict[str, list[int]]]:
        sources, targets = map(list, zip(*pairs, strict=True))
        encoded = self.tokenizer(sources, text_target=targets)
        return [{"input_ids": x, "labels": y} for x, y in zip(encoded["input_ids"], encoded["labels"], strict=True)]

    def trainer_options(self, seed: int) -> dict[str, Any]:
        return {
            "train_dataset": self.train,
            "eval_dataset": self.validation,
            "data_collator": DataCollatorForSeq2Seq(self.tokenizer),
            "processing_class": self.tokenizer,
        }

    def training_arguments(self) -> dict[str, Any]:
        sizes = {"per_device_train_batch_size": 128, "per_device_eval_batch_size": 256}
        return {**sizes, "train_sampling_strategy": "group_by_length"}

    def measure(self, model: PreTrainedModel) -> list[Point]:
        """Greedy, on the held-out sources of each length; a length without any has no point."""
        generator: Any = model
        answers = dict(zip(self.test, pronounce(list(self.test), generator, self.tokenizer), strict=True))
        points = []
        for shorter, length in zip((0, *self.lengths), self.lengths, strict=False):
            sources = [source for source in self.test if shorter < self.length_of(source) <= length]
            if sources:
                percent = self.score([answers[s] for s in sources], [self.test[s] for s in sources])
                points.append(Point(length, percent, len(sources)))
        return points


def is_for_tuning(source: str) -> bool:
    """Half of what is held out, decided by the text alone."""
    return hashlib.sha256(source.encode()).digest()[0] % 2 == 0


def share_right(answers: list[str], references: list[list[str]]) -> float:
    """Percent of the answers that are one of their references."""
    return 100 * sum(answer in right for answer, right in zip(answers, references, strict=True)) / len(answers)


def bleu(answers: list[str], references: list[list[str]]) -> float:
    return BLEU().corpus_score(answers, [[right[0] for right in references]]).score


def read_task(name: str, longest: int, tokens: int, rows: int, train_file: str | None, limit: int | None) -> Task:
    """The task of that name. ``longest``, ``tokens`` (a batch) and ``rows`` (measured a length) are for recall;
    ``limit`` caps the texts to measure on.

    Raises:
        ValueError: for an unknown task, or translation without pairs.
    """
    if name in TASKS:
        return RecallTask(name, longest, tokens, rows)
    if name == "words":
        options: dict[str, Any] = {"algorithm": "char", "target_algorithm": "word", "share_vocabulary": False}
        options |= {"byte_fallback": False, "vocab_size": 64, "target_vocab_size": 64}
        words = [(word, way) for word, ways in read_dictionary().items() for way in ways]
        told = "letters in the word", "words right, %"
        return TextTask(name, words, options, WORD_LENGTHS, len, share_right, *told, limit)
    if name != "translation":
        raise ValueError(f"There is no task {name!r}; choose from {', '.join((*TASKS, *TEXT_TASKS))}.")
    if train_file is None:
        raise ValueError("The task translation needs --train_file, pairs of texts: .tsv, .csv or .jsonl.")
    pairs = [(row["source"], row["target"]) for row in read_pairs(train_file)]
    told = "words in the sentence", "BLEU"
    return TextTask(
        name, pairs, {"vocab_size": 4000}, SENTENCE_LENGTHS, lambda text: len(text.split()), bleu, *told, limit
    )
