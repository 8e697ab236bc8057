"""examples/push_to_hub.py and docs/sharing.md: what they show is run."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

import push_to_hub
from dragoman import DragomanConfig, DragomanTokenizer
from dragoman.__main__ import app
from dragoman.verification import verify
from hub_server import TOKEN, Hub
from support import ROOT, build, tiny

DOCUMENT = (ROOT / "docs" / "sharing.md").read_text("utf-8")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a training leaves it."""
    folder = tmp_path_factory.mktemp("runs") / "my-model"
    tokenizer = DragomanTokenizer.train(["a dog"], ["ein Hund"], vocab_size=300)
    model = build(DragomanConfig.from_tokenizer(tokenizer, preset=tiny()))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder / "checkpoint-1")
    torch.save({}, folder / "training_args.bin")
    (folder / "all_results.json").write_text(json.dumps({"eval_bleu": 31.5}))
    return folder


@pytest.fixture
def trained(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "my-model"))


def test_a_dry_run(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    push_to_hub.main([str(trained), "me/model", "--max_shard_size", "50KB"])
    target = trained.with_name("my-model-to-push")
    assert [finding for finding in verify(target) if finding.problem is not None] == []
    names = {path.name for path in target.iterdir()}
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json", "README.md", "norms.py"} < names
    assert not names & {"training_args.bin", "checkpoint-1", "all_results.json"}
    card = ModelCard.load(target / "README.md")
    assert [(result.metric_type, result.metric_value) for result in card.data.eval_results] == [("bleu", 31.5)]
    assert 'from_pretrained("me/model", trust_remote_code=True)' in card.text
    printed = capsys.readouterr().out
    assert "what --push would push to me/model" in printed
    assert all(name in printed for name in names)
    licensed = (target / "README.md").read_text("utf-8").replace("---\n", "---\nlicense: mit\n", 1)
    (target / "README.md").write_text(licensed, "utf-8")
    push_to_hub.main([str(trained), "me/model"])  # into the same folder again
    again = ModelCard.load(target / "README.md")
    assert again.data.license == "mit"
    assert again.data.eval_results == card.data.eval_results
    (trained / "README.md").write_text("# Mine\n")
    push_to_hub.main([str(trained), "me/model"])
    assert (target / "README.md").read_text() == "# Mine\n"
    (target / "README.md").write_text("# Mine, here\n")
    push_to_hub.main([str(trained), "me/model"])
    assert (target / "README.md").read_text() == "# Mine, here\n"
    (target / "diary.txt").write_text("private")
    with pytest.raises(SystemExit, match=r"holds what should not be pushed:\n  diary\.txt"):
        push_to_hub.main([str(trained), "me/model"])
    with pytest.raises(SystemExit, match=r"push_to_hub: .*nowhere: no such folder"):
        push_to_hub.main([str(trained.parent / "nowhere"), "me/model"])


def test_a_classifier_stays_one(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From within its folder."""
    tokenizer = AutoTokenizer.from_pretrained(trained)
    config = DragomanConfig.from_tokenizer(tokenizer, preset=tiny(), num_labels=3)
    model = build(config, auto=AutoModelForSequenceClassification)
    model.save_pretrained(trained)
    monkeypatch.chdir(trained)
    push_to_hub.main([".", "me/model"])
    pushed = AutoModelForSequenceClassification.from_pretrained(trained.with_name("my-model-to-push"))
    assert pushed.config.architectures == ["DragomanForSequenceClassification"]
    torch.testing.assert_close(pushed.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_pushing(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    class Api:
        def __getattr__(self, name: str) -> Any:
            return lambda *_, **kwargs: calls.append((name, kwargs))

    monkeypatch.setattr(push_to_hub, "HfApi", Api)
    monkeypatch.setattr(push_to_hub, "adopt", lambda *arguments: calls.append(("adopt", {})))
    push_to_hub.main([str(trained), "me/model", "--push", "--private"])
    assert [name for name, _ in calls] == ["create_repo", "adopt", "upload_folder"]
    assert calls[0][1]["private"] is True
    assert calls[2][1]["folder_path"].name == "my-model-to-push"


def test_what_was_there_before_goes(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and a second vocabulary that the new ones do not replace, and nothing else; what is there then loads."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(push_to_hub, "adopt", lambda *_: None)  # asks where HF_ENDPOINT says
    before, downloaded = tmp_path / "before", tmp_path / "downloaded"
    tokenizer = DragomanTokenizer.train(["a dog"], ["ein Hund"], vocab_size=300, share_vocabulary=False)
    tokenizer.save_pretrained(before)
    build(DragomanConfig.from_tokenizer(tokenizer, preset=tiny()), seed=7).save_pretrained(before)
    (before / "notes.txt").write_text("mine")
    with Hub() as hub:
        api = HfApi(endpoint=hub.url, token=TOKEN)
        monkeypatch.setattr(push_to_hub, "HfApi", lambda: api)
        api.create_repo("me/model")
        api.upload_folder(repo_id="me/model", folder_path=before)
        push_to_hub.main([str(trained), "me/model", "--push", "--max_shard_size", "50KB"])
        files = hub.files("me/model")
        assert len(hub.titles("me/model")) == 3
    pushed = {path.name for path in trained.with_name("my-model-to-push").iterdir()}
    assert files.keys() == pushed | {".gitattributes", "notes.txt"}
    downloaded.mkdir()
    for name, content in files.items():
        (downloaded / name).write_bytes(content)
    loaded, expected = (AutoModelForSeq2SeqLM.from_pretrained(folder) for folder in (downloaded, trained))
    torch.testing.assert_close(loaded.state_dict(), expected.state_dict(), rtol=0, atol=0)
    assert AutoTokenizer.from_pretrained(downloaded).get_vocab() == AutoTokenizer.from_pretrained(trained).get_vocab()


def test_what_the_hub_refuses_is_said_in_a_line(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that no repository can have, before anything is prepared; a wrong token; nobody there."""
    target = trained.with_name("my-model-to-push")
    with pytest.raises(SystemExit, match=r"push_to_hub: Repo id must use alphanumeric chars.*'me/my model'"):
        push_to_hub.main([str(trained), "me/my model"])
    assert not target.exists()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with Hub() as hub:
        monkeypatch.setattr(push_to_hub, "HfApi", lambda: HfApi(endpoint=hub.url, token="wrong"))
        with pytest.raises(SystemExit, match=r"^push_to_hub: me/model was not pushed: .*401.*Invalid username.*$"):
            push_to_hub.main([str(trained), "me/model", "--push"])
    with Hub() as nobody:
        monkeypatch.setattr(push_to_hub, "HfApi", lambda: HfApi(endpoint=nobody.url, token="wrong"))
    with pytest.raises(SystemExit, match=r"^push_to_hub: me/model was not pushed: .*refused$"):
        push_to_hub.main([str(trained), "me/model", "--push"])
    assert (target / "README.md").exists()


def test_the_document(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Snippets one after the other, those without dragoman where it cannot be imported; then the commands."""
    monkeypatch.chdir(trained.parent)
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    model.save_pretrained("given"), tokenizer.save_pretrained("given")
    autos = "transformers.AutoModelForSeq2SeqLM, transformers.AutoTokenizer"
    given = f"import dragoman, transformers\nmodel, tokenizer = (auto.from_pretrained('given') for auto in ({autos}))\n"
    absent = "import sys\nsys.modules['dragoman'] = None\n"
    snippets = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    without = [snippet for snippet in snippets if "trust_remote_code" in snippet]
    within = [snippet for snippet in snippets if "trust_remote_code" not in snippet]
    assert without
    assert within
    program = "\n".join([absent, *without, "del sys.modules['dragoman']", given, *within])
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    (trained / "training_args.bin").unlink()
    shutil.rmtree(trained / "checkpoint-1")
    commands = [line for block in re.findall(r"```bash\n(.*?)```", DOCUMENT, re.DOTALL) for line in block.splitlines()]
    for command in [part for line in commands for part in line.split(" && ")]:
        program, *arguments = shlex.split(command, comments=True)
        match [program, *arguments[:2]]:
            case ["python", "-m", "dragoman"]:
                assert CliRunner().invoke(app, arguments[2:]).exit_code == 0, command
            case ["python", "examples/push_to_hub.py", _] if "--push" not in arguments:
                push_to_hub.main(arguments[1:])
            case _:  # need the Hub, or a shell
                assert command in {
                    "export DRAGOMAN_EXPORT_CODE=0",
                    "hf download me/my-model --local-dir my-model",
                    "python examples/push_to_hub.py my-model me/my-model --push",
                }
