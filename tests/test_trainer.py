"""Stock tools, unmodified: Seq2SeqTrainer, the collator, accelerate, peft, torch.compile."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    Seq2SeqTrainer,
)

from dragoman import DragomanConfig, DragomanRecurrentConfig, DragomanTokenizer, DragomanTrainer
from support import batch, build, gradients, recurrent, relative_error, tiny
from trainers import likelihood, logged, rows, trainer, word_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> DragomanTokenizer:
    return word_tokenizer()


def test_rows_repeated_to_fill_the_last_batch_do_not_count(
    tokenizer: DragomanTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As processes see it: five rows are left for two batches of four, a third process has none."""
    run = trainer(tokenizer, tmp_path, trainer_class=DragomanTrainer)
    labels = torch.arange(8).reshape(4, 2)
    for at_the_end, remainder, kept in ((True, 5, (4, 1, 0)), (False, 5, (4, 4, 4)), (True, -1, (4, 4, 4))):
        state = SimpleNamespace(end_of_dataloader=at_the_end, remainder=remainder)
        monkeypatch.setattr(run.accelerator, "gradient_state", state)
        for process, rows_kept in enumerate(kept):
            monkeypatch.setattr(type(run.args), "process_index", process)
            monkeypatch.setattr(type(run.args), "world_size", 3)
            found = run._without_repeated_rows(labels)
            assert found.tolist() == labels[:rows_kept].tolist() + [[-100, -100]] * (4 - rows_kept)


def test_one_process_has_no_repeated_rows(
    tokenizer: DragomanTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After training the state is that of its last batch, until accelerate's own evaluation loader begins."""
    run = trainer(
        tokenizer, tmp_path, trainer_class=DragomanTrainer, learning_rate=0.0, num_train_epochs=1, max_steps=-1
    )
    run.train_dataset = rows(tokenizer, 12)  # the last batch of eight has four
    plain = DataLoader(run.eval_dataset, batch_size=8, collate_fn=run.data_collator)
    monkeypatch.setattr(run, "get_eval_dataloader", lambda *_: plain)
    before = run.evaluate()["eval_loss"]
    run.train()
    assert run.evaluate()["eval_loss"] == pytest.approx(before, rel=1e-6)


def test_evaluation_gives_metrics_their_logits(tokenizer: DragomanTokenizer, tmp_path: Path) -> None:
    model = build(DragomanConfig.from_tokenizer(tokenizer, preset=tiny()))
    seen: list[Any] = []

    def metrics(prediction: Any) -> dict[str, float]:
        seen.append(prediction)
        return {"one": 1.0}

    common = {"trainer_class": DragomanTrainer, "per_device_eval_batch_size": 4}
    run = trainer(tokenizer, tmp_path, model, compute_metrics=metrics, **common)
    batch = run.data_collator(rows(tokenizer, 11))
    alone = run.prediction_step(model.eval(), batch, prediction_loss_only=True)  # before any evaluation
    assert alone[0].item() == pytest.approx(likelihood(model, tokenizer), rel=1e-5)
    found = run.evaluate()
    assert found["eval_one"] == 1.0
    assert found["eval_loss"] == pytest.approx(likelihood(model, tokenizer), rel=1e-6)
    row = rows(tokenizer, 11)[2]
    logits = model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).logits[0]
    np.testing.assert_allclose(seen[0].predictions[2, : len(logits)], logits.detach(), rtol=1e-3, atol=1e-4)
    assert run.predict(run.eval_dataset).predictions.shape[::2] == (11, model.config.vocab_size)
    without_labels = [{k: v for k, v in r.items() if k != "labels"} for r in rows(tokenizer, 4)]
    run.args.predict_with_generate = True
    model.generation_config.max_length = 7
    assert run.predict(without_labels).predictions.shape == (4, 7)


class LooksInside(DragomanTrainer):
    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        assert model.config.vocab_size
        outputs = model(**inputs)
        loss = outputs.loss + 0 * outputs.logits.sum()
        return (loss, outputs) if return_outputs else loss


def loss_of_logits(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    return torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())


def loss_by_count(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    total = torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), reduction="sum")
    return total / num_items_in_batch


@pytest.mark.parametrize(
    "own", [{"trainer_class": LooksInside}, *({"compute_loss_func": loss} for loss in (loss_of_logits, loss_by_count))]
)
def test_evaluation_with_a_loss_of_the_users(own: dict[str, Any], tokenizer: DragomanTokenizer, tmp_path: Path) -> None:
    model = build(DragomanConfig.from_tokenizer(tokenizer, preset=tiny()))
    run = trainer(tokenizer, tmp_path, model, **{"trainer_class": DragomanTrainer, **own})
    assert run.evaluate()["eval_loss"] == pytest.approx(likelihood(model.eval(), tokenizer), rel=1e-5)
    assert run.args.average_tokens_across_devices, "for training, as it was"


def test_training_is_the_stock_trainers(tokenizer: DragomanTokenizer, tmp_path: Path) -> None:
    """In any encoder-decoder; also with an evaluation in the middle."""
    bart = BartConfig(vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16)
    bart.update({"decoder_ffn_dim": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2})
    ours = DragomanConfig.from_tokenizer(tokenizer, preset=tiny(dropout=0.1))
    older = DragomanRecurrentConfig.from_tokenizer(tokenizer, preset=recurrent(dropout=0.1))
    for config in (bart, ours, older):
        found = []
        for trainer_class in (Seq2SeqTrainer, DragomanTrainer):
            torch.manual_seed(0)
            model = AutoModelForSeq2SeqLM.from_config(copy.deepcopy(config))  # the Trainer changes it
            evaluating = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 3}
            run = trainer(tokenizer, tmp_path, model, trainer_class=trainer_class, max_steps=5, **evaluating)
            run.train()
            found.append((logged(run, "loss"), logged(run, "grad_norm")))
            assert len(logged(run, "eval_loss")) == 3  # the last step too
        assert found[0] == found[1]


@pytest.mark.parametrize(
    "arguments",
    [{"bf16": True, "use_cpu": True}, {"gradient_checkpointing": True}, {"train_sampling_strategy": "group_by_length"}],
    ids=lambda a: next(iter(a)),
)
def test_other_arguments_train(arguments: dict[str, Any], tokenizer: DragomanTokenizer, tmp_path: Path) -> None:
    run = trainer(tokenizer, tmp_path, max_steps=12, **arguments)
    run.train()
    losses = logged(run, "loss")
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


@pytest.mark.slow
def test_compiled_by_the_trainer(tokenizer: DragomanTokenizer, tmp_path: Path) -> None:
    losses = []
    for compiled in (False, True):
        model = build(DragomanConfig.from_tokenizer(tokenizer, preset=tiny()))
        run = trainer(tokenizer, tmp_path, model, max_steps=3, torch_compile=compiled)
        run.train()
        losses.append(logged(run, "loss"))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("scheme", ["sinusoidal", "learned", "rotary", "alibi", "relative", "none"])
def test_the_training_step_is_one_graph(scheme: str, train: bool) -> None:
    model, inputs = build(tiny(position_encoding=scheme, logits_bias=True)).train(train), batch(tiny())
    expected = gradients(model, **inputs)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    model.zero_grad(set_to_none=True)
    loss = compiled(**inputs).loss
    loss.backward()
    torch.testing.assert_close(loss, model(**inputs).loss)
    for name, parameter in model.named_parameters():
        assert relative_error(parameter.grad, expected[name]) < 1e-4, name
    torch.compiler.reset()


DISTRIBUTED = """
import sys, torch
sys.path[:0] = [sys.argv[1]]
from test_trainer import *
from transformers import BartForSequenceClassification, DataCollatorWithPadding, Seq2SeqTrainingArguments
tokenizer = word_tokenizer()
model = build(DragomanConfig.from_tokenizer(tokenizer, preset=tiny()))
size = 16 // int(sys.argv[3])
run = trainer(tokenizer, sys.argv[2], model, per_device_train_batch_size=size, max_steps=3, use_cpu=True,
              train_sampling_strategy="sequential")
run.train()
exact = trainer(tokenizer, sys.argv[2], model, trainer_class=DragomanTrainer, per_device_eval_batch_size=4,
                use_cpu=True)
evaluated = exact.evaluate()["eval_loss"]
def evaluate(loss):
    own = trainer(tokenizer, sys.argv[2], model, trainer_class=DragomanTrainer, per_device_eval_batch_size=4,
                  use_cpu=True, compute_loss_func=loss)
    return own.evaluate()["eval_loss"]
by_users = [evaluate(loss_by_count), evaluate(loss_of_logits)]
numbers = BartForSequenceClassification(BartConfig(
    vocab_size=40, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1, decoder_attention_heads=1,
    encoder_ffn_dim=8, decoder_ffn_dim=8, num_labels=1, problem_type="regression", pad_token_id=0, bos_token_id=1,
    eos_token_id=2, decoder_start_token_id=2, max_position_embeddings=16))
rated = DragomanTrainer(
    numbers, Seq2SeqTrainingArguments(sys.argv[2], per_device_eval_batch_size=4, use_cpu=True, report_to="none"),
    DataCollatorWithPadding(tokenizer), eval_dataset=[{"input_ids": [5, 6, 2], "labels": i / 11} for i in range(11)])
assert rated.evaluate()["eval_loss"] < 10
exact.args.predict_with_generate = True
labels = exact.predict(rows(tokenizer, 11), max_new_tokens=3).label_ids
real = (labels != -100).sum(1)
two_each = exact.predict(rows(tokenizer, 11), max_new_tokens=3, num_beams=2, num_return_sequences=2).predictions
assert len(two_each) >= 22, len(two_each)
if run.is_world_process_zero():
    print("LOGGED", run.args.world_size, "|", logged(run, "loss"), "|", logged(run, "grad_norm"), "|", [evaluated, *by_users],
          "|", [len(real), int(real.min()), int(real.sum())])
"""


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """``accelerate launch`` with gloo: the same batch split over two processes; each row is predicted once, and none is lost."""
    program = tmp_path / "distributed.py"
    program.write_text(DISTRIBUTED)
    found = {}
    for processes in (1, 2):
        # --multi_gpu is the launcher's name for "several processes by torchrun"; without a GPU they meet over gloo.
        several = ["--multi_gpu"] if processes > 1 else ["--cpu"]
        launcher = ["-m", "accelerate.commands.launch", *several, "--num_machines=1", "--mixed_precision=no"]
        launcher += ["--dynamo_backend=no", f"--num_processes={processes}", "--num_cpu_threads_per_process=1"]
        tests = str(Path(__file__).parent)
        command = [sys.executable, *launcher, str(program), tests, str(tmp_path / str(processes)), str(processes)]
        printed = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert printed.returncode == 0, printed.stderr[-3000:]
        line = next(line for line in printed.stdout.splitlines() if line.startswith("LOGGED"))
        world, *values = map(json.loads, line.removeprefix("LOGGED ").split(" | "))
        assert world == processes
        found[processes] = np.array(values)
    np.testing.assert_allclose(found[2], found[1], rtol=1e-5)


class TestLora:
    def test_default_targets_train_generate_and_merge(self, tmp_path: Path) -> None:
        peft = pytest.importorskip("peft")
        base, inputs = build(tiny()), batch(tiny())
        plain = base(**inputs).logits
        model = peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_2_SEQ_LM", r=4, init_lora_weights=False))
        adapted = [name for name, p in model.named_parameters() if p.requires_grad]
        assert len(adapted) == 2 * 2 * (3 + 2 * 2)  # A and B of queries and values, in every attention
        assert relative_error(model(**inputs).logits, plain) > 1e-3
        model.train()(**inputs).loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        model.eval()
        source = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        ids = model.generate(**source, max_new_tokens=6)
        logits = model(**inputs).logits
        model.save_pretrained(tmp_path)
        again = peft.PeftModel.from_pretrained(build(tiny()), tmp_path)
        torch.testing.assert_close(again(**inputs).logits, logits)
        merged = model.merge_and_unload()
        assert relative_error(merged(**inputs).logits, logits) < 1e-4
        assert merged.generate(**source, max_new_tokens=6).tolist() == ids.tolist()

    def test_token_vectors_keep_their_scale(self) -> None:
        """peft looks rows up itself, and multiplies by what it knows of a scale."""
        peft = pytest.importorskip("peft")
        config = tiny(tie_word_embeddings=False, share_embeddings=False)
        inputs = batch(config)
        plain = build(config)(**inputs).logits
        replaced = peft.LoraConfig(target_modules=["q_proj"], trainable_token_indices=[5, 6])
        torch.testing.assert_close(peft.get_peft_model(build(config), replaced).eval()(**inputs).logits, plain)
        added = peft.LoraConfig(target_modules=["embed_tokens"], r=4, init_lora_weights=False)
        model = peft.get_peft_model(build(config), added).eval()
        logits = model(**inputs).logits
        assert relative_error(logits, plain) > 1e-2
        torch.testing.assert_close(model.merge_and_unload()(**inputs).logits, logits, rtol=1e-4, atol=1e-4)
