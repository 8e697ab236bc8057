"""Line 7: what is loaded is what was saved, to the last bit, and what was one parameter is one still."""

import tempfile
from collections import defaultdict

from torch import nn
from transformers import AutoModelForSeq2SeqLM

from .batches import collate, draw_pairs
from .measuring import real_logits
from .subjects import Subject
from .verdicts import LIMITS, Evidence


def check_saving(subject: Subject, evidence: Evidence) -> None:
    """Saved and loaded, by its class and by the Auto class: the same logits bit for bit, the same ties."""
    model, batch = subject.build(None), collate(subject, draw_pairs(subject))
    expected, ties = real_logits(model, batch), shared_parameters(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for loader in (type(model), AutoModelForSeq2SeqLM):
            loaded = loader.from_pretrained(folder).eval()
            found = real_logits(loaded, batch)
            evidence.compare(f"logits by {loader.__name__}", found, expected, "bits")
            after = shared_parameters(loaded)
            lost = {name for group in ties ^ after for name in group}
            evidence.measured.append(("ties", float(len(lost)), LIMITS["bits"]))
            evidence.require(not lost, f"ties differ after loading: {', '.join(sorted(lost))}")
    changed = subject.build(None)
    with_grad = [p for p in changed.parameters() if p.requires_grad and p.dim() > 1]
    for parameter in with_grad:
        parameter.data *= 0.9
    evidence.matters("other weights", real_logits(changed, batch), expected)


def shared_parameters(model: nn.Module) -> set[frozenset[str]]:
    """Groups of names that mean one and the same storage."""
    groups: dict[int, set[str]] = defaultdict(set)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups[parameter.data_ptr()].add(name)
    return {frozenset(group) for group in groups.values() if len(group) > 1}
