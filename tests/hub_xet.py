"""Xet for the server of hub_server: the storage that `hf_xet` uploads large files to, and loads them from.

A file is cut into chunks, which the client packs into blocks (xorbs) that the server keeps unopened; a shard says of
which chunks of which blocks a file consists. Formats: the Xet protocol specification,
https://huggingface.co/docs/xet; the first version of each request, to which the client falls back.
"""

import re
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hub_server import TOKEN, Handler, RefusalError, route


@dataclass
class Term:
    """Chunks ``start`` to ``end`` of a block."""

    block: str
    length: int
    start: int
    end: int


def name_of(digest: bytes) -> str:
    """Four little-endian numbers in hexadecimal digits."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", digest))


def read_shard(shard: bytes) -> Iterator[tuple[str, str, list[Term]]]:
    """Of each file: the name that xet gives it, its SHA-256, and what it consists of. All records have 48 bytes."""
    records = [shard[start : start + 48] for start in range(48, len(shard), 48)]
    while records[0][:32] != b"\xff" * 32:
        head = records.pop(0)
        flags, count = struct.unpack("<II", head[32:40])
        terms = []
        for record in records[:count]:
            _, length, start, end = struct.unpack("<4I", record[32:])
            terms.append(Term(name_of(record[:32]), length, start, end))
        records = records[2 * count if flags >> 31 else count :]  # a second time, hashes to verify
        assert flags >> 30 & 1, "no SHA-256"
        yield name_of(head[:32]), name_of(records.pop(0)[:32]), terms


def chunk_offsets(block: bytes) -> list[int]:
    """Where each chunk begins, and where the last one ends. Before each: 8 bytes, of which 1 to 3 are its length."""
    offsets = [0]
    while offsets[-1] + 8 <= len(block) and block[offsets[-1]] == 0:
        offsets.append(offsets[-1] + 8 + int.from_bytes(block[offsets[-1] + 1 : offsets[-1] + 4], "little"))
    return offsets


class XetHandler(Handler):
    """With ``Hub(XetHandler)``."""

    def authorize(self, token: str = TOKEN) -> None:
        super().authorize("short-lived" if self.path.startswith(("/xet/", "/v1/")) else token)

    @route("GET /api/models/{repo}/xet-(read|write)-token/{revision}")
    def token(self, repo: str, revision: str) -> Any:
        info = {"casUrl": f"{self.hub.url}/xet/{repo}", "accessToken": "short-lived", "exp": int(time.time()) + 3600}
        names = ("X-Xet-Cas-Url", "X-Xet-Access-Token", "X-Xet-Token-Expiration")
        return 200, info, dict(zip(names, map(str, info.values()), strict=True))

    @route("GET /xet/{repo}/v1/chunks/default/{oid}")
    def find_chunk(self, repo: str, oid: str) -> Any:
        raise RefusalError(404, "no block that others have uploaded has it")

    @route("POST /xet/{repo}/v1/xorbs/default/{oid}")
    def upload_block(self, repo: str, oid: str) -> Any:
        self.hub.contents[oid] = self.body
        return {"was_inserted": True}

    @route("POST /xet/{repo}/v1/shards")
    def upload_shard(self, repo: str) -> Any:
        for name, sha256, terms in read_shard(self.body):
            self.hub.xet[name], self.hub.xet_names[sha256] = terms, name
            self.repository(repo).objects.add(sha256)
        return {"result": 1}

    @route("(GET|POST) /xet/{repo}/(v2/.*|v1/xorb-grants/.*)|POST /v1/telemetry")
    def newer(self, repo: str | None = None) -> Any:
        raise RefusalError(404, "not here: the client asks again, for the first version")

    @route("(HEAD|GET) /{repo}/resolve/{revision}/{path*}")
    def resolve(self, repo: str, revision: str, path: str) -> Any:
        status, content, headers = super().resolve(repo, revision, path)
        name = self.hub.xet_names.get(headers.get("X-Linked-Etag", "").strip('"'))
        if name:
            token = f"{self.hub.url}/api/models/{repo}/xet-read-token/{revision}"
            headers |= {"X-Xet-Hash": name, "X-Xet-Refresh-Route": token}
        return status, content, headers

    @route("GET /xet/{repo}/v1/reconstructions/{name}")
    def reconstruct(self, repo: str, name: str) -> Any:
        terms, ranges = [], {}
        for term in self.hub.xet[name]:
            chunks = {"start": term.start, "end": term.end}
            offsets = chunk_offsets(self.hub.contents[term.block])
            place = {"start": offsets[term.start], "end": offsets[term.end] - 1}
            url = f"{self.hub.url}/blocks/{term.block}"
            terms.append({"hash": term.block, "unpacked_length": term.length, "range": chunks})
            ranges.setdefault(term.block, []).append({"range": chunks, "url": url, "url_range": place})
        return {"offset_into_first_range": 0, "terms": terms, "fetch_info": ranges}

    @route("GET /blocks/{oid}")
    def block(self, oid: str) -> Any:
        block = self.hub.contents[oid]
        start, end = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
        return 206, block[start : end + 1], {"Content-Range": f"bytes {start}-{end}/{len(block)}"}
