"""torch.compile: few graphs, whatever the shapes of the batches, and the numbers of the eager model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from dragoman.modeling import loss as loss_module
from torch import Tensor
from transformers import CompileConfig, DataCollatorForSeq2Seq

from dragoman import (
    DataCollatorForPackedSeq2Seq,
    DragomanConfig,
    DragomanTrainer,
    DragomanTrainingArguments,
    TokenBudgetBatchSampler,
)
from support import SCHEMES, batch, build, gradients, relative_error, tiny
from trainers import rows, word_tokenizer

ONE_LAYER = {"encoder_num_hidden_layers": 1, "decoder_num_hidden_layers": 1}


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    torch.compiler.reset()


def counting() -> tuple[Any, list[Any]]:
    """A backend that runs a graph as it is, and the graphs that it was given."""
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    return backend, graphs


def epoch(packed: bool, model: Any) -> list[dict[str, Any]]:
    """Batches that differ in rows, source and target length; one of a single row."""
    tokenizer = word_tokenizer()
    data = rows(tokenizer, 24)
    data.append({name: ids * 4 for name, ids in data[3].items()})
    lengths = [[len(row[name]) for row in data] for name in ("input_ids", "labels")]
    multiple = 1 if packed else 8
    budget = max(sum(sizes) for sizes in zip(*lengths, strict=True)) + 16
    sampler = TokenBudgetBatchSampler(*lengths, budget, packed=packed, pad_to_multiple_of=multiple)
    collator: Any = DataCollatorForPackedSeq2Seq(model=model)
    if not packed:
        collator = DataCollatorForSeq2Seq(tokenizer, model=model, pad_to_multiple_of=8)
    return [dict(collator([data[i] for i in chosen])) for chosen in sampler]


@pytest.mark.parametrize(("packed", "scheme"), [(True, "relative"), (False, "rotary")])
def test_an_epoch_makes_two_graphs(packed: bool, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most: a padded batch of one row is a case apart. The loss takes its logits in ever other numbers of parts."""
    monkeypatch.setattr(loss_module, "LOGITS_AT_ONCE", 40 * 16)
    model = build(tiny(vocab_size=40, position_encoding=scheme, label_smoothing=0.1, **ONE_LAYER)).train()
    batches = epoch(packed, model)
    assert len({inputs["labels"].shape for inputs in batches}) > (4 if packed else 2)
    expected = [gradients(model, **inputs) for inputs in batches]
    losses = [model(**inputs).loss for inputs in batches]
    if packed:
        model.activation_checkpointing_enable({"use_reentrant": False})
    backend, graphs = counting()
    compiled: Any = torch.compile(model, backend=backend, dynamic=True)
    for inputs, loss, wanted in zip(batches, losses, expected, strict=True):
        model.zero_grad(set_to_none=True)
        found = compiled(**inputs).loss
        found.backward()
        torch.testing.assert_close(found, loss)
        for name, parameter in model.named_parameters():
            assert relative_error(parameter.grad, wanted[name]) < 1e-5, name
    assert len(graphs) <= 2


@pytest.mark.parametrize("scheme", SCHEMES)
def test_exported_for_any_number_of_rows(scheme: str) -> None:
    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = build(tiny(vocab_size=40, position_encoding=scheme, **ONE_LAYER))

        def forward(self, source: Tensor, mask: Tensor, target: Tensor) -> Tensor:
            logits: Tensor = self.model(source, mask, target, use_cache=False).logits
            return logits

    def inputs(rows: int) -> tuple[Tensor, Tensor, Tensor]:
        mask = torch.ones(rows, 6, dtype=torch.long)
        mask[0, 4:] = 0
        return torch.randint(4, 40, (rows, 6)), mask, torch.randint(4, 40, (rows, 5))

    module, rows = Logits().eval(), torch.export.Dim("rows", min=2, max=64)
    program = torch.export.export(module, inputs(4), dynamic_shapes=({0: rows},) * 3, strict=False).module()
    for count in (2, 7):
        given = inputs(count)
        torch.testing.assert_close(program(*given), module(*given))


@pytest.mark.slow
@pytest.mark.parametrize("packed", [True, False])
def test_compiled_by_the_trainer(packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BACKEND", "MODE", "USE_DYNAMIC"):
        monkeypatch.setenv(f"ACCELERATE_DYNAMO_{name}", "")  # undone after the test, whatever the arguments set
        monkeypatch.delenv(f"ACCELERATE_DYNAMO_{name}")
    tokenizer = word_tokenizer()
    losses, data = [], rows(tokenizer, 24)
    for compiled in (False, True):
        torch._dynamo.utils.counters.clear()
        options: dict[str, Any] = {"torch_compile_backend": "eager"} if compiled else {}
        run = DragomanTrainer(
            build(DragomanConfig.from_tokenizer(tokenizer, preset=tiny(**ONE_LAYER))),
            DragomanTrainingArguments(
                str(tmp_path), tokens_per_batch=64, packing=packed, logging_steps=1, num_train_epochs=2,
                save_strategy="no", report_to="none", disable_tqdm=True, dataloader_pin_memory=False, **options,
            ),
            data_collator=DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8),
            train_dataset=data,
            processing_class=tokenizer,
        )  # fmt: skip
        run.train()
        losses.append([entry["loss"] for entry in run.state.log_history if "loss" in entry])
    assert len(losses[0]) > 10
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert 1 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


@pytest.mark.parametrize("scheme", ["rotary", "relative"])
def test_decoding_makes_two_graphs(scheme: str) -> None:
    """Of steps with a static cache, whatever the lengths of sources and targets; and the tokens of a dynamic one."""
    model = build(tiny(position_encoding=scheme, tie_word_embeddings=False, **ONE_LAYER), seed=17).double()
    backend, graphs = counting()
    compiling = CompileConfig(backend=backend, mode=None, fullgraph=True)
    compiling._compile_all_devices = True  # transformers compiles of its own accord on accelerators alone
    for seed, (source, target) in enumerate([(8, 5), (16, 9), (24, 12), (16, 7)]):
        inputs = batch(model.config, seed, ((source, 1), (source - 5, 1), (1, 1)))
        del inputs["labels"]
        options = {"max_new_tokens": target, "do_sample": False, "eos_token_id": None}
        found = model.generate(
            **inputs, **options, cache_implementation="static", max_cache_len=16, compile_config=compiling
        )
        assert torch.equal(found, model.generate(**inputs, **options))
        assert len(found.unique()) > 3  # not one repeated id
    assert 1 <= len(graphs) <= 2
