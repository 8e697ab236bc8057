"""The model card: what it says, that ModelCard reads it back, and that nobody's own words are ever lost."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import RemoteEntryNotFoundError, RevisionNotFoundError
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments
from transformers.modelcard import TrainingSummary
from transformers.utils import hub as transformers_hub

from dragoman import (
    DragomanConfig,
    DragomanEncoderModel,
    DragomanForConditionalGeneration,
    DragomanModel,
    DragomanTokenizer,
    DragomanTrainer,
    model_cards,
)
from dragoman.card_facts import weight_facts
from dragoman.model_cards import adopt, is_edited
from dragoman.verification import verify
from support import build, tiny

REPORTS = {"eval_bleu": 31.5, "eval_loss": 2.25, "predict_chrf": 50.25, "eval_runtime": 3.0, "eval_signature": "x"}


@pytest.fixture(scope="module")
def tokenizer() -> DragomanTokenizer:
    return DragomanTokenizer.train(["a dog runs"], ["ein Hund rennt"], vocab_size=300, languages=["de", "Klingon"])


@pytest.fixture(scope="module")
def model(tokenizer: DragomanTokenizer) -> DragomanForConditionalGeneration:
    return build(DragomanConfig.from_tokenizer(tokenizer, preset=tiny()))


def text(folder: Path) -> str:
    return (folder / "README.md").read_text("utf-8")


def data(folder: Path) -> ModelCardData:
    return ModelCard.load(folder / "README.md").data


def change(folder: Path, old: str, new: str) -> str:
    content = text(folder)
    assert old in content
    (folder / "README.md").write_text(content.replace(old, new, 1), "utf-8")
    return text(folder)


def test_what_it_says(model: Any, tokenizer: DragomanTokenizer, tmp_path: Path) -> None:
    """By a full reading of its head, and numbers from the model itself."""
    model.save_pretrained(tmp_path)
    (tmp_path / "all_results.json").write_text(json.dumps(REPORTS))
    state = {"global_step": 70, "epoch": 2.5, "train_batch_size": 16}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    tokenizer.save_pretrained(tmp_path)
    found = data(tmp_path)
    assert found.library_name == "transformers"
    assert found.pipeline_tag == "translation"
    assert found.language == ["de"]  # no other is a code that the Hub would take
    assert found.license is None
    assert found.metrics == ["bleu", "chrf"]
    common = {"task_type": "translation", "dataset_type": "unknown", "dataset_name": "unknown"}
    expected = [("validation", "bleu", 31.5), ("validation", "loss", 2.25), ("test", "chrf", 50.25)]
    assert found.eval_results == [
        EvalResult(**common, dataset_split=split, metric_type=metric, metric_name=metric, metric_value=value)
        for split, metric, value in expected
    ]
    content = text(tmp_path)
    for said in (
        f"{model.num_parameters():,} parameters (F32)",
        "| num hidden layers | 3 + 2 |",
        "| intermediate size | 40 + 48 |",
        f"| vocab size | {tokenizer.target_vocab_size} |",
        "asked for: de, Klingon.",
        "| validation | bleu | 31.5 |",
        "- training_steps: 70",
        "- epochs: 2.5",
        "- train_batch_size: 16",
    ):
        assert said in content
    assert "runtime" not in content
    assert not [finding for finding in verify(tmp_path) if finding.path == "README.md" and finding.problem]


def test_read_back_without_loss(model: Any, tokenizer: DragomanTokenizer, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    (tmp_path / "all_results.json").write_text(json.dumps(REPORTS))
    tokenizer.save_pretrained(tmp_path)
    content = text(tmp_path)
    card = ModelCard(content)
    assert str(card) == content
    again = ModelCardData(**card.data.to_dict())
    assert again.to_dict() == card.data.to_dict()
    assert again.eval_results == card.data.eval_results
    card.save(tmp_path / "README.md")
    assert text(tmp_path) == content
    model.save_pretrained(tmp_path)  # nothing new, nothing changed
    assert text(tmp_path) == content


def test_two_lines_load_it(model: Any, tokenizer: DragomanTokenizer, tmp_path: Path) -> None:
    """Every snippet of cards of every kind runs, with the package and where it cannot be imported."""
    base, encoder = DragomanModel(model.config), DragomanEncoderModel(model.config)
    saved = {"full": (model, tokenizer), "base": (base,), "encoder": (encoder,), "ids": (tokenizer,)}
    for name, parts in saved.items():
        for part in parts:
            part.save_pretrained(tmp_path / name)
    snippets: dict[bool, list[str]] = {True: [], False: []}
    for folder in sorted(tmp_path.iterdir()):
        found = re.findall(r"```python\n(.*?)```", text(folder), re.DOTALL)
        assert len(found) == 2
        for snippet in found:
            assert len(snippet.splitlines()) == 2
            first = saved[folder.name][0]  # another class of ours would load too, with new weights
            loaded = "tokenizer" if first is tokenizer else "model"
            check = f"assert type({loaded}).__name__ == '{type(first).__name__}'\n"
            snippets["import dragoman" in snippet].append(snippet + check)
    absent, there = "import sys\nsys.modules['dragoman'] = None\n", "del sys.modules['dragoman']\n"
    program = "".join([absent, *snippets[False], there, *snippets[True]])
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=120)


def test_a_folder_without_code_names_one_way(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAGOMAN_EXPORT_CODE", "0")
    model.save_pretrained(tmp_path)
    assert "import dragoman" in text(tmp_path)
    assert "trust_remote_code" not in text(tmp_path)


def test_any_order_and_any_part(model: Any, tokenizer: DragomanTokenizer, tmp_path: Path) -> None:
    for name, parts in {"one": (model, tokenizer), "two": (tokenizer, model, model.config, tokenizer)}.items():
        for part in parts:
            part.save_pretrained(tmp_path / name / "same")
    assert text(tmp_path / "one" / "same") == text(tmp_path / "two" / "same")
    model.config.save_pretrained(tmp_path / "config")
    assert not (tmp_path / "config" / "README.md").exists()  # nothing there to load
    assert not list(tmp_path.rglob(".README*"))


def test_a_text_that_was_changed_stays(model: Any, tokenizer: DragomanTokenizer, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    edited = change(tmp_path, "## Sizes", "Trained on my holiday letters.\n\n## Sizes")
    for part in (model, tokenizer, build(tiny())):
        part.save_pretrained(tmp_path)
        assert text(tmp_path) == edited
    for own in (
        "",
        "# Mine\n",
        "---\nlicense: mit\n---\n",
        "---\n[\n---\n",
        "---\ndragoman: text_sha256\n---\nx",
        "\x00",
    ):
        (tmp_path / "README.md").write_text(own, "utf-8")
        model.save_pretrained(tmp_path)
        assert (text(tmp_path) == own) == bool(own)
    (tmp_path / "README.md").unlink()
    model.save_pretrained(tmp_path)
    assert "## Sizes" in text(tmp_path)


def test_a_head_that_was_changed_stays_and_the_rest_is_renewed(
    model: Any, tokenizer: DragomanTokenizer, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    change(tmp_path, "library_name: transformers", "library_name: mine\nlicense: mit\ndatasets:\n- me/letters")
    change(tmp_path, "pipeline_tag: text2text-generation\n", "")
    change(tmp_path, "- dragoman\n", "- dragoman\n- letters\n")
    content = text(tmp_path).replace("\n", "\r\n")
    (tmp_path / "README.md").write_bytes(content.encode("utf-8"))  # as a checkout on Windows
    tokenizer.save_pretrained(tmp_path)
    build(tiny(vocab_size=tokenizer.target_vocab_size, hidden_size=64)).save_pretrained(tmp_path)
    found = data(tmp_path)
    assert (found.library_name, found.license, found.datasets) == ("mine", "mit", ["me/letters"])
    assert found.pipeline_tag is None
    assert found.tags == ["dragoman", "letters", "encoder-decoder"]
    assert found.language == ["de"]
    assert "| hidden size | 64 |" in text(tmp_path)
    assert "\r" not in text(tmp_path)


def test_a_language_that_yaml_takes_for_a_boolean(model: Any, tmp_path: Path) -> None:
    for given, expected in (("[en, no]", ["en", "no"]), ("no", "no")):
        model.save_pretrained(tmp_path)
        change(tmp_path, "library_name", f"language: {given}\nlibrary_name")
        model.save_pretrained(tmp_path)
        assert data(tmp_path).language == expected
        (tmp_path / "README.md").unlink()


@pytest.mark.parametrize("name", ['a"b', "模型 😀"])
def test_code_of_a_folder_with_an_unusual_name(name: str, model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / name)
    (block, *_) = re.findall(r"```python\n(.*?)```", text(tmp_path / name), re.DOTALL)
    calls = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]
    assert [ast.literal_eval(call.args[0]) for call in calls] == [name]
    assert block.isascii() == name.isascii()  # as a person reads it


def test_results_belong_to_the_weights(model: Any, tokenizer: DragomanTokenizer, tmp_path: Path) -> None:
    """Figures of other weights are never taken over; reports that nobody wrote anew tell of the weights before."""
    model.save_pretrained(tmp_path)
    (tmp_path / "all_results.json").write_text(json.dumps(REPORTS))
    tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path, max_shard_size="50KB")  # the same ones
    assert "31.5" in text(tmp_path)
    other = build(model.config, seed=7)
    other.save_pretrained(tmp_path)
    assert "31.5" not in text(tmp_path)
    assert data(tmp_path).eval_results is None
    tokenizer.save_pretrained(tmp_path)
    assert "31.5" not in text(tmp_path)
    (tmp_path / "all_results.json").write_text(json.dumps({"eval_bleu": 12.125}))
    tokenizer.save_pretrained(tmp_path)
    assert "12.125" in text(tmp_path)
    assert "31.5" not in text(tmp_path)
    (tmp_path / "all_results.json").write_text('{"eval_bleu": NaN, "eval_chrf": "high", "eval_ter": true}')
    tokenizer.save_pretrained(tmp_path)
    assert "12.125" in text(tmp_path)  # nothing to say otherwise


class TestReportsInParts:
    """A Trainer measures one split at a time, and leaves what it wrote of the others in all_results.json."""

    @staticmethod
    def save(model: Any, folder: Path, steps: int | None = None, **metrics: float) -> list[tuple[str, str, float]]:
        """Save, then report as Trainer.save_metrics and save_state do; the card's results."""
        model.save_pretrained(folder)
        report = folder / "all_results.json"
        left = json.loads(report.read_text()) if report.exists() else {}
        report.write_text(json.dumps(left | metrics, indent=4, sort_keys=True))
        if steps is not None:
            (folder / "trainer_state.json").write_text(json.dumps({"global_step": steps}))
        model.save_pretrained(folder)
        return [(row.dataset_split, row.metric_type, row.metric_value) for row in data(folder).eval_results or ()]

    def test_results_of_the_training_before_are_not_this_ones(self, model: Any, tmp_path: Path) -> None:
        of_both = {"train_loss": 1.0, "eval_bleu": 30.5, "predict_bleu": 31.5}
        rows = [("validation", "bleu", 30.5), ("test", "bleu", 31.5)]
        assert self.save(model, tmp_path, 100, **of_both) == rows
        other = build(model.config, seed=7)
        assert self.save(other, tmp_path, 50, train_loss=0.5) == []
        assert "- training_steps: 50\n" in text(tmp_path)
        assert self.save(other, tmp_path, eval_bleu=12.25) == [("validation", "bleu", 12.25)]
        # The same figure, measured again.
        again = {"predict_bleu": 31.5, "predict_runtime": 2.0}
        assert self.save(other, tmp_path, **again) == [("validation", "bleu", 12.25), ("test", "bleu", 31.5)]
        assert self.save(build(model.config, seed=8), tmp_path, test_bleu=9.5) == [("test", "bleu", 9.5)]
        assert "training_steps" not in text(tmp_path)

    def test_of_the_same_weights_they_add_up(self, model: Any, tmp_path: Path) -> None:
        self.save(model, tmp_path, predict_bleu=31.5, test_chrf=50.25)
        test = [("test", "bleu", 31.5), ("test", "chrf", 50.25)]
        assert self.save(model, tmp_path, eval_bleu=30.5) == [*test, ("validation", "bleu", 30.5)]

    def test_a_card_that_notes_one_digest_of_all(self, model: Any, tmp_path: Path) -> None:
        """As older ones do. Whether a report was written anew, it cannot tell of other weights."""
        self.save(model, tmp_path, eval_bleu=30.5)
        card = ModelCard.load(tmp_path / "README.md")
        card.data["dragoman"]["training"]["reports"] = "ab" * 32
        card.save(tmp_path / "README.md")
        assert self.save(model, tmp_path) == [("validation", "bleu", 30.5)]
        card.save(tmp_path / "README.md")
        other = build(model.config, seed=7)
        other.save_pretrained(tmp_path)
        assert data(tmp_path).eval_results is None
        assert self.save(other, tmp_path, eval_bleu=12.25) == [("validation", "bleu", 12.25)]


def test_parameters_and_digest(tmp_path: Path) -> None:
    model = build(tiny()).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="50KB")
    one, many = weight_facts(tmp_path / "one"), weight_facts(tmp_path / "many")
    assert one == many
    assert (one["parameters"], one["dtype"]) == (model.num_parameters(), "BF16")
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    model.save_pretrained(tmp_path / "one")
    assert weight_facts(tmp_path / "one")["digest"] != one["digest"]
    other = build(tiny()).to(torch.bfloat16)
    other.resize_token_embeddings(other.config.vocab_size - 3)
    other.save_pretrained(tmp_path / "one")
    assert weight_facts(tmp_path / "one")["digest"] != one["digest"], "a vocabulary was cut behind its first rows"
    (tmp_path / "one" / "model.safetensors").write_bytes(b"broken")
    assert weight_facts(tmp_path / "one") == {}


def run(model: Any, tokenizer: DragomanTokenizer, folder: Path, kind: type[Seq2SeqTrainer], **arguments: Any) -> Any:
    rows = [dict(tokenizer("a dog", text_target="ein Hund", target_language="de"))] * 8
    defaults = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, "logging_steps": 1, "save_strategy": "no"}
    return kind(
        model=model,
        args=Seq2SeqTrainingArguments(
            str(folder), report_to="none", disable_tqdm=True, use_cpu=True, **(defaults | arguments)
        ),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
        compute_metrics=lambda _: {"bleu": 12.0625},
    )


def test_all_that_the_trainer_knows(tokenizer: DragomanTokenizer, tmp_path: Path) -> None:
    """Each line of the stock trainer's card that says something is in ours, and so is its head."""
    model = build(DragomanConfig.from_tokenizer(tokenizer, preset=tiny()))
    trainer = run(model, tokenizer, tmp_path, DragomanTrainer)
    trainer.train()
    trainer.save_model()
    given = {"license": "mit", "language": ["de", "en"], "dataset": "My letters", "dataset_tags": "me/letters"}
    given |= {"dataset_args": "short", "finetuned_from": "me/older", "tags": ["letters"]}
    trainer.create_model_card(**given)
    ours = text(tmp_path)
    stock = TrainingSummary.from_trainer(trainer, **given).to_model_card()
    lines = re.findall(
        r"^- (?!Transformers|Pytorch|Datasets|Tokenizers)\w+: .+$", stock.split("hyperparameters\n")[1], re.M
    )
    assert len(lines) > 6
    assert [line for line in lines if line not in ours] == []
    cells = {cell.strip() for line in stock.splitlines() if line.startswith("| ") for cell in line.split("|")}
    assert {"Validation Loss", "Bleu", "12.0625"} < cells
    assert cells <= {cell.strip() for line in ours.splitlines() if line.startswith("| ") for cell in line.split("|")}
    head, stock_head = data(tmp_path), ModelCard(stock).data
    for name in ("license", "language", "base_model", "datasets"):
        assert getattr(head, name) == getattr(stock_head, name)
    assert {*stock_head.tags, "dragoman"} <= set(head.tags)
    results = {result.metric_type: result for result in head.eval_results}
    assert (results["bleu"].metric_value, results["bleu"].dataset_type) == (12.0625, "me/letters")
    assert (results["bleu"].dataset_name, results["bleu"].dataset_config) == ("My letters", "short")
    assert results["loss"].metric_value == trainer.state.log_history[-2]["eval_loss"]
    trainer.save_model()  # of the same weights: nothing is lost
    assert text(tmp_path) == ours
    assert str(ModelCard(ours)) == ours


def test_what_was_said_of_an_earlier_model_goes(tokenizer: DragomanTokenizer, tmp_path: Path) -> None:
    """All but the licence, which no Trainer finds out; a field that a person put into the head stays too."""
    said = {"license": "mit", "language": "de", "finetuned_from": "me/older", "dataset_tags": "me/letters"}
    said |= {"tags": "letters", "tasks": "summarization"}
    for given in (said, {}):
        model = build(DragomanConfig.from_tokenizer(tokenizer, preset=tiny()), seed=len(given))
        trainer = run(model, tokenizer, tmp_path, DragomanTrainer)
        trainer.save_model()
        trainer.create_model_card(**given)
        if given:
            assert "Fine-tuned from [me/older]" in text(tmp_path)
            assert data(tmp_path).datasets == ["me/letters"]
            change(tmp_path, "library_name", "thumbnail: mine.png\nlibrary_name")
    found = data(tmp_path)
    assert (found.license, found.thumbnail) == ("mit", "mine.png")
    assert (found.base_model, found.datasets, found.language) == (None, None, ["de"])  # that of the tokenizer
    assert found.pipeline_tag == "translation"
    assert "letters" not in found.tags
    assert "Fine-tuned" not in text(tmp_path)
    assert "me/" not in text(tmp_path)


def test_the_trainer_leaves_a_card_of_others(
    model: Any, tokenizer: DragomanTokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = run(model, tokenizer, tmp_path, DragomanTrainer)
    (tmp_path / "README.md").write_text("# Mine\n")
    trainer.create_model_card()
    assert text(tmp_path) == "# Mine\n"
    assert "delete it to have it written anew" in caplog.text
    stock = run(model, tokenizer, tmp_path / "stock", Seq2SeqTrainer)
    stock.save_model()
    stock.create_model_card()  # writes over anything
    written = text(tmp_path / "stock")
    assert "generated_from_trainer" in written
    stock.save_model()
    assert text(tmp_path / "stock") == written


class Hub:
    """A repository as far as a card needs one: its README.md, and what was uploaded last."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.readme = root / "remote" / "README.md"
        self.readme.parent.mkdir()
        self.uploaded: dict[str, str] = {}
        patch.setattr(model_cards, "hf_hub_download", self.download)
        patch.setattr("huggingface_hub.repocard.hf_hub_download", self.download)
        patch.setattr(transformers_hub, "hf_api", lambda: self)
        patch.setattr("transformers.trainer.hf_api", lambda: self)
        patch.setattr("dragoman.modeling.checkpoint_saving.HfApi", lambda **_: self)
        patch.setattr("dragoman.tokenization.code_sharing.HfApi", lambda **_: self)

    def download(self, *_: Any, revision: str | None = None, **__: Any) -> str:
        answer: Any = SimpleNamespace(headers={}, request=None)
        if revision not in (None, "next"):
            raise RevisionNotFoundError("no branch", response=answer)
        file = self.readme if revision is None else self.readme.with_name("next.md")
        if not file.exists():
            raise RemoteEntryNotFoundError("no card", response=answer)
        return str(file)

    def create_repo(self, repo_id: str, **_: Any) -> Any:
        return type("Url", (), {"repo_id": repo_id})

    def create_commit(self, operations: Any, **_: Any) -> None:
        self.take({operation.path_in_repo: Path(operation.path_or_fileobj) for operation in operations})

    def upload_folder(self, folder_path: Path, allow_patterns: Any = ("README.md",), **_: Any) -> None:
        self.take({name: Path(folder_path, name) for name in allow_patterns})

    def take(self, files: dict[str, Path]) -> None:
        self.uploaded = {name: path.read_bytes().decode("utf-8", "replace") for name, path in files.items()}
        self.readme.write_text(self.uploaded["README.md"], "utf-8")


def test_pushing(model: Any, tokenizer: DragomanTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers puts a form of its own over every new repository's card; ours takes its place, and its tags."""
    hub = Hub(tmp_path, monkeypatch)
    model.config.push_to_hub("me/model")
    assert "[More Information Needed]" in hub.uploaded["README.md"]
    model.push_to_hub("me/model", tags=["letters"])
    card = hub.uploaded["README.md"]
    assert 'from_pretrained("me/model", trust_remote_code=True)' in card
    assert "More Information Needed" not in card
    assert ModelCard(card).data.tags == ["dragoman", "encoder-decoder", "letters"]
    tokenizer.push_to_hub("me/model")
    card = hub.uploaded["README.md"]
    assert f"{model.num_parameters():,} parameters" in card  # which the tokenizer's files do not tell
    assert "asked for: de, Klingon." in card
    hub.readme.write_text(card.replace("## Sizes", "My letters.\n\n## Sizes"), "utf-8")
    edited = hub.readme.read_text("utf-8")
    for part in (model, tokenizer, model.config):
        part.push_to_hub("me/model")
        assert ModelCard(hub.uploaded["README.md"]).text == ModelCard(edited).text
    hub.readme.write_text(ModelCard.from_template(ModelCardData(), model_description=model_cards.PUSHED + " x").content)
    model.push_to_hub("me/model")
    assert "More Information Needed" in hub.uploaded["README.md"]  # somebody began to fill it in


def test_saving_and_pushing_at_once(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(tmp_path, monkeypatch)
    folder = tmp_path / "saved"
    (folder / "notes").mkdir(parents=True)
    (folder / "notes.txt").write_text("private")
    model.save_pretrained(folder, push_to_hub=True, repo_id="me/model", variant="fp16", max_shard_size="50KB")
    assert 'from_pretrained("me/model")' in hub.uploaded["README.md"]
    assert {"config.json", "norms.py", "model.safetensors.index.fp16.json"} < hub.uploaded.keys()
    assert "notes.txt" not in hub.uploaded
    (folder / "README.md").write_text("# Mine\n")
    model.save_pretrained(folder, push_to_hub=True, repo_id="me/model")
    assert hub.uploaded["README.md"] == text(folder) == "# Mine\n"
    (folder / "README.md").unlink()
    model.save_pretrained(folder, push_to_hub=True, repo_id="me/model")  # the card on the Hub is a person's
    assert hub.uploaded["README.md"] == text(folder) == "# Mine\n"


def test_a_card_from_the_hub(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub, folder = Hub(tmp_path, monkeypatch), tmp_path / "local"
    adopt(folder, "me/model")
    assert not folder.exists()
    model.save_pretrained(folder)
    hub.readme.write_text(text(folder).replace("parameters", "weights"), "utf-8")
    adopt(folder, "me/model")
    assert is_edited(folder / "README.md")
    (folder / "README.md").write_text("# Mine\n")
    adopt(folder, "me/model")
    assert text(folder) == "# Mine\n"
    hub.readme.with_name("next.md").write_text("# The next\n")
    for revision, expected in (("next", "# The next\n"), ("a new branch", hub.readme.read_text("utf-8"))):
        adopt(tmp_path / str(revision), "me/model", revision=revision)
        assert text(tmp_path / str(revision)) == expected


def test_a_branch_keeps_its_card(
    model: Any, tokenizer: DragomanTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(tmp_path, monkeypatch)
    hub.readme.with_name("next.md").write_text("# The next\n")
    monkeypatch.setattr(hub, "create_branch", lambda *_, **__: None, raising=False)
    for part in (model, tokenizer):
        hub.readme.write_text("# The main\n")
        part.push_to_hub("me/model", revision="next")
        assert "# The next\n" in hub.uploaded["README.md"]


def test_the_trainer_pushes(tokenizer: DragomanTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own card; once a person edited that on the Hub, theirs, from wherever it is pushed."""
    hub = Hub(tmp_path, monkeypatch)
    model = build(DragomanConfig.from_tokenizer(tokenizer, preset=tiny()))
    for folder in ("one", "two"):
        trainer = run(model, tokenizer, tmp_path / folder, DragomanTrainer, hub_model_id="me/model")
        trainer.train()
        trainer.push_to_hub(license="mit")
        if folder == "one":
            card = hub.uploaded["README.md"]
            assert 'from_pretrained("me/model")' in card
            assert ModelCard(card).data.license == "mit"
            assert "12.0625" in card
            hub.readme.write_text("# Mine\n")
    assert hub.uploaded["README.md"] == text(tmp_path / "two") == "# Mine\n"
