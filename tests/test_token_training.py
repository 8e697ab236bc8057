"""DragomanTrainer with tokens_per_batch and packing: the batches, the loss, the counts, resuming, two processes."""

import copy
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    HfArgumentParser,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from dragoman import (
    DragomanConfig,
    DragomanForConditionalGeneration,
    DragomanForSequenceClassification,
    DragomanTokenizer,
    DragomanTrainer,
    DragomanTrainingArguments,
    TokenBudgetBatchSampler,
)
from support import ROOT, build, tiny

BUDGET = 120
COMMON: dict[str, Any] = {
    "tokens_per_batch": BUDGET,
    "learning_rate": 3e-3,
    "num_train_epochs": 2,
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "save_strategy": "no",
    "use_cpu": True,
}


def tokenizer() -> DragomanTokenizer:
    return DragomanTokenizer.train(["abcdefghijklmnop"], algorithm="char", byte_fallback=False, vocab_size=40)


def rows(count: int = 60, longest: int = 20) -> list[dict[str, list[int]]]:
    """Every source is another; lengths on both sides are uneven."""
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> list[int]:
        return torch.randint(5, 12, (length,), generator=generator).tolist()

    sizes = torch.randint(3, longest, (count, 2), generator=generator).tolist()
    return [{"input_ids": [5 + i // 7, *ids(s)], "labels": [*ids(t), 1]} for i, (s, t) in enumerate(sizes)]


class Recording(DragomanTrainer):
    """Keeps what every training step was given."""

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        self.__dict__.setdefault("seen", []).append(copy.deepcopy(inputs))
        return super().training_step(model, inputs, num_items_in_batch)


def trainer(folder: Path | str, dropout: float = 0.0, trainer_class: Any = Recording, **arguments: Any) -> Any:
    words = tokenizer()
    model = build(DragomanConfig.from_tokenizer(words, preset=tiny(dropout=dropout, vocab_size=len(words))))
    arguments = {**COMMON, **arguments}
    data, collator = arguments.pop("data", None) or rows(), arguments.pop("collator", None)
    args_class = DragomanTrainingArguments if arguments["tokens_per_batch"] else Seq2SeqTrainingArguments
    if args_class is Seq2SeqTrainingArguments:
        del arguments["tokens_per_batch"]
    return trainer_class(
        model=model,
        args=args_class(output_dir=str(folder), **arguments),
        data_collator=collator or DataCollatorForSeq2Seq(words, model=model),
        train_dataset=data,
        eval_dataset=rows(9),
        processing_class=words,
    )


def logged(run: Seq2SeqTrainer, name: str) -> list[float]:
    return [entry[name] for entry in run.state.log_history if name in entry]


def sampler(data: list[dict[str, list[int]]], epoch: int = 0, **arguments: Any) -> TokenBudgetBatchSampler:
    lengths = ([len(row[name]) for row in data] for name in ("input_ids", "labels"))
    made = TokenBudgetBatchSampler(*lengths, BUDGET, **{"seed": 42, **arguments})  # a Trainer's default seed
    made.set_epoch(epoch)
    return made


def sources(batch: dict[str, Tensor]) -> list[list[int]]:
    """Of a padded batch, without its padding."""
    return [row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]


def likelihood(model: DragomanForConditionalGeneration, data: list[dict[str, list[int]]]) -> tuple[float, int]:
    """Summed −log p and tokens, one row at a time."""
    tokens = [len(row["labels"]) for row in data]
    losses = [model(**{name: torch.tensor([ids]) for name, ids in row.items()}).loss.item() for row in data]
    return sum(n * loss for n, loss in zip(tokens, losses, strict=True)), sum(tokens)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_batches_steps_and_loss_are_those_of_the_sampler(accumulation: int, tmp_path: Path) -> None:
    """The loss of a step is Σ −log p / tokens of all that it accumulates; the model stays as it is."""
    data = rows()
    run = trainer(tmp_path, learning_rate=0.0, gradient_accumulation_steps=accumulation)
    run.train()
    epochs = [list(sampler(data, epoch)) for epoch in range(2)]
    expected = [[data[i]["input_ids"] for i in batch] for batch in itertools.chain(*epochs)]
    assert [sources(batch) for batch in run.seen] == expected
    assert all(batch["input_ids"].numel() + batch["labels"].numel() <= BUDGET for batch in run.seen)
    losses = []
    for epoch in epochs:
        for start in range(0, len(epoch), accumulation):
            examples = [data[i] for i in itertools.chain(*epoch[start : start + accumulation])]
            total, tokens = likelihood(run.model, examples)
            losses.append(total / tokens)
    assert run.state.global_step == run.state.max_steps == len(losses)
    torch.testing.assert_close(logged(run, "loss")[: len(losses)], losses, rtol=2e-4, atol=0)  # logged to four digits
    rate = run.state.log_history[-1]["train_samples_per_second"] * run.state.log_history[-1]["train_runtime"]
    assert rate == pytest.approx(120, rel=1e-3)  # 60 examples, two epochs


def test_a_schedule_of_steps_ends_with_them(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=7, num_train_epochs=1, lr_scheduler_type="linear")
    run.train()
    torch.testing.assert_close(logged(run, "learning_rate"), [3e-3 * (7 - i) / 7 for i in range(7)])
    last = run.state.log_history[-1]
    mean = round(60 / len(sampler(rows())))
    assert last["train_samples_per_second"] * last["train_runtime"] == pytest.approx(7 * mean, rel=0.01)
    assert run.get_total_train_batch_size(run.args) == mean


def test_tokens_of_both_sides_are_counted(tmp_path: Path) -> None:
    data = rows()
    real = sum(len(row["input_ids"]) + len(row["labels"]) for row in data)
    run = trainer(tmp_path, num_train_epochs=1, include_num_input_tokens_seen="non_padding")
    run.train()
    assert run.state.num_input_tokens_seen == real
    run = trainer(tmp_path, num_train_epochs=1, include_num_input_tokens_seen="all")
    run.train()
    padded = sum(batch["input_ids"].numel() + batch["labels"].numel() for batch in run.seen)
    assert run.state.num_input_tokens_seen == padded > real
    assert logged(run, "num_input_tokens_seen")[-1] == padded


def test_classes_are_no_tokens(tmp_path: Path) -> None:
    words = tokenizer()
    config = DragomanConfig.from_tokenizer(words, preset=tiny(vocab_size=len(words), num_labels=2))
    data = [{"input_ids": row["input_ids"], "labels": i % 2} for i, row in enumerate(rows(12))]
    arguments = {**COMMON, "tokens_per_batch": None, "num_train_epochs": 1, "per_device_train_batch_size": 4}
    run = DragomanTrainer(
        model=DragomanForSequenceClassification(config),
        args=DragomanTrainingArguments(tmp_path, include_num_input_tokens_seen="non_padding", **arguments),
        data_collator=DataCollatorWithPadding(words),
        train_dataset=data,
        processing_class=words,
    )
    run.train()
    assert run.state.num_input_tokens_seen == sum(len(row["input_ids"]) for row in data)


GROUPED: dict[str, Any] = {
    "tokens_per_batch": None,
    "per_device_train_batch_size": 4,
    "train_sampling_strategy": "group_by_length",
}


@pytest.mark.parametrize("how", [{}, {"packing": True}, GROUPED], ids=["padded", "packed", "grouped by length"])
def test_resuming_within_an_epoch_gives_the_same_batches(how: dict[str, Any], tmp_path: Path) -> None:
    saving = {"dropout": 0.1, **how, "save_strategy": "steps", "save_steps": 5, "num_train_epochs": 3}
    whole = trainer(tmp_path / "whole", **saving)
    whole.train()
    epoch = len(whole.seen) // 3
    stop = (epoch + 8) // 5 * 5  # in the second one
    assert epoch < stop < 2 * epoch
    stopped = trainer(tmp_path / "stopped", **saving)
    stopped.add_callback(StopAt(stop))
    stopped.train()
    torch.manual_seed(123)
    resumed = trainer(tmp_path / "stopped", **saving)
    resumed.train(resume_from_checkpoint=True)
    assert len(resumed.seen) == len(whole.seen) - stop
    for found, expected in zip(resumed.seen, whole.seen[stop:], strict=True):
        torch.testing.assert_close(found, expected)
    for (name, found), (_, expected) in zip(
        resumed.model.named_parameters(), whole.model.named_parameters(), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, msg=name)


def test_groups_of_like_lengths_are_drawn_anew_every_epoch_and_evaluation_keeps_its_order(tmp_path: Path) -> None:
    data = rows()
    run = trainer(tmp_path, **GROUPED, data_seed=7)
    run.train()
    expected = []
    for epoch in range(2):
        drawn = torch.Generator().manual_seed(7 + epoch)
        lengths = [len(row["input_ids"]) for row in data]
        expected += [data[i]["input_ids"] for i in LengthGroupedSampler(4, lengths=lengths, generator=drawn)]
    assert [row for batch in run.seen for row in sources(batch)] == expected
    assert sorted(expected[:60]) == sorted(expected[60:]) == sorted(row["input_ids"] for row in data)
    assert expected[:60] != expected[60:]
    labels = run.predict(data).label_ids
    assert [[token for token in row if token != -100] for row in labels.tolist()] == [row["labels"] for row in data]


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def test_evaluation_and_prediction_keep_rows_and_order(tmp_path: Path) -> None:
    """The same as without a budget; predictions belong to the rows they stand at."""
    found = []
    for budget in (BUDGET, None):
        run = trainer(tmp_path, tokens_per_batch=budget, per_device_eval_batch_size=4, predict_with_generate=True)
        run.model.generation_config.max_length = 9
        found.append((run.evaluate()["eval_loss"], run.predict(rows(9)).predictions.tolist()))
    assert found[0] == found[1]
    for row, predicted in zip(rows(9), found[0][1], strict=True):
        alone = run.model.generate(torch.tensor([row["input_ids"]]), max_length=9)[0].tolist()
        assert predicted[: len(alone)] == alone
    total, tokens = likelihood(run.model, rows(9))
    assert found[0][0] == pytest.approx(total / tokens, rel=1e-6)


def test_every_sequence_of_a_row_is_predicted(tmp_path: Path) -> None:
    """Also of the last batch, which is not full."""
    run = trainer(tmp_path, per_device_eval_batch_size=4, predict_with_generate=True)
    assert len(run.predict(rows(9), max_length=9, num_beams=2, num_return_sequences=2).predictions) == 18


def test_a_collator_that_pads_to_a_fixed_length_does_not_go_with_a_budget(tmp_path: Path) -> None:
    collator = DataCollatorForSeq2Seq(tokenizer(), padding="max_length", max_length=32)
    with pytest.raises(
        ValueError, match=r"every row to max_length=32, whatever tokens_per_batch=120 .* padding at True"
    ):
        trainer(tmp_path, collator=collator).get_train_dataloader()
    assert trainer(tmp_path, collator=collator, packing=True).get_train_dataloader()


def test_data_sets_and_collators(tmp_path: Path) -> None:
    """A datasets.Dataset with more columns, a collator that rounds lengths up, workers, a seed for the data alone."""
    data = Dataset.from_list([{**row, "text": "a"} for row in rows()])
    words = tokenizer()
    collator = DataCollatorForSeq2Seq(words, pad_to_multiple_of=8)
    run = trainer(tmp_path, data=data, collator=collator, num_train_epochs=1, dataloader_num_workers=1, data_seed=7)
    run.train()
    assert all(batch["input_ids"].shape[1] % 8 == 0 for batch in run.seen)
    assert all(batch["input_ids"].numel() + batch["labels"].numel() <= BUDGET for batch in run.seen)
    expected = [[rows()[i]["input_ids"] for i in batch] for batch in sampler(rows(), seed=7, pad_to_multiple_of=8)]
    assert [sources(batch) for batch in run.seen] == expected
    with pytest.raises(ValueError, match=r"IterableDataset gives examples only one after another"):
        trainer(tmp_path, data=data.to_iterable_dataset(), max_steps=3).train()


def test_several_devices_in_one_process_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(tmp_path)
    monkeypatch.setattr(type(run.args), "n_gpu", 2)
    with pytest.raises(ValueError, match="is for one device, and here one process has 2: start a process for each"):
        run.get_train_dataloader()


def test_arguments_and_trainers_go_with_the_stock_ones(tmp_path: Path) -> None:
    """Ours in the stock trainer, whose batches are of rows; the stock ones in ours; the same steps."""
    seen = []
    for trainer_class, budget in ((Seq2SeqTrainer, BUDGET), (DragomanTrainer, None), (Seq2SeqTrainer, None)):
        run = trainer(tmp_path, trainer_class=trainer_class, tokens_per_batch=budget, max_steps=4)
        run.train()
        seen.append((logged(run, "loss"), run.get_total_train_batch_size(run.args)))
    assert seen[0] == seen[1] == seen[2]


def test_arguments_are_parsed_and_kept(tmp_path: Path) -> None:
    parser = HfArgumentParser(DragomanTrainingArguments)
    (args,) = parser.parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--tokens_per_batch", "4096", "--packing"]
    )
    assert (args.tokens_per_batch, args.packing) == (4096, True)
    assert json.loads(args.to_json_string())["tokens_per_batch"] == 4096
    path = tmp_path / "arguments.json"
    path.write_text(json.dumps({"output_dir": str(tmp_path), "tokens_per_batch": 99, "use_cpu": True}))
    (again,) = parser.parse_json_file(str(path))
    assert (again.tokens_per_batch, again.packing) == (99, False)
    (plain,) = parser.parse_args_into_dataclasses(["--output_dir", str(tmp_path)])
    assert plain.to_dict()["tokens_per_batch"] is None


BAD: list[tuple[dict[str, Any], str]] = [
    ({"tokens_per_batch": 0}, "tokens_per_batch=0 must be a whole number above 0, such as 4096, or None"),
    ({"tokens_per_batch": 4096.0}, "tokens_per_batch=4096.0 must be a whole number"),
    ({"packing": True}, "packing=True needs tokens_per_batch: say how many tokens to pack"),
    ({"tokens_per_batch": 9, "train_sampling_strategy": "group_by_length"}, "'group_by_length' does not go with it"),
    (
        {"tokens_per_batch": 9, "auto_find_batch_size": True},
        "auto_find_batch_size=True does not go .* leave it at False",
    ),
    ({"tokens_per_batch": 9, "accelerator_config": {"split_batches": True}}, "split_batches=True does not go with it"),
    ({"max_minutes": 0}, r"max_minutes=0 must be above 0, or None"),
    (
        {"max_minutes": 1, "save_strategy": "best", "metric_for_best_model": "x"},
        "save_strategy='best' would keep the best",
    ),
    ({"max_minutes": 1, "save_total_limit": 1, "metric_for_best_model": "x"}, "save_total_limit=1 would keep the best"),
    (
        {"max_minutes": 1, "save_only_model": True},
        "save_only_model=True would leave the optimizer and the schedule out",
    ),
    ({"schedule_by_clock": True}, "schedule_by_clock=True needs max_minutes: say how long to train"),
    ({"tokens_per_batch": 9, "accelerator_config": {"dispatch_batches": True}}, "dispatch_batches=True does not go"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=lambda value: value[:9] if isinstance(value, str) else "")
def test_bad_arguments(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        DragomanTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **arguments)


def test_the_card_tells_the_budget(tmp_path: Path) -> None:
    run = trainer(tmp_path, num_train_epochs=1)
    run.train()
    run.save_model()
    run.create_model_card()
    card = (tmp_path / "README.md").read_text("utf-8")
    assert f"- tokens_per_batch: {BUDGET}\n" in card
    assert "train_batch_size" not in card


def test_an_evaluation_leaves_the_generation_settings_alone(tmp_path: Path) -> None:
    """The stock trainer fills in transformers' defaults, which would be saved: max_length=20."""
    run = trainer(tmp_path, predict_with_generate=True, generation_max_length=30)
    run.compute_metrics = lambda prediction: {"width": prediction.predictions.shape[1]}
    before = run.model.generation_config.to_dict()
    assert run.evaluate()["eval_width"] == 30
    assert run.model.generation_config.to_dict() == before
    assert run.model.generation_config.max_length is None


def test_an_example_that_cannot_be_packed_is_named_before_training(tmp_path: Path) -> None:
    data = rows()
    data[7]["labels"] = [-100, -100]
    data[9] = {**data[9], "attention_mask": [0] * len(data[9]["input_ids"])}
    run = trainer(tmp_path, packing=True, data=data)
    with pytest.raises(
        ValueError, match=r"2 of 60 examples have no source or no target .* number 7\), and cannot be packed"
    ):
        run.train()
    trainer(tmp_path, data=data).get_train_dataloader()  # padded they are no trouble


def test_packing_gives_the_collator_whole_examples_within_the_budget(tmp_path: Path) -> None:
    data = rows()
    loader = trainer(tmp_path, packing=True).get_train_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader) == len(sampler(data, packed=True)) < len(sampler(data))
    for batch, indices in zip(batches, sampler(data, packed=True), strict=True):
        own = sorted(indices, key=lambda i: (len(data[i]["input_ids"]), len(data[i]["labels"])))
        assert batch["input_ids"].tolist() == [list(itertools.chain(*(data[i]["input_ids"] for i in own)))]
        assert batch["labels"].tolist() == [list(itertools.chain(*(data[i]["labels"] for i in own)))]
        assert batch["input_ids"].numel() + batch["labels"].numel() <= BUDGET


@pytest.mark.parametrize("accumulation", [1, 3])
def test_packed_training_has_the_loss_of_its_rows(accumulation: int, tmp_path: Path) -> None:
    data = rows()
    run = trainer(
        tmp_path, packing=True, learning_rate=0.0, num_train_epochs=1, gradient_accumulation_steps=accumulation
    )
    run.train()
    batches, losses = list(sampler(data, packed=True)), []
    for start in range(0, len(batches), accumulation):
        total, tokens = likelihood(
            run.model, [data[i] for i in itertools.chain(*batches[start : start + accumulation])]
        )
        losses.append(total / tokens)
    torch.testing.assert_close(logged(run, "loss")[: len(losses)], losses, rtol=2e-4, atol=0)
    assert run.evaluate()["eval_loss"] == pytest.approx(
        likelihood(run.model, rows(9))[0] / likelihood(run.model, rows(9))[1]
    )


DISTRIBUTED = """
import json, sys
import dragoman.wall_clock
sys.path[:0] = [sys.argv[1]]
from test_token_training import *
folder = Path(sys.argv[2])
saving = dict(save_strategy="steps", save_steps=3, num_train_epochs=3, learning_rate=0.0, lr_scheduler_type="constant")
whole = trainer(folder / "whole", **saving)
whole.train()
epoch = len(whole.seen) // 3
stop = (epoch + 4) // 3 * 3
assert epoch < stop < 2 * epoch, (epoch, stop)
stopped = trainer(folder / "stopped", **saving)
stopped.add_callback(StopAt(stop))
stopped.train()
resumed = trainer(folder / "stopped", **saving)
resumed.train(resume_from_checkpoint=True)
found = {"batches": [sources(batch) for batch in whole.seen], "stop": stop, "steps": whole.state.global_step,
         "resumed": [sources(batch) for batch in resumed.seen], "losses": logged(whole, "loss"),
         "world": whole.args.world_size}
saving |= GROUPED
grouped = trainer(folder / "grouped", **saving)
grouped.train()
stopped = trainer(folder / "grouped-stopped", **saving)
stopped.add_callback(StopAt(12))
stopped.train()
torch.manual_seed(123)
resumed = trainer(folder / "grouped-stopped", **saving)
resumed.train(resume_from_checkpoint=True)
found |= {"grouped": [sources(batch) for batch in grouped.seen],
          "grouped_resumed": [sources(batch) for batch in resumed.seen]}
rank = whole.args.process_index
seconds = itertools.count(0, 1 + rank / 2)  # clocks are looked at at different times
dragoman.wall_clock.time = SimpleNamespace(monotonic=lambda: next(seconds))
clock = dict(max_minutes=1 / 3, schedule_by_clock=True, max_steps=1000, lr_scheduler_type="linear")
timed = trainer(folder / "timed", **clock)
timed.train()
found |= {"rates": logged(timed, "learning_rate"), "timed": timed.model.get_output_embeddings().weight.sum(1).tolist()}
(folder / f"{whole.args.process_index}.json").write_text(json.dumps(found))
whole.accelerator.wait_for_everyone()
"""


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """Over gloo: as many steps, every example once an epoch, a loss by the tokens of both, and resuming in an epoch."""
    program = tmp_path / "distributed.py"
    program.write_text(DISTRIBUTED)
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines=1", "--mixed_precision=no"]
    launcher += ["--dynamo_backend=no", "--num_processes=2", "--num_cpu_threads_per_process=1", "--main_process_port=0"]
    command = [sys.executable, *launcher, str(program), str(Path(__file__).parent), str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert printed.returncode == 0, printed.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    data = rows()
    epochs = [list(sampler(data, epoch, num_processes=2)) for epoch in range(3)]
    for number, rank in enumerate(ranks):
        assert rank["world"] == 2
        assert rank["steps"] == len(rank["batches"]) == sum(map(len, epochs)) // 2
        expected = [[data[i]["input_ids"] for i in batch] for epoch in epochs for batch in epoch[number::2]]
        assert rank["batches"] == expected
        assert rank["resumed"] == expected[rank["stop"] :]
        assert len(rank["grouped"]) == 24
        assert rank["grouped_resumed"] == rank["grouped"][12:]
    for epoch in epochs:
        assert sorted(itertools.chain(*epoch)) == list(range(60))
    assert len(ranks[0]["rates"]) == 14  # as many as fit by the clock that is ahead
    assert ranks[0]["rates"] == ranks[1]["rates"]
    assert ranks[0]["timed"] == ranks[1]["timed"]  # gradients are shared, and so must rates be
    model = trainer(tmp_path).model
    losses = []
    for epoch in epochs:
        for step in range(0, len(epoch), 2):
            total, tokens = likelihood(model, [data[i] for i in epoch[step] + epoch[step + 1]])
            losses.append(total / tokens)
    torch.testing.assert_close(ranks[0]["losses"][: len(losses)], losses, rtol=2e-4, atol=0)


def test_the_document_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/training.md, from top to bottom, in one process."""
    monkeypatch.chdir(tmp_path)
    for name in ("BACKEND", "MODE", "USE_DYNAMIC"):  # set by arguments that ask to compile; undone after the test
        monkeypatch.setenv(f"ACCELERATE_DYNAMO_{name}", "")
        monkeypatch.delenv(f"ACCELERATE_DYNAMO_{name}")
    words = tokenizer()
    names: dict[str, Any] = {
        "model": build(DragomanConfig.from_tokenizer(words, preset=tiny())),
        "tokenizer": words,
        "train": rows(),
        "valid": rows(9),
        "texts": ["one two", "three"],
    }
    build(DragomanConfig.from_tokenizer(words, preset=tiny(hidden_size=48))).save_pretrained("a-larger-model")
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "training.md").read_text("utf-8"), re.DOTALL)
    assert len(snippets) == 12
    for snippet in snippets:
        if "average_checkpoints(" in snippet:
            assert names["args"].max_minutes == 50
            assert names["trainer"].state.global_step == 10
            saved = trainer("my-model", save_strategy="steps", save_steps=1, max_steps=3)
            saved.train()
        exec(compile(snippet, "training.md", "exec"), names)
    assert Path("my-average", "model.safetensors").is_file()
    names["trainer"].train()
    assert names["compiling"].torch_compile
    assert os.environ["ACCELERATE_DYNAMO_USE_DYNAMIC"] == "true"
    assert names["ids"].shape == (2, 61)
    assert names["multilingual"](["a dog"], target_language="fr").tokens()[0] == "<2fr>"
    assert names["letters_to_phonemes"]("dx").tokens()[1] == "<unk>"
    assert names["stock"].optimizer is names["optimizer"]
    assert names["student"].teachers.models[0].config.hidden_size == 48
    assert names["epoch"] == 2
    assert names["loss"].item() > 0
    assert len(list(names["skip_first_batches"](names["loader"], len(names["loader"])))) == 0


def test_sittings_by_the_clock_add_up_to_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches, learning rates and weights; no checkpoint was asked for but those of the clock."""
    options = {"dropout": 0.1, "lr_scheduler_type": "cosine", "num_train_epochs": 2}
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    assert not list((tmp_path / "whole").glob("checkpoint-*"))
    seconds = itertools.count()  # every look at the clock finds it a second later
    monkeypatch.setattr("dragoman.wall_clock.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    seen: list[Any] = []
    rates: list[float] = []
    steps = 0
    while steps < whole.state.max_steps:
        torch.manual_seed(123)
        sitting = trainer(tmp_path / "sittings", max_minutes=13 / 60, **options)
        sitting.train(resume_from_checkpoint=steps > 0)
        assert sitting.state.global_step == min(steps + 13, whole.state.max_steps)
        steps = sitting.state.global_step
        seen += sitting.seen
        rates = logged(sitting, "learning_rate")
    assert len(whole.seen) // 2 > 13  # it stops within an epoch
    assert rates == logged(whole, "learning_rate")
    for found, expected in zip(seen, whole.seen, strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(sitting.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)


def test_epochs_end_once_however_often_they_are_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens at the end of an epoch draws random numbers, and counts for the best checkpoint."""
    epochs = {"eval_strategy": "epoch", "save_strategy": "epoch", "dropout": 0.1, "num_train_epochs": 2}
    whole = trainer(tmp_path / "whole", **epochs)
    whole.train()
    seconds = itertools.count()
    monkeypatch.setattr("dragoman.wall_clock.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    steps = 0
    while steps < whole.state.max_steps:
        torch.manual_seed(123)
        sitting = trainer(tmp_path / "sittings", max_minutes=13 / 60, **epochs)
        sitting.train(resume_from_checkpoint=steps > 0)
        steps = sitting.state.global_step
    assert len(logged(sitting, "eval_loss")) == 2
    torch.testing.assert_close(logged(sitting, "eval_loss"), logged(whole, "eval_loss"))
    torch.testing.assert_close(sitting.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("saving", ["no", "steps"])
def test_a_sitting_that_ends_with_an_epoch_has_its_evaluation(
    saving: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes after the clock's checkpoint; and draws random numbers."""
    epochs = {"eval_strategy": "epoch", "save_strategy": saving, "save_steps": 7, "dropout": 0.1, "num_train_epochs": 3}
    whole = trainer(tmp_path / "whole", **epochs)
    whole.train()
    seconds = itertools.count()
    monkeypatch.setattr("dragoman.wall_clock.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    for epoch in range(3):
        torch.manual_seed(123)
        sitting = trainer(tmp_path / "sittings", max_minutes=whole.state.max_steps / 3 / 60, **epochs)
        sitting.train(resume_from_checkpoint=epoch > 0)
        assert sitting.state.epoch == epoch + 1
    assert len(logged(whole, "eval_loss")) == 3
    torch.testing.assert_close(logged(sitting, "eval_loss"), logged(whole, "eval_loss"))
    torch.testing.assert_close(sitting.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)


def test_the_schedule_goes_by_the_clock_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count()
    monkeypatch.setattr("dragoman.wall_clock.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    options = {"max_minutes": 10 / 60, "schedule_by_clock": True, "max_steps": 1000, "lr_scheduler_type": "linear"}
    run = trainer(tmp_path, **options)
    run.train()
    assert run.state.global_step == 10
    torch.testing.assert_close(
        logged(run, "learning_rate"), [3e-3 * (10 - max(0, i - 1)) / 10 for i in range(10)], rtol=0.01, atol=0
    )
    assert not list(tmp_path.glob("checkpoint-*"))
    run = trainer(tmp_path, save_strategy="steps", save_steps=4, **options)
    run.train()
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-8", "checkpoint-10"}
    resumed = trainer(tmp_path, save_strategy="steps", save_steps=4, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.state.global_step == 4 + 10
    rates = logged(resumed, "learning_rate")[5:]
    torch.testing.assert_close([a - b for a, b in itertools.pairwise(rates)], [rates[0] / 10] * 8, rtol=0.02, atol=0)


@pytest.mark.parametrize(("evaluating", "saving"), [("steps", "steps"), ("steps", "best"), ("epoch", "best")])
def test_the_last_weights_by_the_clock_are_evaluated(
    evaluating: str, saving: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As transformers does with the last of its steps; and what is saved as the best is what was measured."""
    seconds = itertools.count()
    monkeypatch.setattr("dragoman.wall_clock.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    every = {"eval_strategy": evaluating, "eval_steps": 4, "save_strategy": saving, "save_steps": 4}
    best = {"metric_for_best_model": "loss", "greater_is_better": saving == "best"}  # the first is, and not the last
    epoch = len(sampler(rows()))
    last = 10 if evaluating == "steps" else epoch + 3
    run = trainer(tmp_path, max_minutes=last / 60, schedule_by_clock=True, max_steps=1000, **best, **every)
    run.train()
    losses = {entry["step"]: entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry}
    assert list(losses) == ([4, 8, 10] if evaluating == "steps" else [epoch, last])
    kept = {int(path.name.rpartition("-")[2]) for path in tmp_path.glob("checkpoint-*")}
    assert list(losses.values()) == sorted(losses.values(), reverse=True)
    assert kept == ({min(losses)} if saving == "best" else {4, 8, 10})
    assert run.state.best_global_step == (min if saving == "best" else max)(losses)
