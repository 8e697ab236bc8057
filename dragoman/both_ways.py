"""One model that writes from either end, and an answer that is likely from both (Liu et al., 2016, N16-1046)."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from .ensemble import EnsembleLogitsProcessor
from .modeling.padding import mask_of_padding
from .pipelines import NO_LIMIT, Encoded, Text2TextPipeline, said
from .written_rows import option, written_lengths

Row = list[int]
NOT_BOTH_WAYS = (
    "decoder_input_ids encoder_outputs prefix_allowed_tokens_fn stop_strings stopping_criteria streamer assistant_model"
).split()


def backwards(example: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The same pair, written from its end: ``labels`` turned round, and the end token before ``input_ids``, to ask so.

    Special tokens around the labels (the end token, a language code) keep their places. For ``datasets``:

        backward = train.map(backwards, fn_kwargs={"tokenizer": tokenizer})
        train = concatenate_datasets([train, backward])

    Raises:
        ValueError: for a tokenizer without an end token.
    """
    turned = example | {"input_ids": [end_token(tokenizer), *example["input_ids"]]}
    turned["labels"] = turn_round(example["labels"], special_ids(tokenizer))
    if "attention_mask" in example:
        turned["attention_mask"] = [1, *example["attention_mask"]]
    return turned


@torch.no_grad()
def generate_both_ways(
    models: PreTrainedModel | Sequence[PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """What is likely from both ends, of what beam search writes from either.

        score(y) = (log p(y | x) + log p(backward y | end token, x)) / (2 · tokens^length_penalty)

    A model that errs at the end of a word from the left errs at its beginning from the right. Models are to be trained
    on `backwards` pairs, too; several write and score by the mean of their probabilities. It costs two searches, and a
    forward pass for each of their ``2 · num_beams`` candidates.

    Args:
        options: generate()'s. Candidates are its ``num_beams`` best of each direction, or so many samples.

    Returns:
        Sequences (B * num_return_sequences, T) as generate() has them, the best of a source first, each with its end
        token; and their scores (B * num_return_sequences,).

    Raises:
        ValueError: for options that make no sense from the end, and more sequences than there are candidates.
    """
    models = [models] if isinstance(models, PreTrainedModel) else list(models)
    model, end, special = models[0], end_token(tokenizer), special_ids(tokenizer)
    if refused := [name for name in NOT_BOTH_WAYS if option(model, options, name, None) is not None]:
        raise ValueError(f"{', '.join(refused)}: what is written from both ends cannot go by it.")
    beams = option(model, options, "num_beams", 1)
    wanted = option(model, options, "num_return_sequences", 1)
    if wanted > 2 * beams:
        raise ValueError(f"num_return_sequences={wanted}: two searches of num_beams={beams} find {2 * beams}.")
    mask = mask_of_padding(input_ids, model.config) if attention_mask is None else attention_mask
    forward = {"input_ids": input_ids, "attention_mask": mask}
    backward = asked_backwards(input_ids, mask, end, tokenizer.pad_token_id)

    options |= {"num_return_sequences": beams, "return_dict_in_generate": False}
    written = write(models, forward, options)
    start = written[0, :1]
    ends = torch.as_tensor(option(model, options, "eos_token_id", end)).flatten().tolist()
    found = label_rows(written, ends, end, tokenizer.pad_token_id)
    turned = label_rows(write(models, backward, options), ends, end, tokenizer.pad_token_id)
    found_backwards = [turn_round(row, special) for row in turned]

    sources = range(len(input_ids))
    candidates = [found[i * beams : (i + 1) * beams] + found_backwards[i * beams : (i + 1) * beams] for i in sources]
    both = log_likelihoods(models, forward, candidates, start)
    candidates_turned = [[turn_round(row, special) for row in rows] for rows in candidates]
    both += log_likelihoods(models, backward, candidates_turned, start)
    penalty = option(model, options, "length_penalty", 1.0)
    sequences, scores = [], []
    for rows, logs in zip(candidates, both.tolist(), strict=True):
        ranked = [(rows.index(row) != n, -logs[n] / 2 / len(row) ** penalty, row) for n, row in enumerate(rows)]
        for _, score, row in sorted(ranked)[:wanted]:  # what both found is there once, unless no others are left
            sequences.append(torch.cat([start, torch.tensor(row, device=start.device)]))
            scores.append(-score)
    padded = pad_sequence(sequences, batch_first=True, padding_value=tokenizer.pad_token_id)
    return padded, torch.tensor(scores, device=start.device)


class BothWaysPipeline(Text2TextPipeline):
    """`Text2TextPipeline` by `generate_both_ways`: ``pipeline("dragoman-text2text", pipeline_class=BothWaysPipeline)``.

    ``others`` are models that write along.
    """

    others: Sequence[Any] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._positions -= self._positions < NO_LIMIT  # one is for the end token at the front

    def _forward(self, model_inputs: Encoded, return_scores: bool = False, **options: Any) -> list[Encoded]:  # type: ignore[override]
        inputs = dict(model_inputs)
        options = self._prepare_generate_kwargs(options, **said(forced_bos_token_id=inputs.pop("forced_bos_token_id")))
        ids, scores = generate_both_ways([self.model, *self.others], self.tokenizer, **inputs, **options)
        lengths = 1 + written_lengths(ids, 1, self.tokenizer.eos_token_id, None, None, None)
        results = {"ids": ids, "length": lengths} | ({"score": scores} if return_scores else {})
        rows = len(inputs["input_ids"])
        return [{name: value.unflatten(0, (rows, -1))[i] for name, value in results.items()} for i in range(rows)]


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{type(tokenizer).__name__} has no eos_token, by which a model is asked to write backwards.")
    return tokenizer.eos_token_id


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """But for the unknown token, which stands for text."""
    return set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}


def turn_round(labels: Sequence[int], special: set[int]) -> Row:
    """What stands between the special tokens at the beginning and those at the end, from its end."""
    text = [at for at, token in enumerate(labels) if token not in special]
    first, after = (text[0], text[-1] + 1) if text else (0, 0)
    return [*labels[:first], *reversed(labels[first:after]), *labels[after:]]


def asked_backwards(input_ids: Tensor, mask: Tensor, end: int, pad: int) -> dict[str, Tensor]:
    front = torch.tensor([end], device=input_ids.device)
    rows = [torch.cat([front, ids[kept.bool()]]) for ids, kept in zip(input_ids, mask, strict=True)]
    ids = pad_sequence(rows, batch_first=True, padding_value=pad)
    sizes = torch.tensor([len(row) for row in rows], device=ids.device)
    return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1], device=ids.device) < sizes[:, None]).long()}


def write(models: Sequence[Any], inputs: dict[str, Tensor], options: dict[str, Any]) -> Tensor:
    processors = LogitsProcessorList(options.get("logits_processor") or [])
    if len(models) > 1:
        processors.append(EnsembleLogitsProcessor(models, **inputs))
    return models[0].generate(**inputs, **options | {"logits_processor": processors})


def label_rows(written: Tensor, ends: Iterable[int], end: int, pad: int) -> list[Row]:
    """As labels have it: up to the first end token, with one in any case."""
    rows = []
    for row in written[:, 1:].tolist():
        stops = [at for at, token in enumerate(row) if token in ends or token < 0]
        row = row[: stops[0]] if stops else row
        while row and row[-1] == pad:
            row.pop()
        rows.append([*row, end])
    return rows


def log_likelihoods(
    models: Sequence[Any], inputs: dict[str, Tensor], candidates: list[list[Row]], start: Tensor
) -> Tensor:
    """``Σ log p(label)`` (B, N) of N rows of labels a source, which the token ``start`` (1,) is put before."""
    encoded = [model.get_encoder()(**inputs, return_dict=True) for model in models]
    sums = []
    for rows in zip(*candidates, strict=True):  # one of each source
        labels = pad_sequence([torch.tensor(row, device=start.device) for row in rows], batch_first=True)  # (B, T)
        sizes = torch.tensor([len(row) for row in rows], device=start.device)
        known = torch.arange(labels.shape[1], device=start.device) < sizes[:, None]
        prefix = torch.cat([start.expand(len(rows), 1), labels[:, :-1]], dim=1)
        asked = {"attention_mask": inputs["attention_mask"], "return_dict": True, "use_cache": False}
        asked |= {"decoder_input_ids": prefix, "decoder_attention_mask": known.long()}
        logits = [model(encoder_outputs=states, **asked).logits for model, states in zip(models, encoded, strict=True)]
        logs = torch.stack([each.float().log_softmax(-1) for each in logits]).logsumexp(0) - math.log(len(models))
        of_labels = logs.gather(-1, labels[..., None])[..., 0]  # (B, T)
        sums.append(of_labels.masked_fill(~known, 0.0).sum(-1))
    return torch.stack(sums, dim=1)
