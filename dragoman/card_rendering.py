"""A model card's text and metadata, from facts."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index

from .card_facts import CLASSIFIER, COMMON, SIDED, TAGS

NOTICE = (
    "<!-- Written by dragoman, and again whenever the model is saved, until you change this text: then it is yours. "
    'What you add to the metadata above stays; "license:" is yours to add. -->'
)
AUTO_CLASSES = {
    "DragomanModel": "AutoModel",
    "DragomanRecurrentModel": "AutoModel",
    "DragomanEncoderModel": "AutoModelForTextEncoding",
    "DragomanForSequenceClassification": "AutoModelForSequenceClassification",
}
TRANSLATION, TEXT_TO_TEXT, CLASSIFICATION = "translation", "text2text-generation", "text-classification"


def metadata(name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the card's head that these facts give, as ``ModelCardData`` takes them."""
    stated, training = facts.get("stated", {}), facts.get("training", {})
    languages = facts.get("tokenizer", {}).get("languages", [])
    architecture = facts.get("model", {}).get("architecture", "")
    task = TRANSLATION if languages else TEXT_TO_TEXT
    if architecture.endswith("ForSequenceClassification"):
        task = CLASSIFICATION
    has_task = architecture.endswith(("ForConditionalGeneration", "ForSequenceClassification"))
    dataset, rows = training.get("dataset", {}), training.get("results", [])
    results = [
        EvalResult(
            task_type=task,
            dataset_type=dataset.get("type", "unknown"),
            dataset_name=dataset.get("name", "unknown"),
            dataset_config=dataset.get("config"),
            dataset_split=row["split"],
            metric_type=row["metric"],
            metric_name=row["metric"].replace("_", " "),
            metric_value=row["value"],
        )
        for row in rows
    ]
    fields = {
        "library_name": "transformers",
        "pipeline_tag": task if has_task else None,
        "language": [code for code in languages if re.fullmatch("[a-z]{2,3}", code)] or None,  # the Hub takes no others
        "tags": TAGS,
        "metrics": list(dict.fromkeys(row["metric"] for row in rows if row["metric"] != "loss")) or None,
        "model-index": eval_results_to_model_index(name, results) if results else None,
    }
    return {key: value for key, value in (fields | stated).items() if value is not None}


def render(name: str, facts: Mapping[str, Any]) -> str:
    """The card's text, Markdown."""
    return "\n\n".join([NOTICE, f"# {name}", *_sections(name, facts)]) + "\n"


def _sections(name: str, facts: Mapping[str, Any]) -> Iterator[str]:
    model, tokenizer, training = (facts.get(key, {}) for key in ("model", "tokenizer", "training"))
    if model:
        yield _introduction(model, facts.get("stated", {}).get("base_model"))
    if model or tokenizer:
        yield "## How to load it\n\n" + _loading(name, model, tokenizer)
    if facts.get("conversion"):
        yield f"## Conversion\n\n{_conversion(facts['conversion'])}"
    if model:
        rows = [[key.replace("_", " "), model[key]] for key in (*COMMON, *CLASSIFIER) if key in model]
        for key in SIDED:
            sides = [str(model[f"{side}_{key}"]) for side in ("encoder", "decoder") if f"{side}_{key}" in model]
            if sides:
                rows.append([key.replace("_", " "), " + ".join(sides)])
        yield "## Sizes\n\nEncoder + decoder where they have one each.\n\n" + _table(["field", "value"], rows)
    if tokenizer.get("languages"):
        yield f"## Languages\n\nIt can be asked for: {', '.join(tokenizer['languages'])}."
    if training.get("results"):
        rows = [[row["split"], row["metric"], _number(row["value"])] for row in training["results"]]
        yield "## Results\n\n" + _dataset(training) + _table(["split", "metric", "value"], rows)
    if training.get("arguments"):
        arguments = "\n".join(f"- {key}: {value}" for key, value in training["arguments"].items())
        yield f"## Training arguments\n\n{arguments}"
    if training.get("progress"):
        header = list(dict.fromkeys(key for line in training["progress"] for key in line))
        rows = [[_number(line.get(key, "")) for key in header] for line in training["progress"]]
        yield "## While it trained\n\n" + _table(header, rows)
    if training.get("versions"):
        yield "## Versions\n\n" + "\n".join(f"- {key} {value}" for key, value in training["versions"].items())


def _introduction(model: Mapping[str, Any], base: str | None) -> str:
    kind = "The encoder of a Transformer" if "Encoder" in model["architecture"] else "An encoder-decoder Transformer"
    if model.get("classifier_backbone") == "encoder":
        kind = "The encoder of a Transformer with a classifier"
    elif "classifier_backbone" in model:
        kind = "An encoder-decoder Transformer with a classifier"
    if "Recurrent" in model["architecture"]:
        kind = "A recurrent encoder-decoder"
    size = f" with {model['parameters']:,} parameters ({model['dtype']})" if "parameters" in model else ""
    origin = f" Fine-tuned from [{base}](https://huggingface.co/{base})." if base else ""
    return f"{kind}{size}: `{model['architecture']}`.{origin}"


def _conversion(conversion: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in conversion["versions"].items())
    return (
        f"Converted from transformers' `{conversion['source']}`, tensor for tensor, and compared with it in float32 "
        f"({versions}): the logits of random input differ by {conversion['difference']} of the largest at most, "
        f"and {conversion['equal_tokens']} of {conversion['tokens']} greedily generated tokens are the same."
    )


def _loading(name: str, model: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> str:
    """Two lines with the package, two lines without it, for what the folder holds."""
    classes = [AUTO_CLASSES.get(model["architecture"], "AutoModelForSeq2SeqLM")] if model else []
    names = ["model"] * bool(model) + ["tokenizer"] * bool(tokenizer)
    classes += ["AutoTokenizer"] * bool(tokenizer)
    imports = f"from transformers import {', '.join(classes)}"
    quoted = json.dumps(name, ensure_ascii=False)

    def load(flag: str) -> str:
        calls = ", ".join(f"{auto}.from_pretrained({quoted}{flag})" for auto in classes)
        return f"{', '.join(names)} = {calls}"

    text = "With `pip install dragoman`; no code from here runs:\n\n" + _code(f"import dragoman; {imports}", load(""))
    if any(not part["has_code"] for part in (model, tokenizer) if part):
        return text
    return text + "\n\nWithout it, by the code that lies here:\n\n" + _code(imports, load(", trust_remote_code=True"))


def _code(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])


def _dataset(training: Mapping[str, Any]) -> str:
    name = training.get("dataset", {}).get("name")
    return f"Measured on {name}.\n\n" if name else ""


def _table(header: list[str], rows: list[list[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _number(value: Any) -> str:
    return str(round(value, 4) if isinstance(value, float) else value)
