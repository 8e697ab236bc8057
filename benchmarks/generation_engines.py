"""The engines that benchmarks/generate.py compares, each served in a process of its own.

Dragoman, its stock loop and CTranslate2 compute with Marian's weights, or these in int8; BART and T5 have their
own of the same sizes. A worker reads a command a line and answers
with a line of JSON.
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
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.utils import logging

import dragoman

END = 0
SAME_WEIGHTS = ("marian", "dragoman", "stock loop", "ctranslate2")


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


def settle(model: Any, up: nn.Linear, down: nn.Linear) -> Any:
    """Weights under which a row does not repeat itself: the last layer turns every token's vector elsewhere."""
    torch.manual_seed(0)
    size = up.in_features
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "position" not in name and "relative" not in name:
                embeds = "shared" in name or "embed" in name
                weight.normal_(std=size**-0.5 * (1.0 if embeds else 0.3))
        turn = torch.linalg.qr(torch.randn(size, size)).Q
        up.weight[: 2 * size] = torch.cat([torch.eye(size), -torch.eye(size)])  # relu(x) and relu(-x)
        down.weight[:, : 2 * size] = 30 * torch.cat([turn, -turn], dim=1)
    return model.eval()


def marian(case: Case) -> Any:
    sides = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in _side(case).items()}
    model = MarianMTModel(
        MarianConfig(
            vocab_size=case.vocabulary,
            d_model=case.size,
            activation_function="relu",
            scale_embedding=True,
            max_position_embeddings=4096,
            eos_token_id=END,
            pad_token_id=case.pad,
            decoder_start_token_id=case.pad,
            **sides,
        )
    )
    last = model.model.decoder.layers[-1]
    settle(model, last.fc1, last.fc2)
    with torch.no_grad():
        model.model.shared.weight[case.pad] = 0
    model.final_logits_bias[0, [END, case.pad]] = -1e4  # no row ends early: the work is the same for all
    return unforced(model)


def unforced(model: Any) -> Any:
    for name in ("forced_eos_token_id", "forced_bos_token_id", "bad_words_ids"):
        setattr(model.generation_config, name, None)
    return model


def _side(case: Case) -> dict[str, int]:
    return {"layers": case.layers, "attention_heads": case.heads, "ffn_dim": case.feed_forward}


def bart(case: Case) -> Any:
    sides = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in _side(case).items()}
    special = {"bos_token_id": END, "eos_token_id": END, "pad_token_id": case.pad, "decoder_start_token_id": case.pad}
    config = BartConfig(
        vocab_size=case.vocabulary,
        d_model=case.size,
        activation_function="relu",
        scale_embedding=True,
        **sides,
        **special,
    )
    model = BartForConditionalGeneration(config)
    last = model.model.decoder.layers[-1]
    settle(model, last.fc1, last.fc2)
    model.final_logits_bias[0, [END, case.pad]] = -1e4
    return unforced(model)


def t5(case: Case) -> Any:
    config = T5Config(
        vocab_size=case.vocabulary,
        d_model=case.size,
        d_kv=case.size // case.heads,
        d_ff=case.feed_forward,
        num_layers=case.layers,
        num_heads=case.heads,
        eos_token_id=END,
        pad_token_id=case.pad,
        decoder_start_token_id=case.pad,
    )
    model = T5ForConditionalGeneration(config)
    last = model.decoder.block[-1].layer[-1].DenseReluDense
    settle(model, last.wi, last.wo)
    model.generation_config.suppress_tokens = [END, case.pad]  # it has no bias that could
    model.generation_config.repetition_penalty = 2.0  # nor absolute positions to vary by; costs it a per cent or two
    return model


def generator_of(model: Any, case: Case) -> Callable[[], list[list[int]]]:
    rows = [torch.tensor(row) for row in sources(case)]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=case.pad)
    settings = {"max_new_tokens": case.tokens, "num_beams": case.beams, "do_sample": False}
    return lambda: model.generate(ids, attention_mask=(ids != case.pad).long(), **settings)[:, 1:].tolist()


def stock_loop(case: Case) -> Callable[[], list[list[int]]]:
    """The same model, with the fast loops told that they cover nothing."""
    generation_dragoman.is_covered = lambda *_: False  # type: ignore[assignment]
    return generator_of(dragoman.convert_from(marian(case)), case)


def translator(case: Case, compute: str = "float32") -> Callable[[], list[list[int]]]:
    """CTranslate2 in whichever threading is fastest here: workers times threads of each."""
    tokens = ["</s>", "<unk>", *map(str, range(2, case.pad))]
    ids = {token: i for i, token in enumerate(tokens)}
    model = marian(case)
    spec = MarianMTLoader().get_model_spec(model)
    spec.config.eos_token, spec.config.unk_token, spec.config.decoder_start_token = "</s>", "<unk>", "</s>"
    spec.register_source_vocabulary(tokens)
    spec.register_target_vocabulary(tokens)
    spec.validate()
    spec.optimize(quantization=None if compute == "float32" else compute)
    with tempfile.TemporaryDirectory() as folder:
        spec.save(folder)
        rows = [[tokens[i] for i in row] for row in sources(case)]

        def run(engine: ctranslate2.Translator, size: int) -> list[list[int]]:
            settings = {"beam_size": case.beams, "max_decoding_length": case.tokens, "max_batch_size": size}
            results = engine.translate_batch(rows, **settings)
            return [[ids[token] for token in result.hypotheses[0]] for result in results]

        threads = torch.get_num_threads()
        ways = {(1, threads), (1, 1), (threads, 1)} if case.batch > 1 else {(1, threads), (1, 1)}
        timed = []
        for workers, each in sorted(ways):
            engine = ctranslate2.Translator(
                folder, device="cpu", compute_type=compute, inter_threads=workers, intra_threads=each
            )
            way = partial(run, engine, -(-case.batch // workers))
            timed.append((min(clock(way)[0] for _ in range(3)), workers, each, way))
    _, workers, each, best = min(timed, key=lambda entry: entry[0])
    print(f"CTranslate2 {compute}: {workers} workers of {each} threads", file=sys.stderr)
    return best


def clock(function: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


ENGINES: dict[str, Callable[[Case], Callable[[], list[list[int]]]]] = {
    "marian": lambda case: generator_of(marian(case), case),
    "dragoman": lambda case: generator_of(dragoman.convert_from(marian(case)).eval(), case),
    "stock loop": stock_loop,
    "bart": lambda case: generator_of(bart(case), case),
    "t5": lambda case: generator_of(t5(case), case),
    "ctranslate2": translator,
    "dragoman int8": lambda case: generator_of(dragoman.quantize(dragoman.convert_from(marian(case))), case),
    "ctranslate2 int8": partial(translator, compute="int8"),
}


def scores_of(case: Case, ids: list[list[int]]) -> Tensor:
    """Log-probabilities (B, T, V) of Marian given ``ids``: where two engines differ, how close the choice was."""
    model = marian(case)
    rows = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in sources(case)], True, padding_value=case.pad)
    prefix = torch.tensor([[case.pad, *row[:-1]] for row in ids])
    with torch.no_grad():
        return model(rows, (rows != case.pad).long(), decoder_input_ids=prefix).logits.log_softmax(-1)


def serve(name: str, case: Case, threads: int) -> None:
    logging.set_verbosity_error()
    torch.set_num_threads(threads)
    run = ENGINES[name](case)
    ids = run()
    print(json.dumps({"ids": ids}), flush=True)
    for _ in sys.stdin:
        cpu = time.process_time()
        seconds, again = clock(run)
        cpu = time.process_time() - cpu
        print(json.dumps({"seconds": seconds, "cpu": cpu, "same": again == ids}), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], Case(*json.loads(sys.argv[2])), int(sys.argv[3]))
