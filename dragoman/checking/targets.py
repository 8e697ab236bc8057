"""Lines 9 to 11: what is to be predicted, and what may be seen while it is."""

import torch

from .batches import collate, cross_entropy, draw_pairs
from .measuring import flat_gradient, loss_and_gradient, real_logits
from .subjects import Subject
from .verdicts import Evidence


def check_labels(subject: Subject, evidence: Evidence) -> None:
    """The loss is the cross-entropy, written out, of labels against logits of the labels shifted by hand, once."""
    model, batch = subject.build(None), collate(subject, draw_pairs(subject))
    if hasattr(model.config, "label_smoothing"):
        model.config.label_smoothing = 0.0
    logits = model(**batch.teacher_forced()).logits
    expected = cross_entropy(logits, batch.labels).mean()
    expected.backward()
    gradient = flat_gradient(model)
    for mode in (False, True):  # dropout is off: training changes nothing but the code that runs
        loss, found = loss_and_gradient(subject, model.train(mode), batch)
        evidence.compare("loss in training" if mode else "loss", loss, expected, "loss")
        evidence.compare("gradient in training" if mode else "gradient", found, gradient, "gradient")
    model.eval()
    twice = torch.full_like(batch.labels, -100)
    twice[:, :-1] = batch.labels[:, 1:]
    once = torch.where(twice == -100, -100, batch.labels)  # token by token: means may be alike by chance
    evidence.matters("shifting labels twice", cross_entropy(logits, twice), cross_entropy(logits, once))
    again = model(**{**batch.teacher_forced(), "decoder_input_ids": batch.labels.clamp(min=0)}).logits
    evidence.matters("not shifting labels", cross_entropy(again, batch.labels), cross_entropy(logits, batch.labels))


def check_causality(subject: Subject, evidence: Evidence) -> None:
    """Other target tokens from a place on change no logits before it, and do change those from it on."""
    model, pairs = subject.build(None), draw_pairs(subject)
    batch = collate(subject, pairs)
    other = collate(
        subject, [a._replace(target=b.target) for a, b in zip(pairs, draw_pairs(subject, seed=2), strict=True)]
    )
    columns = torch.arange(batch.target.shape[1])
    for place in (1, 3, 6):
        changed = torch.where(columns < place, batch.target, other.target)
        before, after = ((columns < place) & batch.target_mask.bool(), (columns >= place) & batch.target_mask.bool())
        for real in (before, after):
            found = real_logits(model, batch, real=real, decoder_input_ids=changed)
            expected = real_logits(model, batch, real=real)
            if real is before:
                evidence.compare(f"logits before token {place}", found, expected, "logits")
            else:
                evidence.matters(f"changing tokens from {place} on", found, expected)


def check_source_mask(subject: Subject, evidence: Evidence) -> None:
    """Other ids under the mask change nothing; without the mask they do; what is seen matters."""
    model, pairs = subject.build(None), draw_pairs(subject)
    batch = collate(subject, pairs)
    hidden = draw_pairs(subject, lengths=[(batch.source.shape[1], 1)] * len(pairs), seed=3)
    garbled = torch.where(batch.source_mask.bool(), batch.source, torch.tensor([pair.source for pair in hidden]))
    expected = real_logits(model, batch)
    evidence.compare("other ids under the mask", real_logits(model, batch, input_ids=garbled), expected, "logits")
    everything = torch.ones_like(batch.source_mask)
    unmasked = real_logits(model, batch, input_ids=garbled, attention_mask=everything)
    evidence.matters("opening the mask", unmasked, expected)
    seen = torch.where(batch.source_mask.bool(), torch.tensor([pair.source for pair in hidden]), batch.source)
    evidence.matters("another source", real_logits(model, batch, input_ids=seen), expected)
