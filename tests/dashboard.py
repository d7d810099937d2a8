"""A dashboard that answers as Ray's does of one job and its log, over real connections that can be cut."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import ray
from ray.job_submission import JobStatus

from ray_jobs.dashboard import PatientClient

TICK_S = 0.005
PREFIX = "/team"  # of a proxy, with or without which it answers
ARRIVAL_S = 0.1  # before a cut: what a client has received and not read by then is lost to it
LARGEST_PIECE = 65536  # as Ray sends them


class Dashboard(ThreadingHTTPServer):
    """A job `job-1` that has written `log`, and what its cluster does with requests; use as a context.

    `on_request` is called with the number of each request for the log, from 0 on, and the log may grow in it; the number of
    bytes it returns is sent before the connection is cut, None: it is not cut.
    """

    daemon_threads = True

    def __init__(self, log: bytes = b"", on_request: Callable[[int], int | None] = lambda number: None) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.log, self.on_request = bytearray(log), on_request
        self.records: dict[str, dict[str, Any]] = {"job-1": record("job-1")}
        self.num_sent = self.num_asked = 0
        self.lines_asked: list[int] = []  # of each request for the log
        self.submitted: list[dict[str, Any]] = []
        self.on_submit: Callable[[int], bytes | None] = lambda number: (
            b""
        )  # an error's text; None: cut without an answer
        self.is_down = False
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def end_as(self, status: JobStatus, exit_code: int | None = None) -> None:
        self.records["job-1"] |= {"status": status.value, "driver_exit_code": exit_code}

    def client(self) -> PatientClient:
        return PatientClient(self.address)

    def __enter__(self) -> "Dashboard":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """The other side has left."""


def record(job_id: str, **given: Any) -> dict[str, Any]:
    facts = {
        "type": "SUBMISSION",
        "submission_id": job_id,
        "status": "RUNNING",
        "entrypoint": "python -m adadecode eval",
    }
    return facts | {"driver_node_id": "a" * 56, "start_time": 1_790_000_000_000, "metadata": {}} | given


class Answer(BaseHTTPRequestHandler):
    server: Any  # a Dashboard
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path.removeprefix(PREFIX))
        if self.server.is_down:
            self.close_connection = True
        elif url.path == "/api/version":
            self.answer(200, {"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": ""})
        elif url.path == "/api/jobs/":
            self.answer(200, list(self.server.records.values()))
        elif url.path.startswith("/api/jobs/"):
            found = self.server.records.get(url.path.rpartition("/")[2])
            self.answer(200 if found else 404, found or "Job does not exist")
        else:
            self.send_log(url.path.rpartition("/")[2], parse_qs(url.query))

    def do_POST(self) -> None:
        if self.server.is_down:
            self.close_connection = True
        elif urlsplit(self.path).path == "/api/jobs/":
            self.take_job(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        else:
            self.server.end_as(JobStatus.STOPPED)
            self.answer(200, {"stopped": True})

    def take_job(self, job: dict[str, Any]) -> None:
        """Makes a job of it; where `on_submit` says so, its client does not hear of that, or is refused."""
        server = self.server
        server.submitted.append(job)
        error = server.on_submit(len(server.submitted) - 1)
        if error:
            self.answer(500, error.decode())
            return
        job_id = job["submission_id"]
        server.records[job_id] = record(job_id, entrypoint=job["entrypoint"], metadata=job["metadata"])
        if error is None:
            self.close_connection = True
        else:
            self.answer(200, {"job_id": job_id, "submission_id": job_id})

    def answer(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_log(self, kind: str, query: dict[str, list[str]]) -> None:
        """The last lines; in a `stream` what is written afterwards too."""
        server = self.server
        left = server.on_request(server.num_asked)
        server.num_asked += 1
        num_lines = int(query["lines"][0])
        server.lines_asked.append(num_lines)
        log = bytes(server.log)
        start = 0 if num_lines < 0 else len(log) - len(b"".join(log.splitlines(keepends=True)[-num_lines:]))
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while True:
            piece = bytes(server.log[start : start + LARGEST_PIECE])[:left]
            if piece:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                server.num_sent += len(piece)
                start += len(piece)
                left = None if left is None else left - len(piece)
            if left == 0 or server.is_down:
                time.sleep(ARRIVAL_S)
                self.close_connection = True
                return
            if kind == "file" and start == len(server.log):
                self.wfile.write(b"0\r\n\r\n")
                return
            if not piece:
                time.sleep(TICK_S)
