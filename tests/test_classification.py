"""DragomanForSequenceClassification: poolings against sums by hand, losses against formulas, and transformers around it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    pipeline,
)
from transformers.loss.loss_utils import ForSequenceClassificationLoss

from dragoman import DragomanConfig, DragomanForSequenceClassification, DragomanTokenizer
from support import build, gradients, relative_error, tiny

POOLINGS = ("mean", "first", "last_eos", "attention")
BACKBONES = ("encoder", "encoder_decoder")
LENGTHS = (9, 5, 2, 7)

every_pooling = pytest.mark.parametrize("pooling", POOLINGS)
every_backbone = pytest.mark.parametrize("backbone", BACKBONES)


def classifier(backbone: str = "encoder", pooling: str = "attention", num_labels: int = 3, **overrides: Any) -> Any:
    config = tiny(classifier_backbone=backbone, pooling=pooling, num_labels=num_labels, **overrides)
    return build(config, auto=AutoModelForSequenceClassification)


def texts(seed: int = 1, eos: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(3, 37, (length,), generator=generator) for length in LENGTHS]
    return [torch.cat([row[:-1], torch.tensor([eos])]) for row in rows]


def batch(side: str = "right", extra: int = 0) -> dict[str, Tensor]:
    ids = nn.utils.rnn.pad_sequence(texts(), True, 0, side)
    ids = nn.functional.pad(ids, (extra, extra), value=0)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": torch.tensor([0, 2, 1, 1])}


class TestForward:
    @every_backbone
    @every_pooling
    def test_padding_changes_nothing(self, pooling: str, backbone: str) -> None:
        """Neither logits, loss, weights of the tokens nor gradients, on either side."""
        model = classifier(backbone, pooling).double()
        expected, inputs = model(**batch()), batch()
        before = gradients(model.train(), **inputs)
        for side, extra in (("left", 0), ("right", 2)):
            moved = batch(side, extra)
            found = model(**moved)
            torch.testing.assert_close(found.logits, expected.logits)
            torch.testing.assert_close(found.loss, expected.loss)
            for row in range(4):
                there, here = moved["input_ids"][row] != 0, inputs["input_ids"][row] != 0
                torch.testing.assert_close(found.pooling_weights[row, there], expected.pooling_weights[row, here])
                assert not found.pooling_weights[row, ~there].any()
            after = gradients(model, **moved)
            assert after.keys() == before.keys()
            for name, gradient in before.items():
                torch.testing.assert_close(after[name], gradient, msg=name)
        del inputs["attention_mask"]
        torch.testing.assert_close(model(**inputs).logits, expected.logits)

    @every_backbone
    @every_pooling
    def test_a_text_alone(self, pooling: str, backbone: str) -> None:
        """The sum by hand, over the states of a text without padding or company."""
        model = classifier(backbone, pooling).double()
        outputs = model(**batch())
        assert len({row.argmax().item() for row in outputs.pooling_weights}) > 1 or pooling in ("mean", "first")
        for row, ids in enumerate(texts()):
            arguments = {"decoder_input_ids": torch.cat([torch.tensor([1]), ids[:-1]])[None]}
            states = model.model(ids[None], **(arguments if backbone == "encoder_decoder" else {}))[0][0]  # (S, C)
            pooled = {"mean": states.mean(0), "first": states[0], "last_eos": states[-1]}.get(pooling)
            if pooled is None:
                scores = (states @ model.pooling.query).tolist()
                total = sum(torch.tensor(scores).double().exp())
                weights = [float(torch.tensor(score).double().exp() / total) for score in scores]
                assert max(weights) > 1.3 / len(ids)
                pooled = sum(weight * state for weight, state in zip(weights, states, strict=True))
            expected = model.classifier.weight @ pooled + model.classifier.bias
            torch.testing.assert_close(outputs.logits[row], expected, rtol=1e-6, atol=1e-6)

    def test_attention_begins_as_the_mean(self) -> None:
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(tiny(pooling="attention")).eval()
        weights = model(**{**batch(), "labels": None}).pooling_weights
        torch.testing.assert_close(weights[1], torch.tensor([0.2] * 5 + [0.0] * 4))

    @every_backbone
    def test_what_is_recorded(self, backbone: str) -> None:
        model, inputs = classifier(backbone), batch()
        outputs = model(**inputs, output_attentions=True, output_hidden_states=True)
        torch.testing.assert_close(outputs.logits, model(**inputs).logits)
        found = (
            [outputs.attentions] if backbone == "encoder" else [outputs.encoder_attentions, outputs.cross_attentions]
        )
        for attentions in found:
            assert attentions[0].shape == (4, 4, 9, 9)
        states = outputs.hidden_states if backbone == "encoder" else outputs.decoder_hidden_states
        pooled = (outputs.pooling_weights[..., None] * states[-1]).sum(1)
        torch.testing.assert_close(model.classifier(pooled), outputs.logits)
        model.config.return_dict = False
        assert type(model(**inputs)) is tuple
        torch.testing.assert_close(model(**inputs)[1], outputs.logits)

    def test_embeddings_replace_ids(self) -> None:
        model, inputs = classifier(pooling="last_eos"), batch()
        ids = inputs.pop("input_ids")
        embeds = model.get_input_embeddings()(ids)
        torch.testing.assert_close(model(inputs_embeds=embeds, **inputs).logits, model(ids, **inputs).logits)
        whole = model(inputs_embeds=embeds[:1]).logits  # without padding it needs no mask
        torch.testing.assert_close(whole, model(ids[:1], inputs["attention_mask"][:1]).logits)

    @every_backbone
    def test_checkpointing_changes_nothing(self, backbone: str) -> None:
        model, inputs = classifier(backbone).train(), batch()
        expected = gradients(model, **inputs)
        model.activation_checkpointing_enable()
        for name, gradient in gradients(model, **inputs).items():
            torch.testing.assert_close(gradient, expected[name], msg=name)

    def test_compiled_as_one_graph(self) -> None:
        layers = {"encoder_num_hidden_layers": 1, "decoder_num_hidden_layers": 1}
        model, inputs = classifier("encoder_decoder", **layers).train(), batch()
        expected = gradients(model, **inputs)
        model.zero_grad(set_to_none=True)
        torch.compile(model, backend="aot_eager", fullgraph=True)(**inputs).loss.backward()
        for name, gradient in expected.items():
            assert relative_error(model.get_parameter(name).grad, gradient) < 1e-4, name
        torch.compiler.reset()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, dtype: torch.dtype) -> None:
        """The loss is fp32, and that of the half-precision logits taken in fp32."""
        model, inputs = classifier(), batch()
        expected = model(**inputs).logits
        outputs = model.to(dtype)(**inputs)
        assert outputs.logits.dtype == dtype
        assert outputs.pooling_weights.dtype == outputs.loss.dtype == torch.float32
        assert 0 < relative_error(outputs.logits.float(), expected) < 5e-2
        log_probs = outputs.logits.float().log_softmax(-1)
        torch.testing.assert_close(outputs.loss, -log_probs[range(4), inputs["labels"]].mean())


LABELS = {
    "single_label_classification": torch.tensor([0, 2, 1, 1]),
    "multi_label_classification": torch.tensor([[0.0, 1, 1], [1, 0, 0], [0.25, 0, 1], [0, 0, 0]]),
    "regression": torch.tensor([[0.3, -1, 2], [1, 0, 0], [-2.5, 0.1, 1], [0, 0, 4]]),
}


class TestLoss:
    @pytest.mark.parametrize("kind", LABELS)
    def test_formulas(self, kind: str) -> None:
        """Each label's loss written out, labels of −100 left out, and smoothing in training only."""
        model, inputs, labels = classifier(problem_type=kind, label_smoothing=0.2), batch(), LABELS[kind].clone()
        logits = model(**{**inputs, "labels": None}).logits.double()
        labels[1] = -100
        known = [0, 2, 3]
        if kind == "single_label_classification":
            expected = [-(logits[i].exp()[labels[i]] / logits[i].exp().sum()).log() for i in known]
        elif kind == "regression":
            expected = [(logits[i] - labels[i]) ** 2 for i in known]
        else:
            p = 1 / (1 + (-logits).exp())
            expected = [-(labels[i] * p[i].log() + (1 - labels[i]) * (1 - p[i]).log()) for i in known]
        mean = torch.stack(expected).mean()
        loss = model(**{**inputs, "labels": labels}).loss
        torch.testing.assert_close(loss.double(), mean)
        smoothed = model.train()(**{**inputs, "labels": labels}).loss.double()
        if kind == "single_label_classification":
            mean = 0.8 * mean - 0.2 * logits[known].log_softmax(-1).mean()
        torch.testing.assert_close(smoothed, mean)

    @pytest.mark.parametrize("num_labels", [1, 3])
    def test_the_problem_is_found_as_transformers_finds_it(self, num_labels: int) -> None:
        given = [torch.tensor([0.5, 2, -1, 3])] if num_labels == 1 else [LABELS[kind] for kind in list(LABELS)[:2]]
        for labels in given:
            model, inputs = classifier(num_labels=num_labels), {**batch(), "labels": labels}
            outputs, config = model(**inputs), tiny(num_labels=num_labels)
            torch.testing.assert_close(outputs.loss, ForSequenceClassificationLoss(labels, outputs.logits, config))
            assert model.config.problem_type == config.problem_type

    @every_backbone
    @pytest.mark.parametrize("kind", LABELS)
    def test_micro_batches_add_up(self, kind: str, backbone: str) -> None:
        model, inputs = classifier(backbone, problem_type=kind).double(), {**batch(), "labels": LABELS[kind].clone()}
        inputs["labels"][1, ...] = -100
        whole, loss = gradients(model, **inputs), model(**inputs).loss
        model.zero_grad(set_to_none=True)
        count, total = (inputs["labels"] != -100).sum(), torch.zeros((), dtype=torch.double)
        for part in (slice(0, 1), slice(1, 4)):
            share = model(**{name: value[part] for name, value in inputs.items()}, num_items_in_batch=count).loss
            share.backward()
            total += share.detach()
        torch.testing.assert_close(total, loss)
        for name, gradient in whole.items():
            torch.testing.assert_close(model.get_parameter(name).grad, gradient, msg=name)


class TestClearErrors:
    def test_batches(self) -> None:
        model, inputs = classifier(), batch()
        empty = {**inputs, "attention_mask": inputs["attention_mask"].clone()}
        empty["attention_mask"][2] = 0
        with pytest.raises(ValueError, match="Row 2 of the batch is padding only"):
            model(**empty)
        with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
            model(labels=inputs["labels"])
        with pytest.raises(ValueError, match="got 4 dimensions"):
            model(inputs["input_ids"], torch.ones(4, 1, 9, 9), torch.arange(9).expand(4, 9))
        ends = nn.utils.rnn.pad_sequence(texts(eos=5), True)
        with pytest.raises(ValueError, match="row 0 is id 5, not eos_token_id 2"):
            classifier(pooling="last_eos")(ends)
        both = classifier("encoder_decoder")
        with pytest.raises(ValueError, match="pass input_ids, not inputs_embeds"):
            both(inputs_embeds=torch.zeros(1, 2, 32))

    @pytest.mark.parametrize(
        ("kind", "labels", "error", "message"),
        [
            (None, [0, 3, 1, 1], IndexError, "Label 3 is outside the 3 classes"),
            (None, [0, -1, 1, 1], IndexError, "Label -1 is outside"),
            ("single_label_classification", [0.0, 1, 1, 1], ValueError, "one integer a row"),
            (None, [[0, 1, 1]] * 4, ValueError, "problem_type='multi_label_classification'"),
            ("multi_label_classification", [0, 2, 1, 1], ValueError, r"labels of shape \(4, 3\)"),
            ("regression", [0.0, 2, 1, 1], ValueError, r"labels of shape \(4, 3\)"),
        ],
    )
    def test_labels(self, kind: Any, labels: Any, error: Any, message: str) -> None:
        with pytest.raises(error, match=message):
            classifier(problem_type=kind)(**{**batch(), "labels": torch.tensor(labels)})

    def test_configurations(self) -> None:
        with pytest.raises(Exception, match="pooling"):
            tiny(pooling="max")
        with pytest.raises(Exception, match="needs one vocabulary"):
            tiny(classifier_backbone="encoder_decoder", source_vocab_size=29, share_embeddings=False)
        with pytest.raises(ValueError, match="num_labels of at least 1"):
            DragomanForSequenceClassification(tiny(num_labels=0))


class TestLoading:
    @every_backbone
    def test_from_a_seq2seq_checkpoint(self, backbone: str, tmp_path: Path) -> None:
        """Every weight but the head comes from there, with or without the seq2seq head around the base model."""
        seq2seq = build(tiny(share_embeddings=False))
        for saved in (seq2seq, seq2seq.model):
            saved.save_pretrained(tmp_path)
            model, report = AutoModelForSequenceClassification.from_pretrained(
                tmp_path, num_labels=5, pooling="attention", classifier_backbone=backbone, output_loading_info=True
            )
            assert report["missing_keys"] == {"pooling.query", "classifier.weight", "classifier.bias"}
            assert not report["unexpected_keys"]
            assert model.config.num_labels == 5
            assert model(**batch()).logits.shape == (4, 5)
            for name, parameter in model.model.named_parameters():
                torch.testing.assert_close(parameter, seq2seq.model.get_parameter(name), rtol=0, atol=0)

    def test_a_missing_weight_is_never_drawn(self, tmp_path: Path) -> None:
        build(tiny()).save_pretrained(tmp_path)
        file = tmp_path / "model.safetensors"
        weights = load_file(file)
        del weights["model.encoder.layers.1.self_attn.q_proj.weight"]
        save_file(weights, file, {"format": "pt"})
        with pytest.raises(ValueError, match=r"lacks model.encoder.layers.1.self_attn.q_proj.weight"):
            AutoModelForSequenceClassification.from_pretrained(tmp_path)
        classifier().save_pretrained(tmp_path)
        weights = load_file(file)
        del weights["classifier.weight"]
        save_file(weights, file, {"format": "pt"})
        with pytest.raises(ValueError, match=r"lacks classifier.weight, which DragomanForSequenceClassification owns"):
            AutoModelForSequenceClassification.from_pretrained(tmp_path)
        with pytest.raises(ValueError, match="other shapes than its configuration says"):
            AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=7)

    @every_backbone
    def test_what_a_classifier_gives_other_classes(self, backbone: str, tmp_path: Path) -> None:
        model = classifier(backbone)
        model.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text("utf-8"))
        assert (config["pooling"], config["classifier_backbone"], len(config["id2label"])) == ("attention", backbone, 3)
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        torch.testing.assert_close(again(**batch()).logits, model(**batch()).logits, rtol=0, atol=0)
        encoder = AutoModelForTextEncoding.from_pretrained(tmp_path)
        states = encoder(batch()["input_ids"]).last_hidden_state
        torch.testing.assert_close(states, model.model.encoder(batch()["input_ids"])[0], rtol=0, atol=0)
        _, report = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
        assert any(".decoder." in name for name in report["missing_keys"]) == (backbone == "encoder")
        assert not any(".encoder." in name for name in report["missing_keys"])
        assert type(AutoModel.from_pretrained(tmp_path)).__name__ == "DragomanModel"
        card = (tmp_path / "README.md").read_text("utf-8")
        assert "pipeline_tag: text-classification" in card
        assert "AutoModelForSequenceClassification.from_pretrained" in card

    def test_resizing_and_two_vocabularies(self) -> None:
        model, inputs = classifier(), batch()
        expected = model(**inputs).logits
        model.resize_token_embeddings(40)
        torch.testing.assert_close(model(**inputs).logits, expected)
        assert model.config.vocab_size == 40
        assert model(torch.tensor([[39, 2]])).logits.shape == (1, 3)
        two = classifier(source_vocab_size=29, share_embeddings=False)
        two.resize_source_embeddings(45)
        assert two(torch.tensor([[44, 2]])).logits.shape == (1, 3)
        with pytest.raises(ValueError, match=r"has no decoder: call resize_source_embeddings\(\)"):
            two.resize_target_embeddings(45)

    def test_from_tokenizer_counts_the_labels(self, tokenizer: DragomanTokenizer) -> None:
        for labels in ({"num_labels": 4}, {"id2label": dict(enumerate("abcd"))}):
            config = DragomanConfig.from_tokenizer(tokenizer, preset=tiny(num_labels=3), **labels)
            assert config.num_labels == 4
        assert DragomanConfig.from_tokenizer(tokenizer, preset=tiny(num_labels=3)).num_labels == 3


GOOD, BAD = ["good", "lovely", "fine"], ["bad", "awful", "poor"]


@pytest.fixture(scope="module")
def tokenizer() -> DragomanTokenizer:
    return DragomanTokenizer.train([" ".join([*GOOD, *BAD, "a film and its end"])], vocab_size=300)


def examples(tokenizer: DragomanTokenizer, count: int) -> list[dict[str, Any]]:
    """Texts of uneven lengths, of which one word decides."""
    rows = []
    for i in range(count):
        words = ["a film", "and its end", "a", "film and film"][i % 4].split()
        words.insert(i % (len(words) + 1), (GOOD if i % 2 else BAD)[i % 3])
        rows.append({**tokenizer(" ".join(words)), "label": i % 2})
    return rows


def trainer(tokenizer: DragomanTokenizer, folder: Path, model: Any, **arguments: Any) -> Trainer:
    defaults = {"learning_rate": 3e-3, "logging_steps": 1, "save_strategy": "no", "report_to": "none"}
    defaults |= {"disable_tqdm": True, "dataloader_pin_memory": False, "use_cpu": True}
    return Trainer(
        model,
        TrainingArguments(str(folder), **{**defaults, **arguments}),
        train_dataset=examples(tokenizer, 64),
        eval_dataset=examples(tokenizer, 24),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
    )


class TestTraining:
    def test_stock_trainer_then_pipeline(self, tokenizer: DragomanTokenizer, tmp_path: Path) -> None:
        """Learns which word decides, looks at it, and is loaded by a pipeline."""
        torch.manual_seed(0)
        names = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}, "pooling": "attention"}
        config = DragomanConfig.from_tokenizer(tokenizer, preset=tiny(), **names)
        run = trainer(tokenizer, tmp_path, DragomanForSequenceClassification(config), max_steps=40, learning_rate=1e-2)
        run.train()
        assert run.evaluate()["eval_accuracy"] == 1.0  # predictions are logits, without weights beside them
        run.save_model(str(tmp_path / "model"))
        classify = pipeline("text-classification", model=str(tmp_path / "model"))
        found = classify(["a lovely film and its end", "its awful end"], top_k=None)
        assert [scores[0]["label"] for scores in found] == ["good", "bad"]
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
        encoded = AutoTokenizer.from_pretrained(tmp_path / "model")("its awful end", return_tensors="pt")
        probabilities = model(**encoded).logits.detach().softmax(-1)[0]
        assert found[1][0]["score"] == pytest.approx(float(probabilities[0]), abs=1e-6)

    def test_accumulation_changes_neither_loss_nor_gradient(self, tokenizer: DragomanTokenizer, tmp_path: Path) -> None:
        logged = []
        for size, steps in ((8, 1), (2, 4)):
            torch.manual_seed(0)
            model = DragomanForSequenceClassification(DragomanConfig.from_tokenizer(tokenizer, preset=tiny()))
            options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_steps": 3}
            run = trainer(tokenizer, tmp_path, model, **options)
            run.train()
            logged.append([(entry["loss"], entry["grad_norm"]) for entry in run.state.log_history if "loss" in entry])
        torch.testing.assert_close(torch.tensor(logged[0]), torch.tensor(logged[1]), rtol=2e-3, atol=2e-3)

    @pytest.mark.parametrize(("kind", "labels"), [("multi_label_classification", 3), ("regression", 1)])
    def test_pipelines_of_other_problems(
        self, kind: str, labels: int, tokenizer: DragomanTokenizer, tmp_path: Path
    ) -> None:
        config = DragomanConfig.from_tokenizer(tokenizer, preset=tiny(), num_labels=labels)
        model = build(config, auto=AutoModelForSequenceClassification)
        encoded = tokenizer(["a good film"], return_tensors="pt")
        logits = model(**encoded, labels=torch.ones(1, labels)).logits[0]  # the labels say which problem it is
        model.save_pretrained(tmp_path), tokenizer.save_pretrained(tmp_path)
        scores = pipeline("text-classification", model=str(tmp_path))("a good film", top_k=None)
        expected = logits if kind == "regression" else logits.sigmoid()
        found = {entry["label"]: entry["score"] for entry in scores}
        for index, value in enumerate(expected.tolist()):
            assert found[f"LABEL_{index}"] == pytest.approx(value, abs=1e-6)

    def test_lora(self, tmp_path: Path) -> None:
        """By default the projections of queries and values, and the whole head."""
        peft = pytest.importorskip("peft")
        base, inputs = classifier(pooling="mean"), batch()
        plain = base(**inputs).logits
        torch.manual_seed(0)
        model = peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_CLS", r=4, init_lora_weights=False))
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert sum("lora" in name for name in trained) == 2 * 2 * 3  # A and B, of queries and values, in three layers
        assert sum("classifier.modules_to_save" in name for name in trained) == 2
        assert relative_error(model(**inputs).logits, plain) > 1e-3
        model.train()(**inputs).loss.backward()
        assert all(p.grad is not None and p.grad.any() for name, p in model.named_parameters() if name in trained)
        model.eval().save_pretrained(tmp_path)
        again = peft.PeftModel.from_pretrained(classifier(pooling="mean"), tmp_path)
        torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits)
