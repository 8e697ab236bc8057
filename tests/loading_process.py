"""Run by test_hub_matrix (and read by hub_process): loads folders as a user's process would, with or without the plugin, and compares.

    python loading_process.py JOBS.json

Each job runs in a fork of this process, which has imported torch and transformers but never dragoman, so it costs a
second and not the time that importing torch takes.
"""

import importlib.abc
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    AutoTokenizer,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

SOURCES = ["a dog runs", "two dogs\nrun  fast", "Größe 猫"]
TARGETS = ["ein Hund rennt", "zwei Hunde", "ÄÖ 犬 run"]


class Absent(importlib.abc.MetaPathFinder):
    """As if dragoman were not installed."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name.partition(".")[0] == "dragoman":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def ties(model: torch.nn.Module) -> list[list[str]]:
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(parameter.data_ptr(), []).append(name)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)


def inputs_of(config: Any) -> dict[str, torch.Tensor]:
    """Ids that both vocabularies hold; the last row ends in padding."""
    ids = torch.arange(3, 3 + 12).reshape(2, 6) % 30 + 3
    ids[1, 4:] = config.pad_token_id
    return {"input_ids": ids, "attention_mask": (ids != config.pad_token_id).long()}


@torch.no_grad()
def seq2seq(model: Any) -> dict[str, Any]:
    inputs = inputs_of(model.config)
    return {
        "logits": model(**inputs, decoder_input_ids=inputs["input_ids"][:, :4]).logits,
        "greedy": model.generate(**inputs, max_new_tokens=6),
        "beams": model.generate(**inputs, max_new_tokens=6, num_beams=3),
        "ties": ties(model),
        "generation": {k: v for k, v in model.generation_config.to_dict().items() if "token_id" in k},
    }


@torch.no_grad()
def base(model: Any) -> dict[str, Any]:
    inputs = inputs_of(model.config)
    states = model(**inputs, decoder_input_ids=inputs["input_ids"][:, :4]).last_hidden_state
    return {"states": states, "ties": ties(model)}


@torch.no_grad()
def encoder(model: Any) -> dict[str, Any]:
    return {"states": model(**inputs_of(model.config)).last_hidden_state}


@torch.no_grad()
def classifier(model: Any) -> dict[str, Any]:
    outputs = model(**inputs_of(model.config))
    return {"logits": outputs.logits, "weights": outputs.pooling_weights}


def tokenizer(tokenizer: Any) -> dict[str, Any]:
    encoded = tokenizer(SOURCES, text_target=TARGETS)
    sides = {"decoded": encoded["labels"], "source decoded": encoded["input_ids"]}
    texts = {
        name: tokenizer.batch_decode(ids, skip_special_tokens=True, use_source_tokenizer=name != "decoded")
        for name, ids in sides.items()
    }
    return {**encoded, **texts, "specials": tokenizer.special_tokens_map, "separate": tokenizer.separate_vocabularies}


def config(config: Any) -> dict[str, Any]:
    ignored = ("_name_or_path", "dtype", "architectures", "use_cache")  # Trainer turns the cache off
    fields = {name: value for name, value in config.to_dict().items() if name not in ignored}
    flag = {} if type(config).__module__.startswith("dragoman.") else {"trust_remote_code": True}
    model = AutoModel.from_config(config, **flag)
    return {"fields": fields, "parameters": [name for name, _ in model.named_parameters()]}


# What a folder may be asked for: the Auto class, and what is compared.
FACETS: dict[str, tuple[Any, Callable[[Any], dict[str, Any]]]] = {
    "config": (AutoConfig, config),
    "seq2seq": (AutoModelForSeq2SeqLM, seq2seq),
    "base": (AutoModel, base),
    "encoder": (AutoModelForTextEncoding, encoder),
    "classifier": (AutoModelForSequenceClassification, classifier),
    "tokenizer": (AutoTokenizer, tokenizer),
}


def save(loaded: dict[str, Any], folder: Path, how: str) -> None:
    """Save into one folder: `config`, `tokenizer`, `model`, that in many files, several in an order; or by a Trainer."""
    model = next((loaded[name] for name in ("classifier", "seq2seq", "base", "encoder") if name in loaded), None)
    if how == "trainer":
        arguments = Seq2SeqTrainingArguments(str(folder) + "-runs", report_to=[], use_cpu=True)
        Seq2SeqTrainer(model, arguments, processing_class=loaded["tokenizer"]).save_model(str(folder))
        return
    parts = {"config": loaded.get("config"), "tokenizer": loaded.get("tokenizer"), "model": model}
    for part in how.split("+"):
        if part == "sharded":
            model.save_pretrained(folder, max_shard_size="50KB")
            assert len(list(folder.glob("*.safetensors"))) > 1
        else:
            parts[part].save_pretrained(folder)


def check(folder: Path, facets: list[str], mode: str) -> dict[str, Any]:
    """Load a folder in every way that it offers; compare with what was noted when it was first saved."""
    flag = {} if mode == "a" else {"trust_remote_code": True}
    expected = torch.load(folder.parent.parent / f"{folder.name}.pt")
    loaded = {}
    for name in facets:
        auto, describe = FACETS[name]
        thing = loaded[name] = auto.from_pretrained(folder, **flag)
        if mode != "c" or name != "tokenizer":  # with both, transformers takes a tokenizer from either
            home = "dragoman" if mode in "ac" else "transformers_modules"
            assert type(thing).__module__.partition(".")[0] == home, (type(thing), mode)
        compare(describe(thing), expected[name])
    return loaded


def compare(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Tensors to the bit."""
    assert found.keys() == expected.keys()
    for what, value in expected.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(found[what], value, rtol=0, atol=0, msg=what)
        else:
            assert found[what] == value, f"{what}: {found[what]} instead of {value}"


def check_refusal(folder: Path, note: str) -> None:
    """Without the plugin, a folder without code says how to get it, whatever is asked for and with the flag or not."""
    for auto, _ in FACETS.values():
        for flag in ({}, {"trust_remote_code": True}):
            said = ""
            try:
                auto.from_pretrained(folder, **flag)
            except ValueError as error:
                said = str(error)
            assert note in said, f"{auto.__name__} {flag}: {said or 'it loaded'}"


def run(job: dict[str, Any]) -> None:
    mode = job["mode"]
    if mode == "b":
        sys.meta_path.insert(0, Absent())
    elif mode in "ac":
        import dragoman  # noqa: F401
    else:
        assert importlib.util.find_spec("dragoman") is not None
    torch.set_num_threads(1)
    for where, note in job.get("refused", ()):
        check_refusal(Path(where), note)
    for where, facets, again, how in job["folders"]:
        try:
            loaded = check(Path(where), facets, mode)
            if again:
                save(loaded, Path(again), how)
        except BaseException as error:
            error.add_note(f"mode {mode}, {where}, saved again by {how}")
            raise
    assert ("dragoman" in sys.modules) == (mode in "ac"), "code in a folder must not import the plugin"


def main() -> None:
    failed = 0
    for job in json.loads(Path(sys.argv[1]).read_text("utf-8")):
        child = os.fork()
        if child == 0:
            try:
                run(job)
            except BaseException:
                traceback.print_exc(file=sys.stdout)
                sys.stdout.flush()
                os._exit(1)
            os._exit(0)
        failed += os.waitpid(child, 0)[1] != 0
    sys.exit(failed)


if __name__ == "__main__":
    main()
