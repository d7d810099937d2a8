"""A hub of models on this machine that counts what it is asked for."""

import contextlib
import hashlib
import json
import time
from collections import Counter
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import NamedTuple
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(NamedTuple):
    """Where it is, and how often each file was fetched."""

    address: str
    fetched: Counter[str]


@contextlib.contextmanager
def serving(folder: Path, name: str, slow_s: float = 0.0) -> Generator[Hub]:
    """Serves the files in `folder` as the model `name`; each takes `slow_s` to be fetched."""
    fetched = Counter[str]()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = urlsplit(self.path).path
            if path.startswith(f"/api/models/{name}"):
                self._api(path.removeprefix(f"/api/models/{name}").strip("/").partition("/")[0])
                return
            file = folder / path.removeprefix(f"/{name}/resolve/").partition("/")[2]
            if not path.startswith(f"/{name}/resolve/") or not file.is_file():
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            if self.command == "GET":
                fetched[file.name] += 1
                time.sleep(slow_s)
            content = file.read_bytes()
            self._send(200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'})

        def _api(self, what: str) -> None:
            files = sorted(path for path in folder.iterdir() if path.is_file())
            listed = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40} for file in files
            ]
            siblings = [{"rfilename": file.name} for file in files]
            found = {"tree": listed}.get(what, {"id": name, "sha": COMMIT, "siblings": siblings})
            self._send(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for header, value in {**headers, "X-Repo-Commit": COMMIT, "Content-Length": str(len(content))}.items():
                self.send_header(header, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Hub(f"http://127.0.0.1:{server.server_port}", fetched)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
