"""Engines that train on the same pairs, each in a process of its own that does a step when told to.

Lengths follow a lognormal mix as of sentences: 25 tokens on the mean, at most 100, both sides about as long.
"""

import random
import resource
import sys
import time
from collections.abc import Callable
from math import log
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dragoman import DataCollatorForPackedSeq2Seq, DragomanForConditionalGeneration, presets

PAD, END, FIRST = 0, 1, 2  # the first ordinary token
ROWS = 64
POOL = 64 * ROWS  # pairs of which the length-grouped batches are made
SIZES = {
    "small": {"layers": 3, "hidden": 256, "intermediate": 1024, "heads": 4, "vocabulary": 8_000},
    "base": {"layers": 6, "hidden": 512, "intermediate": 2048, "heads": 8, "vocabulary": 32_000},
}
Pair = dict[str, list[int]]
Batch = dict[str, Tensor]


def draw_lengths(count: int, seed: int, scale: float = 1.0) -> list[tuple[int, int]]:
    """Source and target lengths; ``scale`` stretches them all."""
    generator = random.Random(seed)

    def clip(length: float) -> int:
        return min(100, max(3, round(length)))

    sources = [clip(scale * generator.lognormvariate(log(25) - 0.18, 0.6)) for _ in range(count)]
    return [(source, clip(source * generator.lognormvariate(0, 0.15))) for source in sources]


def draw_batches(work: str, count: int, vocabulary: int, scale: float = 1.0) -> list[list[Pair]]:
    """Batches of 64 pairs of random tokens: at random, or of neighbours in length."""
    if work == "ragged":
        lengths = [draw_lengths(ROWS, seed, scale) for seed in range(count)]
    else:
        pool = sorted(draw_lengths(POOL, 0, scale), key=sum)
        batches = [pool[i : i + ROWS] for i in range(0, POOL, ROWS)]
        lengths = [batches[(2 * i + 1) * len(batches) // (2 * count)] for i in range(count)]
    generator = torch.Generator().manual_seed(0)

    def tokens(length: int) -> list[int]:
        return [*torch.randint(FIRST, vocabulary, (length - 1,), generator=generator).tolist(), END]

    return [[{"input_ids": tokens(s), "labels": tokens(t)} for s, t in batch] for batch in lengths]


def pad(pairs: list[Pair]) -> Batch:
    def padded(name: str, value: int) -> Tensor:
        return pad_sequence([torch.tensor(pair[name]) for pair in pairs], batch_first=True, padding_value=value)

    source = padded("input_ids", PAD)
    return {"input_ids": source, "attention_mask": (source != PAD).long(), "labels": padded("labels", -100)}


def fill_of(batches: list[list[Pair]]) -> float:
    """The share of padded batches that is tokens, both sides together."""
    padded = [pad(batch) for batch in batches]
    real = sum(int((batch["input_ids"] != PAD).sum() + (batch["labels"] != -100).sum()) for batch in padded)
    return real / sum(batch["input_ids"].numel() + batch["labels"].numel() for batch in padded)


def in_tree(family: str, size: str, dropout: float) -> Any:
    """A randomly initialised model of transformers, of the given dimensions."""
    s = SIZES[size]
    ids = {"pad_token_id": PAD, "eos_token_id": END, "decoder_start_token_id": PAD}
    torch.manual_seed(0)
    if family == "t5":
        sizes = {"num_layers": s["layers"], "num_heads": s["heads"], "d_kv": s["hidden"] // s["heads"]}
        sizes |= {"d_model": s["hidden"], "d_ff": s["intermediate"], "vocab_size": s["vocabulary"]}
        return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, **ids, dropout_rate=dropout))
    sides = {"layers": s["layers"], "attention_heads": s["heads"], "ffn_dim": s["intermediate"]}
    fields: dict[str, Any] = {f"{side}_{name}": v for side in ("encoder", "decoder") for name, v in sides.items()}
    fields |= {"d_model": s["hidden"], "vocab_size": s["vocabulary"], "max_position_embeddings": 256, **ids}
    fields |= {"dropout": dropout, "attention_dropout": 0.0, "activation_dropout": 0.0, "scale_embedding": True}
    fields |= {"activation_function": "relu", "forced_eos_token_id": None, "bos_token_id": None}
    if family == "bart":
        return transformers.BartForConditionalGeneration(transformers.BartConfig(**fields))
    return transformers.MarianMTModel(transformers.MarianConfig(**fields))


def dragoman_like_marian(size: str, dropout: float) -> DragomanForConditionalGeneration:
    """Our model with the weights of :func:`in_tree`'s Marian."""
    s = SIZES[size]
    sides = {"num_hidden_layers": s["layers"], "num_attention_heads": s["heads"]}
    sides |= {"intermediate_size": s["intermediate"]}
    fields: dict[str, Any] = {f"{side}_{name}": v for side in ("encoder", "decoder") for name, v in sides.items()}
    fields |= {"hidden_size": s["hidden"], "vocab_size": s["vocabulary"], "max_position_embeddings": 256}
    fields |= {"pad_token_id": PAD, "eos_token_id": END, "decoder_start_token_id": PAD, "bos_token_id": None}
    model = DragomanForConditionalGeneration(presets.transformer_base(**fields, attention_bias=True, dropout=dropout))
    names = {
        "embed_positions": "embedding.positions",
        "encoder_attn_layer_norm": "cross_attn_residual.norm",
        "self_attn_layer_norm": "self_attn_residual.norm",
        "final_layer_norm": "feed_forward_residual.norm",
        "encoder_attn": "cross_attn",
        "out_proj": "o_proj",
        "fc1": "feed_forward.up_proj",
        "fc2": "feed_forward.down_proj",
    }
    found = {}
    for name, tensor in in_tree("marian", size, dropout).state_dict().items():
        for theirs, ours in names.items():
            name = name.replace(f".{theirs}.", f".{ours}.")
        found[name] = tensor
    missing = model.load_state_dict(found, strict=False).missing_keys
    if missing:
        raise ValueError(f"Marian has no weights for {', '.join(missing)}.")
    return model


ENGINES: dict[str, tuple[Callable[[str, float], Any], str]] = {
    "Marian": (lambda size, dropout: in_tree("marian", size, dropout), "padded"),
    "BART": (lambda size, dropout: in_tree("bart", size, dropout), "padded"),
    "T5": (lambda size, dropout: in_tree("t5", size, dropout), "padded"),
    "Dragoman, padded": (dragoman_like_marian, "padded"),
    "Dragoman, packed": (dragoman_like_marian, "packed"),
}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
SAME_WEIGHTS = ("Marian", "Dragoman, padded", "Dragoman, packed")
OPTIMIZERS: dict[str, dict[str, bool]] = {
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "loop": {"foreach": False},
}


class Engine:
    """A model, its optimizer and batches; ``step()`` takes the next batch."""

    def __init__(
        self,
        name: str,
        size: str,
        work: str,
        batches: int,
        scale: float = 1.0,
        optimizer: str = "fused",
        clock: str = "wall",
    ) -> None:
        build, form = ENGINES[name]
        self.model = build(size, 0.1).train()
        collate = DataCollatorForPackedSeq2Seq(model=self.model) if form == "packed" else pad
        pairs = draw_batches(work, batches, SIZES[size]["vocabulary"], scale)
        self.batches = [collate(batch) for batch in pairs]
        self.tokens = [sum(len(pair["labels"]) for pair in batch) for batch in pairs]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, **OPTIMIZERS[optimizer])
        self.next = 0
        self.clock = CLOCKS[clock]

    @torch.no_grad()
    def loss(self) -> float:
        self.model.eval()
        try:
            return float(self.model(**self.batches[0]).loss)
        finally:
            self.model.train()

    def step(self) -> tuple[float, int]:
        """Seconds and target tokens."""
        batch, tokens = self.batches[self.next], self.tokens[self.next]
        self.next = (self.next + 1) % len(self.batches)
        started = self.clock()
        self.model(**batch).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return self.clock() - started, tokens


if __name__ == "__main__":
    name, size, work, batches, scale, threads, clock = sys.argv[1:]
    torch.set_num_threads(int(threads))
    engine = Engine(name, size, work, int(batches), float(scale), clock=clock)
    print(engine.loss(), flush=True)
    for _ in sys.stdin:  # a line is one step
        print(*engine.step(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True)  # KiB
