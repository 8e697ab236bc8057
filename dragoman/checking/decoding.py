"""Line 6: what is generated does not depend on the cache, nor on who else is in the batch."""

from typing import Any

import torch
from torch import Tensor

from .batches import Batch, collate, draw_pairs
from .measuring import real_logits
from .subjects import Subject
from .verdicts import Evidence

LENGTH, SHORTEST = 12, 3
BEAMS = 4
Rows = list[list[int]]


def check_decoding(subject: Subject, evidence: Evidence) -> None:
    """Cached = uncached, static = dynamic, beam 1 = greedy, batched = single; greedy and beam search."""
    model, pairs = subject.build(None), draw_pairs(subject)
    batch = collate(subject, pairs)
    expected = real_logits(model, batch)
    with evidence.part("step by step"):
        found = stepwise_logits(model, batch)[batch.target_mask.bool()]
        evidence.compare("step by step", found, expected, "logits")
        forgetful = stepwise_logits(model, batch, cached=False)[batch.target_mask.bool()]
        evidence.matters("forgetting what was written", forgetful, expected)
    if subject.forward_only:
        return
    with evidence.part("greedy by hand"):
        by_hand = greedy_by_hand(subject, model, batch)
        evidence.require(varied(by_hand), "control: greedy output is one token over and over, or the same in all rows")
        evidence.compare_tokens("beam 1 = greedy by hand", generate(subject, model, batch, num_beams=1), by_hand)
    for beams in (1, BEAMS):
        name = "greedy" if beams == 1 else f"{beams} beams"
        with evidence.part(name):
            cached = generate(subject, model, batch, num_beams=beams)
            uncached = generate(subject, model, batch, num_beams=beams, use_cache=False)
            evidence.compare_tokens(f"{name} without cache", cached, uncached)
            alone = [generate(subject, model, collate(subject, [pair]), num_beams=beams)[0] for pair in pairs]
            evidence.compare_tokens(f"{name}, rows alone", cached, alone)
        with evidence.part(f"{name}, static cache"):
            static = generate(subject, model, batch, num_beams=beams, cache_implementation="static")
            evidence.compare_tokens(f"{name}, static cache", static, cached)


@torch.no_grad()
def stepwise_logits(model: Any, batch: Batch, cached: bool = True) -> Tensor:
    """Logits (B, T, V) of one target token at a time; without ``cached`` none knows of those before."""
    states = model.get_encoder()(input_ids=batch.source, attention_mask=batch.source_mask)
    steps, cache = [], None
    for column in batch.target.split(1, dim=1):
        output = model(
            encoder_outputs=states,
            attention_mask=batch.source_mask,
            decoder_input_ids=column,
            past_key_values=cache,
            use_cache=True,
        )
        cache = output.past_key_values if cached else None
        steps.append(output.logits)
    return torch.cat(steps, dim=1)


def banned_tokens(subject: Subject) -> list[int]:
    """Never generated: what is special, but for the end."""
    return sorted(subject.special - {subject.end})


def generate(subject: Subject, model: Any, batch: Batch, **settings: Any) -> Rows:
    """Generated rows without start token and padding, no token twice in a row: random weights would stutter."""
    settings |= {"max_new_tokens": LENGTH, "min_new_tokens": SHORTEST, "no_repeat_ngram_size": 1}
    settings["suppress_tokens"] = banned_tokens(subject)
    return trim(subject, model.generate(**batch.inputs(do_sample=False, **settings)))


def trim(subject: Subject, ids: Tensor) -> Rows:
    """Without the start token, up to the end token."""
    rows = ids[:, 1:].tolist()
    return [row[: row.index(subject.end) + 1] if subject.end in row else row for row in rows]


@torch.no_grad()
def greedy_by_hand(subject: Subject, model: Any, batch: Batch) -> Rows:
    """The likeliest token after each prefix, by a full pass each time."""
    start = model.generation_config.decoder_start_token_id
    ids = torch.full_like(batch.target[:, :1], model.generation_config.bos_token_id if start is None else start)
    for step in range(LENGTH):
        logits = model(**batch.inputs(decoder_input_ids=ids, use_cache=False)).logits[:, -1]
        too_early = [subject.end] if step < SHORTEST and subject.end is not None else []
        logits[:, banned_tokens(subject) + too_early] = -torch.inf
        ids = torch.cat([ids, logits.scatter(1, ids, -torch.inf).argmax(-1, keepdim=True)], dim=1)
    return trim(subject, ids)


def varied(rows: Rows) -> bool:
    return len(set(map(tuple, rows))) > 1 and any(len(set(row)) > 2 for row in rows)
