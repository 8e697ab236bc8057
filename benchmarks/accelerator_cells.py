"""The cells of benchmarks/accelerator.py: what each measures on one GPU, and what it answers."""

import statistics
import time
import traceback
from collections.abc import Callable
from copy import deepcopy
from functools import cache, partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from dragoman.modeling import generation_dragoman, packed_attention
from torch import Tensor
from transformers import CompileConfig
from transformers.utils import is_flash_attn_2_available

from dragoman import DataCollatorForPackedSeq2Seq, convert_from
from generation_cases import Case, padded
from generation_engines import bart, clock, generator_of, marian, t5
from peer_models import SIZES, Sizes
from training_engines import Engine, Work, draw_batches, like_marian, pad

Result = dict[str, Any]
REFERENCE = "Marian"
TRAINED = (REFERENCE, "BART", "T5", "Dragoman, padded", "Dragoman, packed")
WRITERS: dict[str, Callable[[Case], Any]] = {
    REFERENCE: marian, "BART": bart, "T5": t5, "Dragoman": lambda case: convert_from(marian(case)).eval(),
}  # fmt: skip


def reason(error: Exception) -> str:
    """With the place in the code."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error}"[:800] + f" ({last.filename}:{last.lineno})"


class Plan(NamedTuple):
    device: str = "cuda"
    sizes: Sizes = SIZES["base"]
    rows: int = 256  # of a batch that is trained on
    rounds: int = 9
    batches: tuple[int, ...] = (1, 32, 256)
    tokens: int = 64
    repeats: int = 2
    square: int = 8192  # of the matrices whose product is the peak
    sources: tuple[int, ...] = (10, 20, 35, 50, 60)


QUICK = Plan("cpu", Sizes(1, 32, 64, 2, 100), 8, 2, (1, 3), 6, 1, 64, (10, 12))


def synchronize(plan: Plan) -> None:
    if plan.device == "cuda":
        torch.cuda.synchronize()


def timed(plan: Plan, function: Callable[[], Any]) -> float:
    synchronize(plan)
    return clock(lambda: (function(), synchronize(plan)))[0]


def same_batch(plan: Plan) -> Result:
    """Our loss and gradients, padded and packed, without dropout."""
    model = like_marian(plan.sizes, 0.0).train().to(plan.device)
    pairs = draw_batches(Work(plan.sizes, "ragged", 1, rows=min(plan.rows, 64)))[0]
    forms = {"padded": pad(pairs), "packed": DataCollatorForPackedSeq2Seq(model=model)(pairs)}
    result: Result = {}
    for name, narrow in (("fp32", False), ("bf16", True)):
        losses, gradients = [], []
        for batch in forms.values():
            model.zero_grad(set_to_none=True)
            inputs = {key: x.to(plan.device) if isinstance(x, Tensor) else x for key, x in batch.items()}
            kernel = patch.object(packed_attention, "varlen_attn", wraps=packed_attention.varlen_attn)
            with kernel as called, torch.autocast(plan.device, torch.bfloat16, enabled=narrow):
                loss = model(**inputs).loss
            loss.backward()
            losses.append(loss.item())
            gradients.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
        errors = {
            key: float((found - gradients[0][key]).norm() / gradients[0][key].norm())
            for key, found in gradients[1].items()
            if not key.endswith("k_proj.bias")  # whose gradient is nothing but rounding
        }
        worst = max(errors, key=lambda key: errors[key])
        result[f"{name}, losses"] = losses
        result[f"{name}, difference of the losses"] = abs(losses[1] / losses[0] - 1)
        result[f"{name}, worst difference of a gradient"] = errors[worst]
        result[f"{name}, in"] = worst
        result[f"{name}, calls of varlen_attn"] = called.call_count
    return result


def flash_attention(plan: Plan) -> Result:
    """The packed loss in transformers' flash attention."""
    if not is_flash_attn_2_available():
        return {"flash_attn": "absent"}
    engine = Engine("Dragoman, packed", Work(plan.sizes, "ragged", 1, rows=plan.rows), device=plan.device, narrow=True)
    expected = engine.loss()
    engine.model.set_attn_implementation("flash_attention_2")
    seconds = [engine.step(0)[0] for _ in range(plan.rounds)]
    return {"loss": engine.loss(), "of varlen_attn, before": expected, "seconds": statistics.median(seconds)}


def matrix_peak(plan: Plan) -> float:
    """Operations a second of a product of two large matrices in bfloat16."""
    x = torch.randn(plan.square, plan.square, device=plan.device, dtype=torch.bfloat16)
    seconds = min(timed(plan, lambda: x @ x) for _ in range(10))
    return 2 * plan.square**3 / seconds


def operations(model: Any, pairs: list[dict[str, list[int]]]) -> int:
    """Of a training step: six for every weight of a matrix and every real token that it sees. Without attention."""
    source, target = (sum(len(pair[name]) for pair in pairs) for name in ("input_ids", "labels"))
    total = model.lm_head.weight.numel() * target
    for name, weight in model.named_parameters():
        if weight.dim() == 2 and ".layers." in name:
            of_source = ".encoder." in name or "cross_attn.k_proj" in name or "cross_attn.v_proj" in name
            total += weight.numel() * (source if of_source else target)
    return 6 * total


def training(plan: Plan) -> Result:
    work = Work(plan.sizes, "ragged", rows=plan.rows)
    engines, rows = {}, {}
    failed: dict[str, str] = {}
    for name in TRAINED:
        try:
            before = torch.cuda.memory_allocated() if plan.device == "cuda" else 0
            engine = Engine(name, work, device=plan.device, narrow=True)
            if plan.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            for number in (*range(work.batches), 0):
                engine.step(number)
            peak = torch.cuda.max_memory_allocated() - before if plan.device == "cuda" else 0
            engines[name], rows[name] = engine, {"loss": engine.loss(), "peak GiB": peak / 2**30}
        except Exception as error:
            failed[name] = reason(error)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for number in range(plan.rounds):
        for name in list(engines)[:: 1 if number % 2 else -1]:
            seconds[name].append(engines[name].step(number % work.batches)[0])
    peak_rate, pairs = matrix_peak(plan), draw_batches(work)
    for name, engine in engines.items():
        found = [(s, number % work.batches) for number, s in enumerate(seconds[name])]
        rows[name]["target tokens/s"] = statistics.median(engine.tokens[i] / s for s, i in found)
        if "Dragoman" in name:
            rates = [operations(engine.model, pairs[i]) / s for s, i in found]
            rows[name]["share of the peak"] = statistics.median(rates) / peak_rate
    compare(rows, seconds)
    return {"matrix peak, TFLOP/s": peak_rate / 1e12, "engines": rows, "failed": failed}


def compare(rows: dict[str, Result], seconds: dict[str, list[float]]) -> None:
    """Adds how many times as fast as the reference each is: the median of the rounds."""
    for name in rows.keys() if REFERENCE in rows else ():
        pairs = zip(seconds[REFERENCE], seconds[name], strict=True)
        rows[name]["to Marian"] = statistics.median(theirs / own for theirs, own in pairs)


@cache
def writer(name: str, plan: Plan, dtype: torch.dtype) -> Any:
    if dtype == torch.float32:
        return WRITERS[name](Case(*plan.sizes)).to(plan.device)
    return deepcopy(writer(name, plan, torch.float32)).to(dtype)


def writing(plan: Plan, dtype: torch.dtype, beams: int, batch: int) -> Result:
    case = Case(*plan.sizes, batch=batch, beams=beams, tokens=plan.tokens)
    runs, ids, failed = {}, {}, {}
    for name in WRITERS:
        try:
            runs[name] = generator_of(writer(name, plan, dtype), case)
            ids[name] = runs[name]()
            if any(len(row) != plan.tokens for row in ids[name]):
                raise ValueError("a row ended early")
        except Exception as error:
            failed[name] = reason(error)
            runs.pop(name, None)
    seconds = {name: [] for name in runs}
    for number in range(plan.repeats):
        for name in list(runs)[:: 1 if number % 2 else -1]:
            seconds[name].append(timed(plan, runs[name]))
    rows: dict[str, Result] = {
        name: {"tokens/s": batch * plan.tokens / statistics.median(found)} for name, found in seconds.items()
    }
    compare(rows, seconds)
    result: Result = {"engines": rows, "failed": failed}
    if {"Dragoman", REFERENCE} <= runs.keys():
        same = sum(ours == theirs for ours, theirs in zip(ids["Dragoman"], ids[REFERENCE], strict=True))
        result["rows like Marian's"] = f"{same} of {batch}"
    if dtype == torch.float32 and "Dragoman" in runs:
        with patch.object(generation_dragoman, "is_covered", lambda *_: False):
            result["as the stock loop"] = runs["Dragoman"]() == ids["Dragoman"]
    return result


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def static_cache(plan: Plan) -> Result:
    """Greedy and compiled by ``generate()``, in batches of eight whose sources are of ever other lengths."""
    model = writer("Dragoman", plan, torch.float32 if plan.device == "cpu" else torch.bfloat16)
    options: Result = {"cache_implementation": "static"}
    if plan.device == "cpu":  # transformers compiles of its own accord on accelerators alone
        options["compile_config"] = CompileConfig(backend="eager", mode=None)
        options["compile_config"]._compile_all_devices = True
    torch.compiler.reset()
    before, same, times = graphs(), [], {}
    for source in plan.sources:
        case = Case(*plan.sizes, batch=8, source=source, tokens=plan.tokens)
        ids, mask = (x.to(plan.device) for x in padded(case))
        run = partial(
            model.generate, ids, attention_mask=mask, max_new_tokens=plan.tokens, do_sample=False, num_beams=1
        )
        same.append(torch.equal(run(**options), run()))
    for name, settings in {"eager": {}, "compiled": options}.items():
        times[name] = min(timed(plan, partial(run, **settings)) for _ in range(3)) * 1e3 / plan.tokens
    result = {f"ms a token, {name}": found for name, found in times.items()}
    return result | {"source lengths": len(plan.sources), "graphs": graphs() - before, "same tokens": same}


def compiled_training(plan: Plan) -> Result:
    """Packed steps in ``torch.compile(model, dynamic=True)``."""
    engine = Engine("Dragoman, packed", Work(plan.sizes, "ragged", rows=plan.rows), device=plan.device, narrow=True)
    torch.compiler.reset()
    before, found = graphs(), {}
    for name in ("eager", "compiled"):
        if name == "compiled":
            backend = "eager" if plan.device == "cpu" else "inductor"
            engine.model = torch.compile(engine.model, dynamic=True, backend=backend)
        started = time.perf_counter()
        for number in range(3):
            engine.step(number)
        found[f"first steps, s, {name}"] = time.perf_counter() - started
        steps = [engine.step(number % 3) for number in range(plan.rounds)]
        found[f"target tokens/s, {name}"] = statistics.median(tokens / seconds for seconds, tokens in steps)
    return found | {"graphs": graphs() - before}
