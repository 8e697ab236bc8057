"""Line 8: every attention implementation computes the same, and attention weights are there whenever asked for."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.utils.import_utils import is_flash_attn_2_available

from .batches import Batch, collate, draw_pairs
from .decoding import banned_tokens
from .subjects import Subject
from .verdicts import Evidence

LENGTH = 5
BEAMS = 3

Weights = dict[str, list[Tensor]]  # by kind, of every layer; in generation of every layer of every step
Result = tuple[Tensor, Weights]  # logits or tokens
Results = dict[str, Result]  # by mode


def check_attention(subject: Subject, evidence: Evidence) -> None:
    """eager = sdpa = flex (= flash on a GPU), in logits, weights and tokens; weights for every layer, never empty."""
    if not subject.attentions:
        raise NotImplementedError("it attends to nothing")
    batch = collate(subject, draw_pairs(subject))
    eager = subject.build("eager")
    reference = run(subject, eager, batch)
    check_presence(evidence, "eager", reference)
    rows = {"encoder_attentions": batch.source_mask}  # else the decoder's
    weights = [
        layer.transpose(1, 2)[rows.get(kind, batch.target_mask).bool()]  # (N, H, S), of no padding
        for kind, layers in reference["forward"][1].items()
        for layer in layers
    ]
    if weights:
        check_spread(evidence, weights)
    for implementation in ("sdpa", "flex_attention"):
        with evidence.part(implementation):
            model = offered(subject, implementation)
            with uncompiled():
                found = run(subject, model, batch)
            check_presence(evidence, implementation, found)
            for mode in found:
                compare_mode(evidence, f"{implementation} {mode}", found[mode], reference[mode])
    with evidence.part("flash_attention_2"):
        check_flash(subject, evidence, batch)


@contextmanager
def uncompiled() -> Iterator[None]:
    """What is judged is the model, not what a compiler makes of flex attention on this machine."""
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        yield


def offered(subject: Subject, implementation: str) -> Any:
    """The model under an implementation. Raises NotImplementedError where its class refuses it."""
    try:
        model = subject.build(implementation)
    except (ValueError, ImportError) as error:
        raise NotImplementedError("its class refuses it") from error
    if (used := model.config._attn_implementation) != implementation:
        raise NotImplementedError(f"its class takes {used} instead")
    return model


@torch.no_grad()
def run(subject: Subject, model: Any, batch: Batch) -> Results:
    """Logits or tokens, with attention weights, from one pass and from greedy and beam search."""
    output = model(**batch.teacher_forced(use_cache=False, output_attentions=True, output_hidden_states=True))
    layers = count_layers(subject, output)
    results: Results = {"forward": (output.logits, whole(weights_of(subject, output), layers, batch))}
    for beams in (1, BEAMS):
        generated = model.generate(
            **batch.inputs(num_beams=beams, max_new_tokens=LENGTH, min_new_tokens=LENGTH, do_sample=False),
            suppress_tokens=banned_tokens(subject),
            output_attentions=True,
            return_dict_in_generate=True,
        )
        weights: Weights = {}
        for kind in subject.attentions:
            steps = generated.get(kind) or ()
            nested = kind != "encoder_attentions"
            weights[kind] = [layer for step in steps for layer in step or ()] if nested else list(steps)
        results[f"{beams} beams" if beams > 1 else "greedy"] = (
            generated.sequences,
            whole(weights, layers, batch, LENGTH),
        )
    return results


def weights_of(subject: Subject, output: Any) -> Weights:
    return {kind: list(output.get(kind) or ()) for kind in subject.attentions}


def count_layers(subject: Subject, output: Any) -> dict[str, int]:
    """By the hidden states, of which there is one more."""
    states = {"encoder_attentions": output.encoder_hidden_states}  # else the decoder's
    return {kind: len(states.get(kind, output.decoder_hidden_states)) - 1 for kind in subject.attentions}


def whole(weights: Weights, layers: dict[str, int], batch: Batch, steps: int = 1) -> Weights:
    """The same, but nothing of a kind that is not all there."""
    kept: Weights = {}
    for kind, found in weights.items():
        count = layers[kind] * (1 if kind == "encoder_attentions" else steps)
        width = batch.source.shape[1] if kind == "cross_attentions" else None
        kept[kind] = found if all_there(found, count, width) else []
    return kept


def all_there(found: Sequence[Any], count: int, width: int | None) -> bool:
    """As many as there should be, and none empty or of something else than ``width`` tokens."""
    return len(found) == count and all(
        isinstance(layer, Tensor) and layer.numel() > 0 and width in (None, layer.shape[-1]) for layer in found
    )


def check_presence(evidence: Evidence, implementation: str, results: Results) -> None:
    """Weights of every layer are there, in every mode; one fault names all that are not."""
    empty = {mode: [kind for kind, layers in weights.items() if not layers] for mode, (_, weights) in results.items()}
    kinds = {kind.removesuffix("_attentions") for missing in empty.values() for kind in missing}
    modes = [mode for mode, missing in empty.items() if missing]
    evidence.require(not modes, f"{implementation}: empty {', '.join(sorted(kinds))} attentions in {', '.join(modes)}")


def compare_mode(evidence: Evidence, what: str, found: Result, expected: Result) -> None:
    """Logits or tokens, and whatever weights both have."""
    if found[0].is_floating_point():
        evidence.compare(f"{what} logits", found[0], expected[0], "logits")
    else:
        evidence.compare_tokens(f"{what} tokens", found[0].tolist(), expected[0].tolist())
    for kind, layers in found[1].items():
        if layers and expected[1][kind]:
            for layer, other in zip(layers, expected[1][kind], strict=True):
                evidence.compare(f"{what} {kind}", layer, other, "attention")


def check_spread(evidence: Evidence, layers: Sequence[Tensor]) -> None:
    """A control: attention is neither even nor on one token alone, or no comparison would mean anything."""
    highest = torch.cat([weights.max(-1).values.flatten() for weights in layers])
    seen = torch.cat([(weights > 0).sum(-1).flatten() for weights in layers])
    highest, seen = highest[seen > 1], seen[seen > 1]
    evidence.require(float((highest * seen).mean()) > 1.2, "control: attention is nearly even")
    evidence.require(float(highest.mean()) < 0.995, "control: attention is on one token alone")


def check_flash(subject: Subject, evidence: Evidence, batch: Batch) -> None:
    """In bf16 against eager, on a GPU. Raises NotImplementedError without one, or without the kernel."""
    if not torch.cuda.is_available():
        raise NotImplementedError("no CUDA GPU")
    if not is_flash_attn_2_available():
        raise NotImplementedError("the kernel is not installed")
    expected, _ = run_on_gpu(subject, subject.build("eager"), batch)
    found, weights = run_on_gpu(subject, offered(subject, "flash_attention_2"), batch)
    evidence.compare("flash_attention_2 logits", found, expected, "half")
    check_presence(evidence, "flash_attention_2", {"forward": (found, weights)})


@torch.no_grad()
def run_on_gpu(subject: Subject, model: Any, batch: Batch) -> tuple[Tensor, Weights]:
    model = model.to("cuda", torch.bfloat16)
    inputs = {name: ids.cuda() for name, ids in batch.teacher_forced().items()}
    output = model(**inputs, use_cache=False, output_attentions=True, output_hidden_states=True)
    logits = output.logits.float().cpu()[batch.target_mask.bool()]
    return logits, whole(weights_of(subject, output), count_layers(subject, output), batch)
