"""A small Hugging Face hub on loopback: the requests with which its package fetches files."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """repos: files by name, by `user/name`. asked: the paths of all requests. status: an error's
    number for all answers. cut: bytes that are missing at the end of each file. extra: headers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []
        self.status, self.cut, self.extra = 0, 0, {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def publish(self, name: str, folder: Path) -> None:
        """Take all files of a folder, as `hf upload` does."""
        files = [path for path in folder.rglob("*") if path.is_file()]
        self.repos[name] = {str(p.relative_to(folder)): p.read_bytes() for p in files}


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.server.asked.append(f"{self.command} {path}")
        if self.server.status:
            return self._answer(self.server.status, b"")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(?:tree|revision)/([^/]+)", path):
            return self._list(path, *match.groups())
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        repo, revision, file = match.groups() if match else ("", "", "")
        files = self._files(repo, revision)
        if files is None:
            return None
        if file not in files:
            return self._answer(
                404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
            )
        return self._answer(200, files[file], {"ETag": f'"{sha256(files[file]).hexdigest()}"'})

    def _files(self, repo: str, revision: str) -> dict[str, bytes] | None:
        files = self.server.repos.get(repo)
        if files is None:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", "v1", COMMIT):
            self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
            files = None
        return files

    def _list(self, path: str, repo: str, revision: str) -> None:
        files = self._files(repo, revision)
        if files is None:
            return
        if "/tree/" in path:
            rows = [{"type": "file", "path": f, "size": 1, "oid": "0"} for f in files]
            self._answer(200, json.dumps(rows).encode())
        else:
            about = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": f} for f in files]}
            self._answer(200, json.dumps(about).encode())

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        headers = {"X-Repo-Commit": COMMIT, **(headers or {}), **self.server.extra}
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) - self.server.cut])


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that answers until the block ends."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
