"""The part of the Hub's HTTP API that ``huggingface_hub`` pushes and loads with, in memory, on 127.0.0.1.

Written after the client (huggingface_hub 2.4: hf_api.py, _commit_api.py, lfs.py, file_download.py). Large files are sent
to LFS storage, in one piece or in parts; regular files inside the commit; a commit is all or nothing. Everything is kept
under the hash of its content. Faults can be switched on for any request; those that the server does not know are noted.
"""

import base64
import copy
import fnmatch
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_test"
PART = 64 * 1024  # larger files are uploaded in parts of this size
LARGE = ("*.safetensors", "*.bin")
ATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LARGE).encode()


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class File:
    oid: str  # SHA-256 of a large file, git's SHA-1 of a regular one
    size: int
    large: bool


@dataclass
class Commit:
    title: str
    files: dict[str, File]


@dataclass
class Repository:
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)  # branches and tags
    objects: set[str] = field(default_factory=set)  # large files that were uploaded to it

    def commit(self, branch: str, title: str, files: dict[str, File]) -> str:
        listing = json.dumps([self.refs.get(branch), title, sorted((name, file.oid) for name, file in files.items())])
        oid = hashlib.sha1(listing.encode()).hexdigest()
        self.commits[oid] = Commit(title, files)
        self.refs[branch] = oid
        return oid


@dataclass
class Fault:
    """What goes wrong with the next ``times`` requests (None: all) whose "METHOD /path" matches ``pattern``."""

    pattern: str
    kind: str  # see KINDS
    times: int | None = 1


KINDS = {
    "unavailable": "503, nothing done",
    "cut request": "half of the body is read, then the connection is closed",
    "lose answer": "the request is carried out, then the connection is closed",
    "cut answer": "half of the body is sent, then the connection is closed",
    "short answer": "the last byte of the body is missing, and Content-Length says so",
    "corrupt head": "the first byte of the body is another",
    "corrupt middle": "a byte in the middle of the body is another",
}


class Hub:
    """Start with ``with Hub() as hub``; ``hub.url`` is the endpoint."""

    def __init__(self, handler: "type[Handler] | None" = None) -> None:
        routes = {}
        for cls in reversed((handler or Handler).__mro__):
            routes |= {m.pattern: name for name, m in vars(cls).items() if hasattr(m, "pattern")}
        self.handler = type("Bound", (handler or Handler,), {"hub": self, "routes": routes})
        self.repositories: dict[str, Repository] = {}
        self.contents: dict[str, bytes] = {}
        self.xet: dict[str, Any] = {}  # what files consist of, where hub_xet keeps them
        self.xet_names: dict[str, str] = {}  # by SHA-256
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.unknown: list[str] = []
        self.lock = threading.RLock()

        self.port = 0  # any

    def __enter__(self) -> "Hub":
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), self.handler)
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.server.shutdown()
        self.server.server_close()

    @contextmanager
    def gone(self) -> Iterator[None]:
        """Nobody listens at ``url``."""
        self.__exit__()
        yield
        self.__enter__()

    def fail(self, pattern: str, kind: str, times: int | None = 1) -> Fault:
        assert kind in KINDS
        self.faults.append(Fault(pattern, kind, times))
        return self.faults[-1]

    def fault(self, request: str) -> str | None:
        with self.lock:
            for fault in self.faults:
                if fault.times != 0 and re.search(fault.pattern, request):
                    fault.times = fault.times and fault.times - 1
                    return fault.kind
        return None

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """What a revision holds."""
        found = self.repositories[repo]
        commit = found.commits[found.refs.get(revision, revision)]
        return {name: self.contents[file.oid] for name, file in commit.files.items()}

    def copy(self, repo: str, name: str) -> Repository:
        """Another repository with the same history."""
        self.repositories[name] = copy.deepcopy(self.repositories[repo])
        return self.repositories[name]

    def titles(self, repo: str) -> list[str]:
        return [commit.title for commit in self.repositories[repo].commits.values()]

    def keep(self, content: bytes, large: bool) -> File:
        oid = hashlib.sha256(content).hexdigest() if large else git_hash(content)
        self.contents[oid] = content
        return File(oid, len(content), large)


class RefusalError(Exception):
    """An answer of status 4xx; ``code`` is what the client tells errors apart by."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": message, **headers}


def route(pattern: str) -> Callable[[Any], Any]:
    """Marks a method of Handler: "METHOD /path"; {repo} and {x} are filled in, {x} by one part of a path, {x*} by all."""
    expression = pattern.replace("{repo}", "(?P<repo>[^/]+/[^/]+)")
    expression = re.sub(r"\{(\w+)\*\}", r"(?P<\1>.*)", re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", expression))

    def mark(method: Any) -> Any:
        method.pattern = re.compile(expression)
        return method

    return mark


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    routes: dict[re.Pattern[str], str]
    protocol_version = "HTTP/1.1"

    def handle_one(self) -> None:
        parts = urlsplit(self.path)
        request = f"{self.command} {unquote(parts.path)}"
        kind = self.hub.fault(request)
        size = int(self.headers.get("Content-Length", 0))
        self.hub.requests.append(request)
        if kind == "cut request":
            self.rfile.read(size // 2)
            self.close_connection = True
            return
        self.body = self.rfile.read(size)
        self.query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if kind == "unavailable":
            return self.answer(503, {"error": "try again"})
        try:
            status, content, headers = self.dispatch(request)
        except RefusalError as refusal:
            status, content, headers = refusal.status, {"error": str(refusal)}, refusal.headers
        if kind == "lose answer":
            self.close_connection = True
            return
        self.answer(status, content, headers, kind)

    do_GET = do_HEAD = do_POST = do_PUT = handle_one  # noqa: N815

    def dispatch(self, request: str) -> tuple[int, Any, dict[str, str]]:
        for pattern, name in self.routes.items():
            match = pattern.fullmatch(request)
            if match:
                if self.command == "POST" and " /lfs/" not in request and "yaml" not in request:
                    self.authorize()
                with self.hub.lock:
                    result = getattr(self, name)(**match.groupdict())
                return result if isinstance(result, tuple) else (200, result, {})
        self.hub.unknown.append(request)
        raise RefusalError(404, f"this server does not know {request}")

    def answer(self, status: int, content: Any, headers: Any = None, kind: str | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        if kind == "short answer":
            body = body[:-1]
        elif kind == "corrupt head":
            body = bytes([body[0] ^ 255]) + body[1:]
        elif kind == "corrupt middle":
            body = body[: len(body) // 2] + bytes([body[len(body) // 2] ^ 255]) + body[len(body) // 2 + 1 :]
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if kind == "cut answer" else body)
        if kind == "cut answer":
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass

    def authorize(self, token: str = TOKEN) -> None:
        if self.headers.get("Authorization") != f"Bearer {token}":
            raise RefusalError(401, "Invalid username or password.")

    def repository(self, repo: str) -> Repository:
        if repo not in self.hub.repositories:
            raise RefusalError(404, "Repository not found", "RepoNotFound")
        return self.hub.repositories[repo]

    def revision(self, repo: str, revision: str) -> tuple[str, dict[str, File]]:
        found = self.repository(repo)
        oid = found.refs.get(revision, revision)
        if oid not in found.commits:
            raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid, found.commits[oid].files

    # Who, and which repositories

    @route("GET /api/whoami-v2")
    def whoami(self) -> Any:
        self.authorize()
        return {"type": "user", "name": "me", "orgs": []}

    @route("GET /api/agent-harnesses")
    def harnesses(self) -> Any:
        return {"harnesses": {}}  # programs that a client may say it is run by

    @route("POST /api/repos/create")
    def create(self) -> Any:
        asked = json.loads(self.body)
        repo = f"{asked['organization'] or 'me'}/{asked['name']}"
        answer = {"name": repo, "url": f"{self.hub.url}/{repo}"}
        if repo in self.hub.repositories:
            return 409, {"error": "You already created this model repo", **answer}, {}
        created = self.hub.repositories[repo] = Repository()
        created.commit("main", "initial commit", {".gitattributes": self.hub.keep(ATTRIBUTES, False)})
        return answer

    @route("POST /api/validate-yaml")
    def validate_yaml(self) -> Any:
        block = re.match(r"---\n(.*?)\n---", json.loads(self.body)["content"], re.DOTALL)
        try:
            fields = yaml.safe_load(block[1]) if block else None
        except yaml.YAMLError as error:
            return 400, {"errors": [{"message": str(error)}], "warnings": []}, {}
        return {"errors": [], "warnings": [] if fields else [{"message": "empty or missing yaml metadata"}]}

    @route("POST /api/models/{repo}/branch/{branch}")
    def create_branch(self, repo: str, branch: str) -> Any:
        refs = self.repository(repo).refs
        if branch in refs:
            raise RefusalError(409, f"Reference already exists: {branch}")
        refs[branch], _ = self.revision(repo, json.loads(self.body).get("startingPoint", "main"))
        return {}

    @route("POST /api/models/{repo}/tag/{revision}")
    def create_tag(self, repo: str, revision: str) -> Any:
        tag = json.loads(self.body)["tag"]
        self.repository(repo).refs[tag], _ = self.revision(repo, revision)
        return {}

    # Pushing

    @route("POST /api/models/{repo}/preupload/{revision}")
    def preupload(self, repo: str, revision: str) -> Any:
        _, files = self.revision(repo, revision)
        return {
            "files": [
                {
                    "path": asked["path"],
                    "uploadMode": "lfs" if any(fnmatch.fnmatch(asked["path"], name) for name in LARGE) else "regular",
                    "shouldIgnore": False,
                    "oid": files[asked["path"]].oid if asked["path"] in files else None,
                }
                for asked in json.loads(self.body)["files"]
            ]
        }

    @route("POST /{repo}.git/info/lfs/objects/batch")
    def batch(self, repo: str) -> Any:
        objects = []
        for asked in json.loads(self.body)["objects"]:
            url, size = f"{self.hub.url}/lfs/{repo}/{asked['oid']}", asked["size"]
            upload: dict[str, Any] = {"href": url}
            if size > PART:
                parts = {str(n): f"{url}/{n}" for n in range(1, -(-size // PART) + 1)}
                upload = {"href": f"{url}/complete", "header": {"chunk_size": str(PART), **parts}}
            actions = {"upload": upload, "verify": {"href": f"{url}/verify"}}
            objects.append(asked if asked["oid"] in self.repository(repo).objects else {**asked, "actions": actions})
        return {"transfer": "multipart", "objects": objects}

    @route("PUT /lfs/{repo}/{oid}")
    def upload(self, repo: str, oid: str) -> Any:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise RefusalError(400, "the content does not match its hash")
        self.hub.contents[oid] = self.body
        self.repository(repo).objects.add(oid)
        return {}

    @route("PUT /lfs/{repo}/{oid}/{part}")
    def upload_part(self, repo: str, oid: str, part: str) -> Any:
        self.hub.contents[f"{repo}/{oid}/{part}"] = self.body
        return 200, {}, {"ETag": git_hash(self.body)}

    @route("POST /lfs/{repo}/{oid}/complete")
    def complete(self, repo: str, oid: str) -> Any:
        parts = json.loads(self.body)["parts"]
        contents = [self.hub.contents[f"{repo}/{oid}/{part['partNumber']}"] for part in parts]
        if [git_hash(content) for content in contents] != [part["etag"] for part in parts]:
            raise RefusalError(400, "an ETag does not match its part")
        self.body = b"".join(contents)
        return self.upload(repo, oid)

    @route("POST /lfs/{repo}/{oid}/verify")
    def verify(self, repo: str, oid: str) -> Any:
        if oid not in self.repository(repo).objects:
            raise RefusalError(404, "not uploaded")
        return {}

    @route("POST /api/models/{repo}/commit/{branch}")
    def commit(self, repo: str, branch: str) -> Any:
        lines = [json.loads(line) for line in self.body.splitlines()]
        _, files = self.revision(repo, branch)
        files, title = dict(files), ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                title = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = self.hub.keep(base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.repository(repo).objects:
                    raise RefusalError(400, f"{value['path']} was not uploaded")
                files[value["path"]] = File(value["oid"], value["size"], True)
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise RefusalError(400, f"this server does not know {line['key']}")
        oid = self.repository(repo).commit(branch, title, files)
        return {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repo}/commit/{oid}"}

    # Loading

    @route("GET /api/models/{repo}")
    def info(self, repo: str) -> Any:
        return self.info_at(repo, "main")

    @route("GET /api/models/{repo}/revision/{revision}")
    def info_at(self, repo: str, revision: str) -> Any:
        oid, files = self.revision(repo, revision)
        return {"id": repo, "modelId": repo, "sha": oid, "siblings": [{"rfilename": name} for name in files]}

    @route("GET /api/models/{repo}/tree/{revision}/?{folder*}")
    def tree(self, repo: str, revision: str, folder: str) -> Any:
        _, files = self.revision(repo, revision)
        if folder:
            raise RefusalError(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        return [self.entry(name, file) for name, file in files.items()]

    @staticmethod
    def entry(name: str, file: File) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": name, "size": file.size, "oid": file.oid}
        if file.large:
            entry |= {"oid": git_hash(file.oid.encode()), "lfs": {"oid": file.oid, "size": file.size, "pointerSize": 1}}
        return entry

    @route("(HEAD|GET) /{repo}/resolve/{revision}/{path*}")
    def resolve(self, repo: str, revision: str, path: str) -> Any:
        oid, files = self.revision(repo, revision)
        if path not in files:
            raise RefusalError(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": oid})
        file, headers = files[path], {"X-Repo-Commit": oid}
        if file.large:  # kept by another host, whose address alone is the permission
            headers |= {"X-Linked-Etag": f'"{file.oid}"', "X-Linked-Size": str(file.size)}
            return 302, b"", {**headers, "Location": f"http://localhost:{self.hub.port}/storage/{file.oid}"}
        return 200, self.hub.contents[file.oid], {**headers, "ETag": f'"{file.oid}"'}

    @route("(HEAD|GET) /storage/{oid}")
    def storage(self, oid: str) -> Any:
        if "Authorization" in self.headers:
            raise RefusalError(400, "Only one auth mechanism allowed")
        content = self.hub.contents[oid]
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not wanted:
            return content
        start = int(wanted[1])
        return 206, content[start:], {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
