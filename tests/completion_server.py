"""A small OpenAI-compatible server over real HTTP: its tokens follow from the prompt, its faults from a script.

It serves from a thread of a test, or as a process of its own: `server_process`.
"""

import hashlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

VOCAB_SIZE = 200
OWNED_BY = {"llama.cpp": "llamacpp", "vllm": "vllm", "sglang": "sglang", "other": "somebody"}  # by kind of server


def tokens_of(prompt: str, max_tokens: int) -> list[int]:
    """The tokens of this server's model: from a hash of the prompt, as many as are asked for."""
    digest = hashlib.sha256(prompt.encode()).digest()
    return [digest[idx % 32] % VOCAB_SIZE for idx in range(max_tokens)]


def text_of(token_id: int) -> str:
    return f"<{token_id}>"


@dataclass
class Asked:
    """One request for a completion, counted from 0 over the server's life."""

    number: int
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def is_chat(self) -> bool:
        return "messages" in self.body

    @property
    def prompt(self) -> str:
        """The plain prompt, or the messages of a chat as a template would put them."""
        if self.is_chat:
            return "".join(f"{message['role']}: {message['content']}\n" for message in self.body["messages"])
        return self.body["prompt"]


Fault = Callable[["Handler", Asked], None]  # answers in the server's place


@dataclass
class CompletionServer:
    """A server in a thread of this process, while the context lasts.

    `model` gives the tokens of a request; `fault` names for a request what goes wrong with it, None for nothing.
    """

    kind: str = "vllm"
    model: Callable[[Asked], list[int]] = lambda asked: tokens_of(asked.prompt, asked.body["max_tokens"])
    fault: Callable[[Asked], Fault | None] = lambda asked: None
    models: list[dict[str, Any]] | None = None
    key: str | None = None
    leaves_out_ids: bool = False
    paths: tuple[str, ...] = ("/v1/completions", "/v1/chat/completions")
    port: int = 0
    asked: list[Asked] = field(default_factory=list[Asked])
    is_over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", self.port), type("Bound", (Handler,), {"owner": self}))
        self._http.daemon_threads = True
        self._http.handle_error = lambda request, client_address: None  # clients go away and faults are meant
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def note(self, body: dict[str, Any], headers: dict[str, str]) -> Asked:
        with self._lock:
            self.asked.append(Asked(len(self.asked), body, headers))
            return self.asked[-1]

    def listed(self) -> list[dict[str, Any]]:
        return self.models or [{"id": "tiny", "object": "model", "owned_by": OWNED_BY[self.kind]}]

    def chunks(self, asked: Asked) -> Iterator[dict[str, Any]]:
        """What a stream of this kind of server holds."""
        ids = self.model(asked)
        yield from (self.chat_chunks if asked.is_chat else self.text_chunks)(asked, ids)
        yield {"choices": [], "usage": {"prompt_tokens": len(asked.prompt), "completion_tokens": len(ids)}}

    def text_chunks(self, asked: Asked, ids: list[int]) -> Iterator[dict[str, Any]]:
        for idx, token_id in enumerate(ids):
            choice: dict[str, Any] = {"index": 0, "text": text_of(token_id), "finish_reason": None}
            chunk: dict[str, Any] = {"object": "text_completion", "choices": [choice]}
            if self.kind in ("vllm", "sglang") and asked.body.get("return_token_ids"):
                choice["token_ids"] = [] if self.leaves_out_ids and idx % 2 else [token_id]
                if idx == 0:
                    choice["prompt_token_ids"] = list(asked.prompt.encode())
            if self.kind in ("vllm", "sglang") and idx == len(ids) - 1:
                choice["finish_reason"] = "length"
            if self.kind == "llama.cpp" and asked.body.get("verbose"):
                chunk["__verbose"] = {"tokens": [token_id]}
            yield chunk
        if self.kind in ("llama.cpp", "other"):
            last: dict[str, Any] = {"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}
            if self.kind == "llama.cpp":
                last |= {"timings": {"draft_n": 4, "draft_n_accepted": 3}}
            yield last

    def chat_chunks(self, asked: Asked, ids: list[int]) -> Iterator[dict[str, Any]]:
        """A role alone, the tokens, the end alone; vLLM has ids in the choices, SGLang all of them after the end."""
        content = None if self.kind == "llama.cpp" else ""
        first: dict[str, Any] = {"choices": [chat_choice({"role": "assistant", "content": content})]}
        has_ids = self.kind == "vllm" and asked.body.get("return_token_ids")
        yield first | ({"prompt_token_ids": list(asked.prompt.encode())} if has_ids else {})
        for token_id in ids:
            choice = chat_choice({"content": text_of(token_id)})
            yield {"choices": [choice | ({"token_ids": [token_id]} if has_ids else {})]}
        yield {"choices": [chat_choice({}, "length")]}
        if self.kind == "sglang" and asked.body.get("return_output_ids_in_sglext"):
            yield {"choices": [], "sglext": {"output_ids": [ids], "input_ids": list(asked.prompt.encode())}}


def chat_choice(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish}


class Handler(BaseHTTPRequestHandler):
    """Answers as the `owner` says."""

    owner: CompletionServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.owner.key is not None and self.headers.get("Authorization") != f"Bearer {self.owner.key}":
            self.answer(401, f"wrong key: {self.headers.get('Authorization')}")
        elif self.path == "/v1/models":
            self.answer(200, json.dumps({"object": "list", "data": self.owner.listed()}), "application/json")
        else:
            self.answer(404, "no such page")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = self.owner.note(body, dict(self.headers))
        if self.path not in self.owner.paths:
            self.answer(404, "no such page")
            return
        if self.owner.key is not None and self.headers.get("Authorization") != f"Bearer {self.owner.key}":
            self.answer(401, f"wrong key: {self.headers.get('Authorization')}")
            return
        fault = self.owner.fault(asked)
        if fault is not None:
            fault(self, asked)
        else:
            self.begin_stream()
            for chunk in self.owner.chunks(asked):
                self.send_event(json.dumps(chunk))
            self.send_event("[DONE]")
            self.end_stream()

    def answer(self, status: int, text: str, kind: str = "text/plain", **headers: str) -> None:
        content = text.encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def send_event(self, payload: str) -> None:
        self.send_piece(f"data: {payload}\n\n".encode())

    def send_piece(self, piece: bytes) -> None:
        self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        self.wfile.flush()

    def end_stream(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

    def drop(self) -> None:
        """Resets the connection, as a server does that dies."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True


def begun(handler: Handler, asked: Asked, num_chunks: int = 2) -> None:
    """The first chunks of a right answer."""
    handler.begin_stream()
    for chunk, _ in zip(handler.owner.chunks(asked), range(num_chunks), strict=False):
        handler.send_event(json.dumps(chunk))


def html(handler: Handler, asked: Asked) -> None:
    handler.answer(200, "<html><body>Bad gateway</body></html>", "text/html")


def no_utf8(handler: Handler, asked: Asked) -> None:
    begun(handler, asked)
    handler.send_piece(b'data: {"choices": [{"text": "\xff\xfe"}]}\n\n')
    handler.end_stream()


def half_a_pair(handler: Handler, asked: Asked) -> None:
    """A whole answer, with a text that is JSON and no Unicode."""
    begun(handler, asked)
    handler.send_event('{"choices": [{"text": "\\ud83d", "token_ids": [1], "finish_reason": "length"}]}')
    handler.send_event("[DONE]")
    handler.end_stream()


def cut_json(handler: Handler, asked: Asked) -> None:
    begun(handler, asked)
    handler.send_event('{"choices": [{"text": "<1')
    handler.end_stream()


def ids_out_of_range(handler: Handler, asked: Asked) -> None:
    begun(handler, asked)
    handler.send_event(json.dumps({"choices": [{"text": "x", "token_ids": [2**31]}]}))
    handler.end_stream()


def too_many(handler: Handler, asked: Asked) -> None:
    """An answer of one token more than was asked for."""
    longer = Asked(asked.number, asked.body | {"max_tokens": asked.body["max_tokens"] + 1}, asked.headers)
    begun(handler, longer, 2**31)
    handler.send_event("[DONE]")
    handler.end_stream()


def refused(handler: Handler, asked: Asked) -> None:
    handler.answer(400, json.dumps({"error": {"message": "the prompt is too long"}}), "application/json")


def overloaded(handler: Handler, asked: Asked) -> None:
    handler.answer(503, "loading")


def rate_limited(seconds: str) -> Fault:
    return lambda handler, asked: handler.answer(429, "slow down", Retry_After=seconds)


def no_json(handler: Handler, asked: Asked) -> None:
    begun(handler, asked)
    handler.send_event("{choices: oops")
    handler.end_stream()


def wrong_schema(handler: Handler, asked: Asked) -> None:
    begun(handler, asked)
    handler.send_event(json.dumps({"choices": [{"delta": {"content": "a chat"}}]}))
    handler.end_stream()


def error_event(handler: Handler, asked: Asked) -> None:
    begun(handler, asked)
    handler.send_event(json.dumps({"error": {"message": f"engine died; {asked.headers.get('Authorization')}"}}))
    handler.end_stream()


def truncated(handler: Handler, asked: Asked) -> None:
    begun(handler, asked)
    handler.end_stream()


def died(handler: Handler, asked: Asked) -> None:
    begun(handler, asked)
    handler.drop()


def stalled(handler: Handler, asked: Asked) -> None:
    begun(handler, asked)
    handler.owner.is_over.wait()
    handler.close_connection = True


def kept_alive(handler: Handler, asked: Asked) -> None:
    """Nothing but comments, as a proxy sends before a server that hangs."""
    begun(handler, asked)
    while not handler.owner.is_over.wait(0.02):
        try:
            handler.send_piece(b": still here\n\n")
        except OSError:
            break
    handler.close_connection = True


def slow(seconds: float) -> Fault:
    """A right answer that takes a while."""

    def answer(handler: Handler, asked: Asked) -> None:
        handler.owner.is_over.wait(seconds)
        begun(handler, asked, 2**31)
        handler.send_event("[DONE]")
        handler.end_stream()

    return answer


@dataclass
class ServerProcess:
    """A server in a process of its own; `log` has a line for each request it was sent, its prompt."""

    url: str
    process: "subprocess.Popen[str]"
    log: Path

    def asked(self) -> list[str]:
        """The prompts of the requests so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def wait_for(self, num_asked: int, timeout_s: float = 60.0) -> None:
        """Returns when so many requests have come."""
        until = time.monotonic() + timeout_s
        while len(self.asked()) < num_asked:
            assert time.monotonic() < until, self.asked()
            time.sleep(0.01)

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)


@contextmanager
def server_process(log: Path, *, port: int = 0, delay_s: float = 0.0, key: str = "") -> Generator[ServerProcess]:
    """A server like vLLM's that takes `delay_s` for each request, as a process; killed at the end, if it was not before."""
    log.touch()
    command = [sys.executable, "-m", "tests.completion_server", str(port), str(delay_s), str(log), key]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield ServerProcess(process.stdout.readline().strip(), process, log)
        finally:
            process.kill()


def main() -> None:
    port, delay_s, log, key = sys.argv[1:]
    answer = slow(float(delay_s))

    def noted(asked: Asked) -> Fault:
        with Path(log).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asked.prompt) + "\n")
        return answer

    with CompletionServer(fault=noted, port=int(port), key=key or None) as server:
        print(server.url, flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
