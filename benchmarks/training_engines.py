"""Engines that train on the same pairs, each in a process of its own that does a step when told to.

Lengths follow a lognormal mix as of sentences: 25 tokens on the mean, at most 100, both sides about as long.
"""

import json
import random
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from math import log
from typing import Any, NamedTuple

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dragoman import DataCollatorForPackedSeq2Seq, DragomanForConditionalGeneration, presets
from peer_models import MODELS, Ids, Sizes
from turns import serve

PAD, END, FIRST = 0, 1, 2  # the first ordinary token
ROWS = 64
POOL = 64  # batches of pairs of which the length-grouped ones are made
Pair = dict[str, list[int]]
Batch = dict[str, Tensor]


class Work(NamedTuple):
    sizes: Sizes
    order: str  # of the pairs: "ragged" or "grouped"
    batches: int = 3  # that are taken in turn
    scale: float = 1.0  # stretches all lengths
    rows: int = ROWS


def draw_lengths(count: int, seed: int, scale: float = 1.0) -> list[tuple[int, int]]:
    """Source and target lengths; ``scale`` stretches them all."""
    generator = random.Random(seed)

    def clip(length: float) -> int:
        return min(100, max(3, round(length)))

    sources = [clip(scale * generator.lognormvariate(log(25) - 0.18, 0.6)) for _ in range(count)]
    return [(source, clip(source * generator.lognormvariate(0, 0.15))) for source in sources]


def draw_batches(work: Work) -> list[list[Pair]]:
    """Batches of pairs of random tokens: at random, or of neighbours in length."""
    count, rows = work.batches, work.rows
    if work.order == "ragged":
        lengths = [draw_lengths(rows, seed, work.scale) for seed in range(count)]
    else:
        pool = sorted(draw_lengths(POOL * rows, 0, work.scale), key=sum)
        batches = [pool[i : i + rows] for i in range(0, POOL * rows, rows)]
        lengths = [batches[(2 * i + 1) * len(batches) // (2 * count)] for i in range(count)]
    generator = torch.Generator().manual_seed(0)

    def tokens(length: int) -> list[int]:
        return [*torch.randint(FIRST, work.sizes.vocabulary, (length - 1,), generator=generator).tolist(), END]

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


def like_marian(sizes: Sizes, dropout: float) -> DragomanForConditionalGeneration:
    """Our model with the weights of Marian."""
    sides = {"num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads}
    sides |= {"intermediate_size": sizes.feed_forward}
    fields: dict[str, Any] = {f"{side}_{name}": v for side in ("encoder", "decoder") for name, v in sides.items()}
    fields |= {"hidden_size": sizes.size, "vocab_size": sizes.vocabulary, "max_position_embeddings": 256}
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
    for name, tensor in build(MODELS["Marian"], sizes, dropout).state_dict().items():
        for theirs, ours in names.items():
            name = name.replace(f".{theirs}.", f".{ours}.")
        found[name] = tensor
    missing = model.load_state_dict(found, strict=False).missing_keys
    if missing:
        raise ValueError(f"Marian has no weights for {', '.join(missing)}.")
    return model


def build(model: Callable[..., Any], sizes: Sizes, dropout: float) -> Any:
    torch.manual_seed(0)
    return model(sizes, Ids(PAD, END), dropout)


ENGINES: dict[str, tuple[Callable[[Sizes, float], Any], str]] = {
    **{name: (partial(build, model), "padded") for name, model in MODELS.items()},
    "Dragoman, padded": (like_marian, "padded"),
    "Dragoman, packed": (like_marian, "packed"),
}
SAME_WEIGHTS = ("Marian", "Dragoman, padded", "Dragoman, packed")
OPTIMIZERS: dict[str, dict[str, bool]] = {
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "loop": {"foreach": False},
}


class Engine:
    """A model, its optimizer and its batches."""

    def __init__(
        self, name: str, work: Work, optimizer: str = "fused", device: str = "cpu", narrow: bool = False
    ) -> None:
        """``narrow``: under autocast to bfloat16."""
        build_model, form = ENGINES[name]
        self.model = build_model(work.sizes, 0.1).train().to(device)
        collate = DataCollatorForPackedSeq2Seq(model=self.model) if form == "packed" else pad
        pairs = draw_batches(work)
        self.batches = [send_to_device(collate(batch), device) for batch in pairs]
        self.tokens = [sum(len(pair["labels"]) for pair in batch) for batch in pairs]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, **OPTIMIZERS[optimizer])
        self.autocast = partial(torch.autocast, device, torch.bfloat16, enabled=narrow)
        self.synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None

    @torch.no_grad()
    def loss(self) -> float:
        self.model.eval()
        try:
            with self.autocast():
                return float(self.model(**self.batches[0]).loss)
        finally:
            self.model.train()

    def step(self, number: int) -> tuple[float, int]:
        """Seconds and target tokens, of the batch of that number."""
        self.synchronize()
        started = time.perf_counter()
        with self.autocast():
            loss = self.model(**self.batches[number]).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.synchronize()
        return time.perf_counter() - started, self.tokens[number]

    def answer(self, number: str) -> dict[str, float]:
        seconds, tokens = self.step(int(number))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # bytes
        if torch.cuda.is_initialized():
            peak = torch.cuda.max_memory_allocated()
        return {"seconds": seconds, "tokens": tokens, "peak": peak}


def main() -> None:
    name, work, threads, device, dtype = sys.argv[1:]
    sizes, *others = json.loads(work)
    torch.set_num_threads(int(threads))

    def start() -> tuple[dict[str, float], Callable[[str], dict[str, float]]]:
        engine = Engine(name, Work(Sizes(*sizes), *others), device=device, narrow=dtype == "bf16")
        return {"loss": engine.loss()}, engine.answer

    serve(start)


if __name__ == "__main__":
    main()
