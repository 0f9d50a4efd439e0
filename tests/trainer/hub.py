"""A Hugging Face hub on this machine, as far as streaming a dataset asks for one.

It answers what huggingface_hub 2.4 and datasets 5.2 request: a dataset's revision, its files, and
ranges of them.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """One dataset at one address."""

    repo: str
    files: Mapping[str, bytes]
    revision: str
    """The newest; every revision has the same files."""
    address: str = ""
    asked: list[str] = field(default_factory=list)
    """Paths of the requests."""

    def answer(self, path: str, query: str) -> tuple[int, bytes, dict[str, str]]:
        """Return status, body and headers."""
        self.asked.append(path)
        api, files = f"/api/datasets/{self.repo}", f"/datasets/{self.repo}/resolve/"
        _, _, after = path.partition(f"{api}/tree/")
        if path == api or path.startswith(f"{api}/revision/"):
            return self._json(self._information())
        if after:
            deep = "recursive=true" in query.lower()
            return self._json(self._entries(after.partition("/")[2], deep=deep))
        name = path.removeprefix(files).partition("/")[2]
        if path.startswith(files) and name in self.files:
            revision = path.removeprefix(files).partition("/")[0]
            body = self.files[name]
            tag = f'"{hashlib.sha1(body).hexdigest()}"'
            return 200, body, {"ETag": tag, "X-Repo-Commit": revision, "Accept-Ranges": "bytes"}
        return 404, b"{}", {"X-Error-Code": "EntryNotFound", "Content-Type": "application/json"}

    def _information(self) -> dict[str, Any]:
        names = [{"rfilename": name} for name in self.files]
        told = {"private": False, "disabled": False, "gated": False, "tags": []}
        return {"id": self.repo, "sha": self.revision, "siblings": names, **told}

    def _entries(self, folder: str, *, deep: bool) -> list[dict[str, Any]]:
        """Return the files and folders in a folder, "" for the root, or all below it."""
        found: dict[str, dict[str, Any]] = {}
        depth = len(PurePosixPath(folder).parts)
        for name, body in self.files.items():
            path = PurePosixPath(name)
            if folder and PurePosixPath(folder) not in path.parents:
                continue
            last = len(path.parts) if deep else depth + 1
            for length in range(depth + 1, last + 1):
                here = str(PurePosixPath(*path.parts[:length]))
                kind = "file" if here == name else "directory"
                oid, size = hashlib.sha1(body).hexdigest(), len(body) if kind == "file" else 0
                found[here] = {"type": kind, "oid": oid, "size": size, "path": here}
        return list(found.values())

    @staticmethod
    def _json(value: object) -> tuple[int, bytes, dict[str, str]]:
        return 200, json.dumps(value).encode(), {"Content-Type": "application/json"}


@contextmanager
def running(repo: str, files: Mapping[str, bytes], revision: str) -> Iterator[Hub]:
    """Serve a dataset until the block ends."""
    hub = Hub(repo, files, revision)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            status, body, headers = hub.answer(unquote(url.path), url.query)
            asked = self.headers.get("Range")
            if asked and status == 200 and self.command == "GET":
                first, last = asked.removeprefix("bytes=").split("-")
                end = min(int(last or len(body)), len(body) - 1)
                headers["Content-Range"] = f"bytes {first}-{end}/{len(body)}"
                status, body = 206, body[int(first) : end + 1]
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - what the server calls

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
