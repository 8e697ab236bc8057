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
from typing import Any, NamedTuple

import ctranslate2
import torch
from ctranslate2.converters.transformers import MarianMTLoader
from dragoman.modeling import generation_dragoman
from torch import Tensor, nn
from transformers.utils import logging

import dragoman
from peer_models import MODELS, Ids, Sizes
from turns import serve

END = 0
SAME_WEIGHTS = ("Marian", "Dragoman", "Dragoman, stock loop", "CTranslate2")
CROSS = ("encoder_attn", "EncDecAttention", "cross_attn", "multihead_attn")
Run = Callable[[], list[list[int]]]


class Case(NamedTuple):
    layers: int
    size: int
    feed_forward: int
    heads: int
    vocabulary: int
    batch: int = 1
    beams: int = 1
    source: int = 25
    tokens: int = 64

    @property
    def pad(self) -> int:
        return self.vocabulary - 1  # where Marian has it, and begins


def sources(case: Case) -> list[list[int]]:
    """Rows from 0.6 to 1.4 times ``case.source`` long; a single one is exactly that."""
    generator = torch.Generator().manual_seed(1)
    spread = torch.linspace(0.6, 1.4, case.batch) if case.batch > 1 else torch.ones(1)
    lengths = [max(2, round(case.source * float(share))) for share in spread]
    draw = partial(torch.randint, 2, case.pad, generator=generator)
    return [[*draw((length - 1,)).tolist(), END] for length in lengths]


def padded(case: Case) -> tuple[Tensor, Tensor]:
    """Sources (B, S) and their mask."""
    rows = [torch.tensor(row) for row in sources(case)]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=case.pad)
    return ids, (ids != case.pad).long()


def settle(model: Any, up: nn.Linear | None = None, down: nn.Linear | None = None) -> Any:
    """Weights under which a row does not repeat itself, nor another one.

    The last layer turns every token's vector elsewhere. Sharp, wide cross-attention makes the source weigh beside the
    token before; otherwise beams over different sources all end in the same likeliest run of tokens.
    """
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "position" not in name and "relative" not in name:
                weight.normal_(std=gain_of(name) * weight.shape[1] ** -0.5)
        if up is not None and down is not None:
            size = up.in_features
            turn = torch.linalg.qr(torch.randn(size, size)).Q
            up.weight[: 2 * size] = torch.cat([torch.eye(size), -torch.eye(size)])  # relu(x) and relu(-x)
            down.weight[:, : 2 * size] = 30 * torch.cat([turn, -turn], dim=1)
    return model.eval()


def gain_of(name: str) -> float:
    if "shared" in name or "embed" in name or "emb." in name:
        return 1.0
    if not any(part in name for part in CROSS):
        return 0.3
    return 3.0 if any(part in name for part in ("q_proj", "k_proj", ".q.", ".k.")) else 0.8


def built(name: str, case: Case) -> Any:
    return MODELS[name](Sizes(*case[:5]), Ids(case.pad, END), positions=4096 if name == "Marian" else 1024)


def marian(case: Case) -> Any:
    model = built("Marian", case)
    last = model.model.decoder.layers[-1]
    settle(model, last.fc1, last.fc2)
    with torch.no_grad():
        model.model.shared.weight[case.pad] = 0
    model.final_logits_bias[0, [END, case.pad]] = -1e4  # no row ends early: the work is the same for all
    model.generation_config.bad_words_ids = None
    return model


def bart(case: Case) -> Run:
    model = built("BART", case)
    last = model.model.decoder.layers[-1]
    settle(model, last.fc1, last.fc2)
    model.final_logits_bias[0, [END, case.pad]] = -1e4
    return generator_of(model, case)


def t5(case: Case) -> Run:
    model = built("T5", case)
    last = model.decoder.block[-1].layer[-1].DenseReluDense
    settle(model, last.wi, last.wo)
    model.generation_config.suppress_tokens = [END, case.pad]  # it has no bias that could
    model.generation_config.repetition_penalty = 2.0  # nor absolute positions to vary by; costs it a per cent or two
    return generator_of(model, case)


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
    ids, mask = padded(case)
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
    words = words_of(case)
    ids = {word: i for i, word in enumerate(words)}
    spec = MarianMTLoader().get_model_spec(marian(case))
    spec.config.eos_token, spec.config.unk_token, spec.config.decoder_start_token = "</s>", "<unk>", "</s>"
    spec.register_source_vocabulary(words)
    spec.register_target_vocabulary(words)
    spec.validate()
    spec.optimize(quantization=None if compute == "float32" else compute)
    rows = [[words[i] for i in row] for row in sources(case)]

    def run(engine: ctranslate2.Translator, size: int) -> list[list[int]]:
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
    "BART": bart,
    "T5": t5,
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
