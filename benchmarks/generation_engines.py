"""The engines that benchmarks/generate.py compares, each served in a process of its own.

Dragoman, its stock loop and CTranslate2 compute with Marian's weights, or these in int8; the others have their own of
the same sizes.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from dragoman.modeling import generation_dragoman
from torch import Tensor, nn
from transformers.utils import logging

import dragoman
from generation_cases import END, Case, built, padded, settle, sources
from turns import serve

SAME_WEIGHTS = ("Marian", "Dragoman", "Dragoman, stock loop", "CTranslate2")
Run = Callable[[], list[list[int]]]


def marian(case: Case) -> Any:
    model = built("Marian", case)
    last = model.model.decoder.layers[-1]
    settle(model, last.fc1, last.fc2)
    with torch.no_grad():
        model.model.shared.weight[case.pad] = 0
    model.final_logits_bias[0, [END, case.pad]] = -1e4  # no row ends early: the work is the same for all
    model.generation_config.bad_words_ids = None
    return model


def bart(case: Case) -> Any:
    model = built("BART", case)
    last = model.model.decoder.layers[-1]
    settle(model, last.fc1, last.fc2)
    model.final_logits_bias[0, [END, case.pad]] = -1e4
    return model


def t5(case: Case) -> Any:
    model = built("T5", case)
    last = model.decoder.block[-1].layer[-1].DenseReluDense
    settle(model, last.wi, last.wo)
    model.generation_config.suppress_tokens = [END, case.pad]  # it has no bias that could
    model.generation_config.repetition_penalty = 2.0  # nor absolute positions to vary by; costs it a per cent or two
    return model


def t5gemma(case: Case) -> Run:
    model = settle(built("T5Gemma", case))
    nn.init.constant_(model.model.decoder.layers[-1].post_feedforward_layernorm.weight, 30)
    model.generation_config.suppress_tokens = [END, case.pad]
    return generator_of(model, case)


def torch_transformer(case: Case) -> Run:
    """Greedy as ``nn.Transformer`` allows: source once, but it has no cache of the target."""
    model = built("nn.Transformer", case)
    last = model.transformer.decoder.layers[-1]
    settle(model, last.linear1, last.linear2)
    source, mask = padded(case)

    @torch.inference_mode()
    def run() -> list[list[int]]:
        hidden = mask == 0
        memory = model.encode(source, hidden)
        ids = torch.full((case.batch, 1), case.pad)
        for _ in range(case.tokens):
            logits = model.head(model.decode(ids, memory, hidden)[:, -1])
            logits[:, [END, case.pad]] = -torch.inf
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
        return ids[:, 1:].tolist()

    return run


def x_transformers(case: Case) -> Run:
    model = built("x-transformers", case)
    *_, last = [m for m in model.model.decoder.modules() if type(m).__name__ == "FeedForward"]
    settle(model, last.ff[0][0], [m for m in last.ff if isinstance(m, nn.Linear)][-1])
    source, mask = padded(case)
    start = torch.full((case.batch, 1), case.pad)
    settings = {"mask": mask.bool(), "temperature": 0.0}
    return lambda: model.model.generate(source, start, case.tokens, **settings).tolist()


def generator_of(model: Any, case: Case) -> Run:
    ids, mask = (x.to(model.device) for x in padded(case))
    settings = {"max_new_tokens": case.tokens, "num_beams": case.beams, "do_sample": False}
    return lambda: model.generate(ids, attention_mask=mask, **settings)[:, 1:].tolist()


def stock_loop(case: Case) -> Run:
    """The same model, with the fast loops told that they cover nothing."""
    generation_dragoman.is_covered = lambda *_: False  # type: ignore[assignment]
    return generator_of(dragoman.convert_from(marian(case)), case)


def words_of(case: Case) -> list[str]:
    return ["</s>", "<unk>", *map(str, range(2, case.pad))]


def fastest(name: str, ways: dict[str, Run]) -> Run:
    times = {way: min(clock(run)[0] for _ in range(3)) for way, run in ways.items()}
    way = min(times, key=lambda way: times[way])
    print(f"{name}: {way}", file=sys.stderr)
    return ways[way]


def translator(case: Case, compute: str = "float32") -> Run:
    """CTranslate2 in whichever threading is fastest here: workers times threads of each."""
    import ctranslate2
    from ctranslate2.converters.transformers import MarianMTLoader

    words = words_of(case)
    ids = {word: i for i, word in enumerate(words)}
    spec = MarianMTLoader().get_model_spec(marian(case))
    spec.config.eos_token, spec.config.unk_token, spec.config.decoder_start_token = "</s>", "<unk>", "</s>"
    spec.register_source_vocabulary(words)
    spec.register_target_vocabulary(words)
    spec.validate()
    spec.optimize(quantization=None if compute == "float32" else compute)
    rows = [[words[i] for i in row] for row in sources(case)]

    def run(engine: Any, size: int) -> list[list[int]]:
        settings = {"beam_size": case.beams, "max_decoding_length": case.tokens, "max_batch_size": size}
        settings |= {"max_input_length": 0}
        return [[ids[word] for word in result.hypotheses[0]] for result in engine.translate_batch(rows, **settings)]

    with tempfile.TemporaryDirectory() as folder:
        spec.save(folder)
        threads, ways = torch.get_num_threads(), {}
        for workers, each in sorted({(1, threads), (1, 1)} | ({(threads, 1)} if case.batch > 1 else set())):
            engine = ctranslate2.Translator(
                folder, device="cpu", compute_type=compute, inter_threads=workers, intra_threads=each
            )
            ways[f"{workers} workers of {each} threads"] = partial(run, engine, -(-case.batch // workers))
    return fastest(f"CTranslate2 {compute}", ways)


def clock(function: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


ENGINES: dict[str, Callable[[Case], Run]] = {
    "Marian": lambda case: generator_of(marian(case), case),
    "BART": lambda case: generator_of(bart(case), case),
    "T5": lambda case: generator_of(t5(case), case),
    "T5Gemma": t5gemma,
    "nn.Transformer": torch_transformer,
    "x-transformers": x_transformers,
    "Dragoman": lambda case: generator_of(dragoman.convert_from(marian(case)).eval(), case),
    "Dragoman, stock loop": stock_loop,
    "Dragoman, int8": lambda case: generator_of(dragoman.quantize(dragoman.convert_from(marian(case))), case),
    "CTranslate2": translator,
    "CTranslate2, int8": partial(translator, compute="int8"),
}
GREEDY_ONLY = ("nn.Transformer", "x-transformers")


def scores_of(case: Case, ids: list[list[int]]) -> Tensor:
    """Log-probabilities (B, T, V) of Marian given ``ids``: where two engines differ, how close the choice was."""
    prefix = torch.tensor([[case.pad, *row[:-1]] for row in ids])
    with torch.no_grad():
        return marian(case)(*padded(case), decoder_input_ids=prefix).logits.log_softmax(-1)


def main() -> None:
    name, case, threads = sys.argv[1:]
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(int(threads))

    def build() -> tuple[dict[str, Any], Callable[[str], dict[str, Any]]]:
        run = ENGINES[name](Case(*json.loads(case)))
        ids = run()

        def answer(_: str) -> dict[str, Any]:
            seconds, again = clock(run)
            if again != ids:
                raise RuntimeError(f"{name} gave other tokens than before")
            return {"seconds": seconds}

        return {"ids": ids}, answer

    serve(build)


if __name__ == "__main__":
    main()
