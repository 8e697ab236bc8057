"""Push with the real client to a server on this machine, then load by name: what users do, without the network.

The server (hub_server) speaks the Hub's API and can be told to fail. The processes (hub_process) know nothing but its
address; each push and each load happens in one of its own. Weights take the way of Git LFS, in
parts; in one test they take the other one, xet.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import hub_process
import loading_process
from dragoman import DragomanConfig, DragomanTokenizer
from dragoman.hub import NOTE, SETTING
from hub_server import PART, TOKEN, Hub
from hub_xet import XetHandler
from support import build, tiny

BOTH = ["seq2seq", "tokenizer"]
ALL = ["config", "seq2seq", "base", "encoder", "tokenizer"]
FLAG = {"trust_remote_code": True}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forks of one")


class Users:
    """Processes of people who share one cache. What an action raises there, it raises here as RuntimeError."""

    def __init__(self, hub: Hub, home: Path, **environment: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
        own = {"HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"), "HF_MODULES_CACHE": str(home / "modules")}
        own |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        own |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1,localhost", "TOKENIZERS_PARALLELISM": "false"}
        home.mkdir(parents=True, exist_ok=True)
        self.log = home / "log.txt"
        self.process = subprocess.Popen(
            [sys.executable, hub_process.__file__],
            env={**kept, **own, **environment},
            cwd=home,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("a"),
            text=True,
        )

    def __call__(self, action: str, mode: str = "a", **arguments: Any) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps({"action": action, "mode": mode, **arguments}), file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]

    def __enter__(self) -> "Users":
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.communicate(timeout=60)


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub
    assert not hub.unknown


@pytest.fixture(autouse=True)
def no_fault_outlives_its_test(hub: Hub) -> Iterator[None]:
    yield
    hub.faults.clear()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def users(hub: Hub, home: Path) -> Iterator[Users]:
    with Users(hub, home) as users:
        yield users


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two models with two vocabularies, each saved to a folder, and what every facet of them gives."""
    root = tmp_path_factory.mktemp("made")
    english, german = ["a dog runs", "two dogs run"], ["ein Hund rennt", "zwei Hunde rennen"]
    tokenizer = DragomanTokenizer.train(english, german, vocab_size=300, share_vocabulary=False)
    made = {}
    for seed, name in enumerate(("first", "second")):
        model = build(DragomanConfig.from_tokenizer(tokenizer, preset=tiny()), seed)
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
        parts = {"config": model.config, "seq2seq": model, "tokenizer": tokenizer}
        for facet, (auto, _) in loading_process.FACETS.items():
            parts[facet] = parts.get(facet) or auto.from_pretrained(root / name)
        notes = {facet: describe(parts[facet]) for facet, (_, describe) in loading_process.FACETS.items()}
        torch.save(notes, root / f"{name}.pt")
        made |= {name: str(root / name), f"{name} notes": str(root / f"{name}.pt")}
    assert (root / "first" / "model.safetensors").stat().st_size > 2 * PART
    return made


@pytest.fixture(scope="module")
def pushed(hub: Hub, users: Users, made: dict[str, str]) -> str:
    """A repository with model and tokenizer."""
    for what in ("model", "tokenizer"):
        users("push", what=what, folder=made["first"], repo="me/pushed")
    return "me/pushed"


@pytest.mark.parametrize(
    ("mode", "keywords", "code"), [("a", {}, "dragoman"), ("b", FLAG, "transformers_modules")], ids=["plugin", "flag"]
)
def test_push_to_hub(
    mode: str, keywords: dict[str, Any], code: str, pushed: str, hub: Hub, users: Users, made: dict[str, str]
) -> None:
    notes = made["first notes"]
    homes = users("load", mode=mode, repo=pushed, notes=notes, facets=ALL, **keywords)
    assert homes == [code] * len(ALL)
    files = hub.files(pushed)
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", ".gitattributes"} < files.keys()
    for path in Path(made["first"]).iterdir():  # nothing lost, nothing changed on the way
        if path.suffix in (".py", ".safetensors"):
            assert files[path.name] == path.read_bytes(), path.name


def test_a_push_is_one_commit_and_weights_go_up_in_parts(pushed: str, hub: Hub) -> None:
    titles = hub.titles(pushed)
    assert titles == ["initial commit", "Upload DragomanForConditionalGeneration", "Upload tokenizer"]
    assert [request for request in hub.requests if request.startswith("PUT /lfs/") and request.endswith("/3")]


def test_revisions(hub: Hub, users: Users, made: dict[str, str]) -> None:
    """A branch, a tag, a commit and main, each loaded with the code that it holds."""
    repo, second, first = "me/revisions", made["second notes"], made["first notes"]
    users("push", what="model", folder=made["first"], repo=repo)
    users("tag", repo=repo, name="v1")
    users("push", what="model", folder=made["second"], repo=repo, revision="next")
    refs = hub.repositories[repo].refs
    assert refs.keys() == {"main", "v1", "next"}
    assert hub.files(repo)["model.safetensors"] != hub.files(repo, "next")["model.safetensors"]
    users("load", mode="b", repo=repo, notes=second, facets=["seq2seq"], revision=refs["next"], **FLAG)
    users("load", repo=repo, notes=second, facets=["seq2seq"], revision="next")
    old = refs["main"]
    users("push", what="model", folder=made["second"], repo=repo)
    users("load", repo=repo, notes=second, facets=["seq2seq"])
    users("load", repo=repo, notes=first, facets=["seq2seq"], revision=old)
    users("load", mode="b", repo=repo, notes=first, facets=["seq2seq"], revision="v1", **FLAG)


@pytest.mark.parametrize("how", [{"mode": "a"}, {"mode": "b", **FLAG}], ids=["plugin", "flag"])
def test_from_the_cache(how: dict[str, Any], pushed: str, hub: Hub, users: Users, made: dict[str, str]) -> None:
    wanted = {"repo": pushed, "notes": made["first notes"], "facets": BOTH, **how}
    users("load", **wanted)
    with hub.gone():
        users("load", **wanted)


@pytest.mark.slow
def test_offline(pushed: str, hub: Hub, home: Path, users: Users, made: dict[str, str]) -> None:
    """With HF_HUB_OFFLINE=1 nobody is asked."""
    loads: list[dict[str, Any]] = [{"mode": "a"}, {"mode": "b", **FLAG}]
    wanted = {"repo": pushed, "notes": made["first notes"], "facets": BOTH}
    for how in loads:
        users("load", **wanted, **how)
    asked = len(hub.requests)
    with Users(hub, home, HF_HUB_OFFLINE="1") as offline:
        for how in loads:
            offline("load", **wanted, **how)
        with pytest.raises(RuntimeError, match=r"OSError: .*couldn't find them in the cached files"):
            offline("load", **{**wanted, "repo": "me/never-loaded"})
    assert len(hub.requests) == asked


@pytest.mark.parametrize("what", ["model", "tokenizer", "config"])
def test_save_and_push_over_a_folder(
    what: str, tmp_path: Path, hub: Hub, users: Users, made: dict[str, str], pushed: str
) -> None:
    """Everything that the repository needs goes up, what lies in the folder already too; files of others do not."""
    repo, into = f"me/saved-{what}", tmp_path / "saved"
    shutil.copytree(made["first"], into)
    (into / "notes.txt").write_text("mine")
    users("save_and_push", what=what, folder=made["first"], repo=repo, into=str(into))
    files, expected = hub.files(repo), hub.files(pushed)
    assert {name for name, content in files.items() if content != expected[name]} <= {"README.md"}
    facet = {"model": "seq2seq"}.get(what, what)
    users("load", mode="b", repo=repo, notes=made["first notes"], facets=[facet], **FLAG)


@pytest.mark.parametrize(("way", "variant"), [("push", None), ("save_and_push", "fp16")])
def test_weights_in_other_files_than_before(
    way: str, variant: str | None, tmp_path: Path, hub: Hub, users: Users, made: dict[str, str]
) -> None:
    """A single file that is left would be loaded rather than the new shards."""
    repo, middle = f"me/other-files-{way}", f".{variant}" if variant else ""
    whole, index = f"model{middle}.safetensors", f"model.safetensors.index{middle}.json"
    sizes = {"5GB": "first", "50KB": "second", "10KB": "first", "1GB": "second"}
    for size, name in sizes.items():
        extra = {"into": str(tmp_path / name), "variant": variant} if variant else {}
        users(way, what="model", folder=made[name], repo=repo, max_shard_size=size, **extra)
        files = hub.files(repo)
        expected = {whole}
        if index in files:
            expected = {index, *json.loads(files[index])["weight_map"].values()}
        assert (len(expected) > 1) == (size in ("50KB", "10KB"))
        assert {file for file in files if file.endswith(".safetensors") or file == index} == expected
        users("load", repo=repo, notes=made[f"{name} notes"], facets=["seq2seq"], variant=variant)
    assert len(hub.repositories[repo].commits) == 1 + len(sizes)  # each push is one


def test_one_vocabulary_after_two(tmp_path: Path, hub: Hub, users: Users, made: dict[str, str], pushed: str) -> None:
    """With the second one left there, the tokenizer would not load; a push to a branch changes that branch alone."""
    one, notes, repo = tmp_path / "one", tmp_path / "notes.pt", "me/vocabularies"
    tokenizer = DragomanTokenizer.train(["a dog runs"], ["ein Hund rennt"], vocab_size=300)
    build(DragomanConfig.from_tokenizer(tokenizer, preset=tiny())).save_pretrained(one)
    tokenizer.save_pretrained(one)
    torch.save({"tokenizer": loading_process.FACETS["tokenizer"][1](tokenizer)}, notes)
    hub.copy(pushed, repo)
    users("push", what="tokenizer", folder=str(one), repo=repo, revision="next")
    assert hub.files(repo) == hub.files(pushed)
    users("load", repo=repo, notes=str(notes), facets=["tokenizer"], revision="next")
    users("push", what="tokenizer", folder=str(one), repo=repo)
    for how in ({"mode": "a"}, {"mode": "b", **FLAG}):
        users("load", repo=repo, notes=str(notes), facets=["tokenizer"], **how)
    assert hub.files(repo).keys() == hub.files(pushed).keys() - {"target_tokenizer.json"}


@pytest.mark.parametrize("cached", [False, True])
def test_a_card_that_cannot_be_looked_up(
    cached: bool, tmp_path: Path, hub: Hub, users: Users, made: dict[str, str], pushed: str
) -> None:
    """Nothing is pushed over what a person may have written there, whatever an older card in the cache says."""
    repo, into, card = f"me/unseen-{cached}", tmp_path / "saved", b"# Mine\n"
    hub.copy(pushed, repo)
    save = {"folder": made["first"], "repo": repo, "into": str(into)}
    if cached:
        users("save_and_push", what="model", **save)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_bytes(card)
    users("upload", folder=str(tmp_path / "mine"), repo=repo)
    hub.fail("HEAD .*/README.md", "unavailable", None)
    with pytest.raises(RuntimeError, match=f"ConnectionError: Cannot look up the card of {repo}: .*503"):
        users("save_and_push", what="model", **save)
    for what in ("model", "tokenizer"):
        with pytest.raises(RuntimeError, match=f"ConnectionError: Cannot look up the card of {repo}"):
            users("push", what=what, folder=made["first"], repo=repo)
    assert hub.files(repo)["README.md"] == card
    hub.faults.clear()
    users("save_and_push", what="model", **save)
    users("push", what="tokenizer", folder=made["first"], repo=repo)
    assert (into / "README.md").read_bytes() == card
    assert hub.files(repo)["README.md"].endswith(card)


@pytest.mark.parametrize("with_tokenizer", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_trainer(with_tokenizer: bool, tmp_path: Path, hub: Hub, users: Users, made: dict[str, str]) -> None:
    """Every commit loads, those that it makes beside training too; there the tokenizer brings the model's code."""
    repo, folder, output = f"me/trained-{with_tokenizer}", made["first"], str(tmp_path / "output")
    users("train", folder=folder, repo=repo, output=output, steps=2, with_tokenizer=with_tokenizer)
    titles = ["Training in progress, step 1", "Training in progress, step 2", "End of training"]
    assert hub.titles(repo) == ["initial commit", *titles]
    for revision in list(hub.repositories[repo].commits)[1:]:
        files = hub.files(repo, revision)
        assert [name for name in files if name.startswith((".", "_"))] == [".gitattributes"]
        whole = with_tokenizer or revision == hub.repositories[repo].refs["main"]
        assert ("attention.py" in files) == whole
        if whole:
            weights = tmp_path / f"{revision}.safetensors"
            weights.write_bytes(files["model.safetensors"])
            users("load_weights", mode="b", repo=repo, revision=revision, weights=str(weights), **FLAG)
    if with_tokenizer:
        users("load", mode="b", repo=repo, notes=made["first notes"], facets=["tokenizer"], **FLAG)


# What goes wrong while model.push_to_hub runs, how often, and whether the client gets over it by itself.
UPLOADS = {
    "a part is cut off once": ("PUT /lfs/.*/2", "cut request", 1, True),
    "a part is always cut off": ("PUT /lfs/.*/2", "cut request", None, False),
    "the commit is cut off": ("POST .*/commit/main", "cut request", 1, False),
    "the server is overloaded once": ("PUT /lfs/.*/2", "unavailable", 1, True),
    "parts are never put together": ("POST /lfs/.*/complete", "unavailable", None, False),
    "the commit is refused": ("POST .*/commit/main", "unavailable", 1, False),
}


def without_card(files: dict[str, bytes]) -> dict[str, bytes]:
    """A card names its repository, and what was pushed last."""
    assert b"dragoman" in files["README.md"]
    return {name: content for name, content in files.items() if name != "README.md"}


def slow_after(count: int, cases: dict[str, Any]) -> list[Any]:
    """The first cases always, the others with -m slow."""
    marks = [()] * count + [pytest.mark.slow] * (len(cases) - count)
    return [pytest.param(*cases[name], id=name, marks=mark) for name, mark in zip(cases, marks, strict=True)]


@pytest.mark.parametrize(("where", "kind", "times", "survives"), slow_after(3, UPLOADS))
def test_interrupted_uploads(
    where: str, kind: str, times: int | None, survives: bool, hub: Hub, users: Users, made: dict[str, str], pushed: str
) -> None:
    """A commit holds all or nothing; where nothing, what was there stays, and the same call mends it."""
    repo = f"me/{kind.replace(' ', '-')}-{len(hub.repositories)}"
    push = {"what": "model", "folder": made["second"], "repo": repo}
    copied = hub.copy(pushed, repo)
    before = hub.files(repo)
    fault = hub.fail(where, kind, times)
    if not survives:
        with pytest.raises(RuntimeError):
            users("push", **push)
        assert hub.files(repo) == before
        hub.faults.clear()
    users("push", **push)
    assert fault.times != 1
    assert len(copied.commits) == len(hub.repositories[pushed].commits) + 1
    weights = (Path(made["second"]) / "model.safetensors").read_bytes()
    assert without_card(hub.files(repo)) == without_card({**before, "model.safetensors": weights})


def test_a_commit_whose_answer_was_lost(hub: Hub, users: Users, made: dict[str, str], pushed: str) -> None:
    """The client says that it failed; it is there, and whole. The same call adds nothing."""
    push = {"what": "model", "folder": made["second"], "repo": "me/lost"}
    commits = hub.copy(pushed, "me/lost").commits
    hub.fail("/commit/main", "lose answer")
    with pytest.raises(RuntimeError, match="RemoteProtocolError"):
        users("push", **push)
    weights = (Path(made["second"]) / "model.safetensors").read_bytes()
    assert without_card(hub.files("me/lost")) == without_card({**hub.files(pushed), "model.safetensors": weights})
    assert len(commits) == 4
    users("push", **push)
    assert len(commits) == 4


# What goes wrong while a model is loaded, how often, and what the error says (None: the client gets over it).
CUT = "OSError: Consistency check failed: file should be of size"
DOWNLOADS = {
    "weights are cut off twice": ("GET /storage/", "cut answer", 2, None),
    "weights are too short": ("GET /storage/", "short answer", 1, CUT),
    "code is too short": ("GET .*/attention.py", "short answer", 1, CUT),
    "the configuration is cut off": ("GET .*/config.json", "cut answer", None, "OSError: Can't load the conf"),
    "code is unavailable": ("HEAD .*/attention.py", "unavailable", None, "OSError: We couldn't connect to"),
    "weights are unavailable": ("HEAD .*/model.safetensors", "unavailable", None, "OSError: .*model.safetensors"),
}


@pytest.mark.parametrize(("where", "kind", "times", "error"), slow_after(3, DOWNLOADS))
def test_interrupted_downloads(
    where: str,
    kind: str,
    times: int | None,
    error: str | None,
    hub: Hub,
    home: Path,
    users: Users,
    made: dict[str, str],
    pushed: str,
) -> None:
    """What did not arrive whole is not in the cache afterwards, and the next time all is well."""
    repo = f"me/{kind.replace(' ', '-')}-{len(hub.repositories)}"
    hub.copy(pushed, repo)
    load = {"mode": "b", "repo": repo, "notes": made["first notes"], "facets": ["seq2seq"], **FLAG}
    fault = hub.fail(where, kind, times)
    if error is not None:
        with pytest.raises(RuntimeError, match=error):
            users("load", **load)
        hub.faults.clear()
        files, cache = hub.files(repo), home / "hub" / f"models--{repo.replace('/', '--')}"
        for path in cache.glob("snapshots/*/*"):
            assert path.read_bytes() == files[path.name]
        assert not list(cache.rglob("*.incomplete"))
    users("load", **load)
    assert fault.times != times or times is None


@pytest.mark.parametrize("kind", ["corrupt head", pytest.param("corrupt middle", marks=pytest.mark.slow)])
def test_corrupted_downloads(kind: str, hub: Hub, users: Users, made: dict[str, str], pushed: str) -> None:
    """Of the right size, which is all that the client looks at: what notices, and what mends it."""
    repo = f"me/{kind.replace(' ', '-')}"
    hub.copy(pushed, repo)
    load = {"mode": "b", "repo": repo, "notes": made["first notes"], "facets": ["seq2seq"], **FLAG}
    hub.fail("GET /storage/", kind)
    error = "OSError: The weights .* force_download=True" if kind == "corrupt head" else "AssertionError: logits"
    for _ in range(2):  # it stays in the cache
        with pytest.raises(RuntimeError, match=error):
            users("load", **load)
    assert users("compare_hashes", repo=repo) == ["model.safetensors"]
    users("load", force_download=True, **load)
    assert users("compare_hashes", repo=repo) == []


def test_old_code_in_a_repository(tmp_path: Path, hub: Hub, users: Users, made: dict[str, str], pushed: str) -> None:
    """A push replaces what another version wrote, and deletes no code; verify names what is too much."""
    repo, old = "me/old", tmp_path / "old"
    hub.copy(pushed, repo)
    old.mkdir()
    for name in ("attention.py", "gone.py"):
        (old / name).write_text("# Written by dragoman 0.0.9\n")
    users("upload", folder=str(old), repo=repo)
    users("push", what="model", folder=made["first"], repo=repo)
    assert hub.files(repo)["attention.py"] == hub.files(pushed)["attention.py"]
    users("load", mode="b", repo=repo, notes=made["first notes"], facets=BOTH, **FLAG)
    assert users("verify", repo=repo, into=str(tmp_path / "one")).keys() == {"gone.py"}
    users("upload", folder=made["first"], repo=repo, delete=["gone.py"])
    assert users("verify", repo=repo, into=str(tmp_path / "two")) == {}


def test_opting_out(hub: Hub, users: Users, made: dict[str, str]) -> None:
    """No code goes up; without the plugin the error says what to install, and no repository of code is asked for."""
    for what in ("model", "tokenizer"):
        users("push", what=what, folder=made["first"], repo="me/bare", environment={SETTING: "0"})
    assert not [name for name in hub.files("me/bare") if name.endswith(".py")]
    users("load", repo="me/bare", notes=made["first notes"], facets=BOTH)
    asked = len(hub.requests)
    for facet in BOTH:
        with pytest.raises(RuntimeError, match=NOTE):
            users("load", mode="b", repo="me/bare", notes=made["first notes"], facets=[facet], **FLAG)
    assert all("/me/bare/" in request or "harnesses" in request for request in hub.requests[asked:])


@pytest.mark.slow
def test_xet(tmp_path: Path, made: dict[str, str]) -> None:
    """The way that weights take where nothing else is asked for. It does not notice a changed weight either."""
    with Hub(XetHandler) as hub, Users(hub, tmp_path, HF_HUB_DISABLE_XET="0") as users:
        for what in ("model", "tokenizer"):
            users("push", what=what, folder=made["first"], repo="me/xet")
        load = {"mode": "b", "repo": "me/xet", "notes": made["first notes"], "facets": BOTH, **FLAG}
        hub.fail("GET /blocks/", "corrupt middle", None)
        with pytest.raises(RuntimeError, match="AssertionError: logits"):
            users("load", **load)
        hub.faults.clear()
        assert users("compare_hashes", repo="me/xet") == ["model.safetensors"]
        users("load", force_download=True, **load)
        assert users("compare_hashes", repo="me/xet") == []
    assert not [request for request in hub.requests if "/lfs/" in request or "/storage/" in request]
    assert [request for request in hub.requests if "/xorbs/" in request]
    assert not hub.unknown
