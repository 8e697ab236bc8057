"""It learns: copying and reversing reach all but perfection, on sequences never trained on."""

import pytest
import torch
from torch import Tensor

from copy_task import VOCABULARY, exact_match, sequences
from dragoman import DragomanForConditionalGeneration, presets


def reverse(ids: Tensor, lengths: Tensor) -> Tensor:
    columns = torch.arange(ids.shape[1])
    mirrored = torch.where(columns < lengths[:, None], lengths[:, None] - 1 - columns, columns)
    return ids.gather(1, mirrored)


@pytest.mark.parametrize("preset", ["tiny", "transformer_base"])
@pytest.mark.parametrize("task", ["copy", "reverse"])
def test_learns(task: str, preset: str) -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    sizes = {"hidden_size": 64, "encoder_intermediate_size": 128, "decoder_intermediate_size": 128}
    layers = {"encoder_num_hidden_layers": 2, "decoder_num_hidden_layers": 2}
    heads = {"encoder_num_attention_heads": 4, "decoder_num_attention_heads": 4}
    config = presets.PRESETS[preset](vocab_size=VOCABULARY, dropout=0.0, **sizes, **layers, **heads)
    model = DragomanForConditionalGeneration(config).train()
    steps = 500
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for _ in range(steps):
        ids, lengths = sequences(64, generator)
        target = ids if task == "copy" else reverse(ids, lengths)
        model(input_ids=ids, labels=target.masked_fill(target == 0, -100)).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    ids, lengths = sequences(500, generator)
    target = ids if task == "copy" else reverse(ids, lengths)
    exact = exact_match(model, ids, target)
    assert exact >= 0.99, f"{task}: {exact:.1%} exact"
