"""Training speed of the recurrent model against a plain PyTorch loop of the same model, with the same weights.

    python benchmarks/recurrent_training.py

A step is forward, loss, backward and AdamW on a ragged batch, each engine's in turn; medians. It stops where their
losses differ. Prints a table in Markdown. ``--quick`` takes seconds, and its figures mean nothing.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from transformers import AutoModelForSeq2SeqLM

from dragoman import DragomanRecurrentConfig, DragomanRecurrentForConditionalGeneration

START = 1
BAR = 0.9  # of the plain loop's speed


class PlainModel(nn.Module):
    """As a tutorial would write it: a bidirectional GRU, one layer of it to decode, one table of token vectors."""

    def __init__(self, vocabulary: int, size: int, attention: str) -> None:
        super().__init__()
        self.attention = attention
        self.table = nn.Embedding(vocabulary, size)
        self.encoder = nn.GRU(size, size // 2, batch_first=True, bidirectional=True)
        if attention == "additive":
            self.cell = nn.GRUCell(2 * size, size)
            self.query, self.key = nn.Linear(size, size, bias=False), nn.Linear(size, size, bias=False)
            self.vector = nn.Linear(size, 1, bias=False)
        else:
            self.decoder = nn.GRU(size, size, batch_first=True)
        if attention != "none":
            self.combine = nn.Linear(2 * size, size, bias=False)

    def forward(self, source: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.table(source), lengths, batch_first=True, enforce_sorted=False)
        packed_states, last = self.encoder(packed)
        states, _ = pad_packed_sequence(packed_states, batch_first=True)  # (B, S, C)
        hidden = torch.cat([last[0], last[1]], dim=1)  # (B, C)
        start = torch.full_like(labels[:, :1], START)
        x = self.table(torch.cat([start, labels[:, :-1].clamp(min=0)], dim=1))  # (B, T, C)
        padding = (source == 0)[:, None]  # (B, 1, S)
        if self.attention == "additive":
            outputs = self.decode_additive(x, states, hidden, padding[:, 0])
        else:
            outputs, _ = self.decoder(x, hidden[None])
            if self.attention == "dot":
                scores = outputs @ states.transpose(1, 2)
                context = scores.masked_fill(padding, -torch.inf).softmax(-1) @ states
                outputs = self.combine(torch.cat([context, outputs], dim=-1)).tanh()
        return F.cross_entropy((outputs @ self.table.weight.T).flatten(0, 1), labels.flatten(), ignore_index=-100)

    def decode_additive(self, x: Tensor, states: Tensor, hidden: Tensor, padding: Tensor) -> Tensor:
        keys, outputs = self.key(states), []
        for t in range(x.shape[1]):
            scores = self.vector((self.query(hidden)[:, None] + keys).tanh())[..., 0]  # (B, S)
            weights = scores.masked_fill(padding, -torch.inf).softmax(-1)
            context = (weights[:, None] @ states)[:, 0]
            hidden = self.cell(torch.cat([x[:, t], context], dim=1), hidden)
            outputs.append(self.combine(torch.cat([context, hidden], dim=1)).tanh())
        return torch.stack(outputs, dim=1)

    @torch.no_grad()
    def take_weights(self, model: DragomanRecurrentForConditionalGeneration) -> None:
        encoder, decoder = model.model.encoder, model.model.decoder
        self.table.weight.copy_(model.get_input_embeddings().weight)  # type: ignore[arg-type]
        self.encoder.load_state_dict(encoder.layers.rnn.state_dict())
        if self.attention == "additive" and decoder.attention is not None:
            cell = {name.removesuffix("_l0"): value for name, value in decoder.layers.rnn.state_dict().items()}
            self.cell.load_state_dict(cell)
            pairs = zip(("query", "key", "vector"), ("q_proj", "k_proj", "score_vector"), strict=True)
            for own, theirs in pairs:
                getattr(self, own).load_state_dict(getattr(decoder.attention, theirs).state_dict())
        else:
            self.decoder.load_state_dict(decoder.layers.rnn.state_dict())
        if decoder.combine is not None:
            self.combine.load_state_dict(decoder.combine.state_dict())


def draw_batch(rows: int, longest: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sources (B, S), their lengths, and labels (B, T), lengths from a third of the longest on."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(longest // 3, longest + 1, (2, rows), generator=generator)
    ids = [[torch.randint(3, vocabulary, (int(n),), generator=generator) for n in side] for side in lengths]
    return pad_sequence(ids[0], True, 0), lengths[0], pad_sequence(ids[1], True, -100)


def trained(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> float:
        optimizer.zero_grad()
        found = loss()
        found.backward()
        optimizer.step()
        return found.item()

    return step


def speed_ratio(attention: str, rows: int, longest: int, size: int, vocabulary: int, rounds: int) -> float:
    """How many times as fast as the plain loop the model trains."""
    torch.manual_seed(0)
    config = DragomanRecurrentConfig(vocab_size=vocabulary, hidden_size=size, attention=attention, dropout=0.0)
    ours = AutoModelForSeq2SeqLM.from_config(config).train()
    plain = PlainModel(vocabulary, size, attention)
    plain.take_weights(ours)
    source, lengths, labels = draw_batch(rows, longest, vocabulary)
    mask = (source != 0).long()
    steps = {
        "ours": trained(ours, lambda: ours(input_ids=source, attention_mask=mask, labels=labels).loss),
        "plain": trained(plain, lambda: plain(source, lengths, labels)),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 2):
        losses = {}
        for name, step in steps.items():
            started = time.perf_counter()
            losses[name] = step()
            if number > 1:  # the first two warm up
                times[name].append(time.perf_counter() - started)
        if abs(losses["ours"] / losses["plain"] - 1) > 1e-4:
            raise ValueError(f"Same weights, same batch, and other losses at step {number}: {losses}")
    return statistics.median(times["plain"]) / statistics.median(times["ours"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--attention", nargs="*", default=["none", "dot", "additive"], choices=["none", "dot", "additive"]
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see whether it runs")
    options = parser.parse_args()
    cases = [(16, 9, 16, 50)] if options.quick else [(64, 20, 128, 1000), (32, 30, 256, 8000)]
    rounds = 3 if options.quick else options.rounds
    print(f"GRU, one layer a side, fp32, {torch.get_num_threads()} threads, torch {torch.__version__}; bar {BAR}x\n")
    print("| attention | rows | longest | hidden size | vocabulary | speed |\n|---|--:|--:|--:|--:|--:|")
    for attention in options.attention:
        for rows, longest, size, vocabulary in cases:
            ratio = speed_ratio(attention, rows, longest, size, vocabulary, rounds)
            print(f"| {attention} | {rows} | {longest} | {size} | {vocabulary:,} | {ratio:.2f}x |", flush=True)


if __name__ == "__main__":
    main()
