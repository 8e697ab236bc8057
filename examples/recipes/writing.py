"""What checkpoints write together: token by token, or from both ends of a text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from scored_files import fail
from torch import Tensor
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    LogitsProcessorList,
    pipeline,
)

import dragoman  # registers models and the pipeline
from dragoman.pipelines import Text2TextPipeline
from seq2seq_checkpoints import vocabularies

Rows = list[list[tuple[str, float]]]  # of each source the best texts, with their scores


class EnsemblePipeline(Text2TextPipeline):
    """The model and others write together."""

    others: Sequence[Any] = ()

    def _forward(self, model_inputs: dict[str, Any], **options: Any) -> list[dict[str, Any]]:  # type: ignore[override]
        ids, mask = model_inputs["input_ids"], model_inputs["attention_mask"]
        together = dragoman.EnsembleLogitsProcessor([self.model, *self.others], ids, mask)
        return super()._forward(model_inputs, logits_processor=LogitsProcessorList([together]), **options)


def generate(checkpoint: Path, others: list[Path], sources: list[str], options: dict[str, Any]) -> Rows:
    """The n best of each source, token by token by the mean of the models' probabilities."""
    kind = EnsemblePipeline if others else Text2TextPipeline
    pipe: Any = pipeline(
        "dragoman-text2text", model=str(checkpoint), pipeline_class=kind, return_scores=True, **options
    )
    pipe.model.generation_config.max_length = None  # max_new_tokens says it; every batch would be warned of the two
    for other in others:
        if vocabularies(AutoTokenizer.from_pretrained(other)) != vocabularies(pipe.tokenizer):
            fail(f"{checkpoint} and {other} have different vocabularies: they cannot write together.")
    pipe.others = [AutoModelForSeq2SeqLM.from_pretrained(other).to(pipe.device) for other in others]
    found = pipe(sources)
    rows = [records if isinstance(records, list) else [records] for records in found]
    return [[(record["generated_text"], record["score"]) for record in records] for records in rows]


def turned(text: str) -> str:
    return " ".join(reversed(text.split()))


def generate_from_both_ends(left: list[Path], right: list[Path], sources: list[str], options: dict[str, Any]) -> Rows:
    """The n best of what each model writes by itself, by the mean of what all say: ``Σ log p / tokens^length_penalty``.

    Models of the ``right`` learnt targets whose words are turned round. From the left a model errs rather at the end
    of a text, from the right at its beginning (Liu et al. 2016, N16-1046).
    """
    best, penalty, batch_size = options["num_return_sequences"], options["length_penalty"], options["batch_size"]
    folders = [(folder, False) for folder in left] + [(folder, True) for folder in right]
    found: list[dict[str, None]] = [{} for _ in sources]
    for folder, turn in folders:
        rows = generate(folder, [], sources, options | {"num_return_sequences": options["num_beams"]})
        for texts, row in zip(found, rows, strict=True):
            texts |= dict.fromkeys(turned(text) if turn else " ".join(text.split()) for text, _ in row)
    pairs = [(source, text) for source, texts in zip(sources, found, strict=True) for text in texts]
    scores = torch.zeros(len(pairs))
    for folder, turn in folders:
        asked = [(source, turned(text) if turn else text) for source, text in pairs]
        scores += log_likelihoods(folder, asked, batch_size, penalty) / len(folders)
    ranked: Rows = [[] for _ in sources]
    judged = iter(scores.tolist())
    for row, texts in zip(ranked, found, strict=True):
        row += sorted(zip(texts, judged, strict=False), key=lambda item: -item[1])[:best]
    return ranked


@torch.no_grad()
def log_likelihoods(folder: Path, pairs: list[tuple[str, str]], batch_size: int, length_penalty: float) -> Tensor:
    """``Σ log p(token) / tokens^length_penalty`` (N,) of the target of each pair, up to its end token."""
    pipe: Any = pipeline("dragoman-text2text", model=str(folder))
    model, tokenizer = pipe.model, pipe.tokenizer
    collate, found = DataCollatorForSeq2Seq(tokenizer), torch.zeros(len(pairs))
    order = sorted(range(len(pairs)), key=lambda i: tuple(map(len, pairs[i])))
    for at in range(0, len(order), batch_size):
        rows = order[at : at + batch_size]
        sources, texts = zip(*(pairs[i] for i in rows), strict=True)
        encoded = tokenizer(list(sources), text_target=list(texts))
        batch = collate([{name: encoded[name][i] for name in encoded} for i in range(len(rows))]).to(model.device)
        known = batch["labels"] != collate.label_pad_token_id  # (B, T)
        logs = model(**batch).logits.float().log_softmax(-1)  # (B, T, V)
        logs = logs.gather(-1, batch["labels"].where(known, 0)[..., None])[..., 0].where(known, 0.0)
        found[rows] = (logs.sum(1) / known.sum(1) ** length_penalty).cpu()
    return found
