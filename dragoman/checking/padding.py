"""Lines 2 to 5: a row means the same however it is padded, wherever it stands, alone or packed with others."""

import torch
from transformers import DataCollatorForSeq2Seq

import dragoman

from .batches import MORE_SOURCE, collate, draw_pairs
from .measuring import loss_and_gradient, real_logits
from .subjects import Subject
from .tokenizers import PaddingTokenizer
from .verdicts import Evidence


def check_pad_length(subject: Subject, evidence: Evidence) -> None:
    """More padding on the right of source and target changes neither logits, loss nor gradient."""
    model, pairs = subject.build(None), draw_pairs(subject)
    narrow, wide = collate(subject, pairs), collate(subject, pairs, more_source=MORE_SOURCE, more_target=4)
    expected = real_logits(model, narrow)
    evidence.compare("logits", real_logits(model, wide), expected, "logits")
    unmasked = real_logits(model, wide, attention_mask=torch.ones_like(wide.source_mask))
    evidence.matters("attending to padding", unmasked, expected)
    loss, gradient = loss_and_gradient(subject, model, narrow)
    wide_loss, wide_gradient = loss_and_gradient(subject, model, wide)
    evidence.compare("loss", wide_loss, loss, "loss")
    evidence.compare("gradient", wide_gradient, gradient, "gradient")


def check_pad_side(subject: Subject, evidence: Evidence) -> None:
    """Padding on the left, of the source or of a target with its mask, changes no logits."""
    model, pairs = subject.build(None), draw_pairs(subject)
    right, left = collate(subject, pairs), collate(subject, pairs, left=True)
    expected = real_logits(model, right)
    source = {"input_ids": left.source, "attention_mask": left.source_mask}
    evidence.compare("source", real_logits(model, right, **source), expected, "logits")
    target = {"decoder_input_ids": left.target, "decoder_attention_mask": left.target_mask}
    found = real_logits(model, right, real=left.target_mask, **target)
    evidence.compare("target", found, expected, "logits")
    target["decoder_attention_mask"] = torch.ones_like(left.target_mask)
    evidence.matters("attending to padding", real_logits(model, right, real=left.target_mask, **target), expected)


def check_rows(subject: Subject, evidence: Evidence) -> None:
    """Rows in another order give the same logits in that order, and a row alone gives its own."""
    model, pairs = subject.build(None), draw_pairs(subject)
    expected = real_logits(model, collate(subject, pairs))
    order = [3, 0, 4, 2, 1]
    rows = expected.split([len(pair.target) for pair in pairs])
    permuted = real_logits(model, collate(subject, [pairs[i] for i in order]))
    evidence.compare("order", permuted, torch.cat([rows[i] for i in order]), "logits")
    evidence.matters("another row", rows[3][:4], rows[0])
    for i, pair in enumerate(pairs):
        evidence.compare(f"row {i} alone", real_logits(model, collate(subject, [pair])), rows[i], "logits")


def check_packing(subject: Subject, evidence: Evidence) -> None:
    """Rows packed into one without padding give the loss and the gradient of the padded batch."""
    model, pairs = subject.build(None), draw_pairs(subject)
    tokenizer = PaddingTokenizer.of(subject)
    try:
        packed = dragoman.DataCollatorForPackedSeq2Seq(tokenizer, model=model)
    except TypeError as error:
        raise NotImplementedError("no packed path") from error
    features = [{"input_ids": pair.source, "labels": pair.target} for pair in pairs]
    loss, gradient = loss_and_gradient(subject, model, DataCollatorForSeq2Seq(tokenizer, model=model)(features))
    packed_loss, packed_gradient = loss_and_gradient(subject, model, packed(features))
    evidence.compare("loss", packed_loss, loss, "loss")
    evidence.compare("gradient", packed_gradient, gradient, "gradient")
    _, other = loss_and_gradient(subject, model, packed(features[:-1]))
    evidence.matters("leaving a row out", other, gradient)
