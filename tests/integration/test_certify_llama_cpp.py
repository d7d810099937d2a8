"""`adadecode certify` of a real server: llama.cpp's own, from the wheel of xllamacpp, on a GGUF file written here."""

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from adadecode.certify.compare import SIDES
from adadecode.cli.main import main
from adadecode.runs.folder import read_samples
from tests.folders import write_prompts
from tests.gguf_files import tiny_gguf_lm, write_gguf

xllamacpp: Any = pytest.importorskip(
    "xllamacpp", reason="the package xllamacpp, which has llama.cpp's server, is missing"
)

MAX_NEW_TOKENS = 48
PROMPTS = [f"ab c{chr(65 + idx)} ab c{chr(65 + idx)} {chr(97 + idx % 9)}" for idx in range(25)]
PERIOD = 50  # of the outputs in which the proxy changes a token


def serve(path: Path, ngrams: bool) -> Any:
    """llama.cpp's server in this process, with its own n-gram speculation or without any."""
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(path), 1024, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.fit_params, params.cache_ram_mib, params.verbosity = False, 0, 0
    if ngrams:
        params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
        params.speculative.ngram_simple.size_n, params.speculative.ngram_simple.size_m = 2, 4
    return xllamacpp.Server(params)


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lm = tiny_gguf_lm(max_position_embeddings=512)
    return write_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", lm)


@pytest.fixture(scope="module")
def plain(gguf_file: Path) -> Iterator[str]:
    """The URL of a server without speculation."""
    server = serve(gguf_file, ngrams=False)
    yield server.listening_address
    del server


@pytest.fixture
def certify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    prompts = write_prompts(tmp_path / "prompts.jsonl", PROMPTS)

    def run(baseline: str, candidate: str, *flags: str) -> Result:
        data = ["--task", "jsonl", "--data-file", str(prompts), "--max-new-tokens", str(MAX_NEW_TOKENS)]
        servers = ["--baseline", baseline, "--candidate", candidate]
        return CliRunner().invoke(main, ["certify", *servers, *data, "--passes", "2", *flags])

    return run


class Proxy(BaseHTTPRequestHandler):
    """Hands everything on to the server at `behind`, and changes one token in one of PERIOD outputs."""

    behind: str
    num_outputs = 0
    lock = threading.Lock()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.hand_on(None, changes=False)

    def do_POST(self) -> None:
        with self.lock:
            type(self).num_outputs += 1
            changes = type(self).num_outputs % PERIOD == 0
        self.hand_on(self.rfile.read(int(self.headers["Content-Length"])), changes)

    def hand_on(self, body: bytes | None, changes: bool) -> None:
        connection = http.client.HTTPConnection(urlsplit(self.behind).netloc)
        connection.request(self.command, self.path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers["Content-Type"])
        self.end_headers()
        for number, line in enumerate(answer):
            self.wfile.write(with_another_token(line) if changes and number == 6 else line)
        connection.close()


def with_another_token(line: bytes) -> bytes:
    """The event of one token, with the token after it in the vocabulary."""
    chunk = json.loads(line.removeprefix(b"data: "))
    (token_id,) = chunk["__verbose"]["tokens"]
    chunk["__verbose"]["tokens"], chunk["choices"][0]["text"] = [(token_id + 1) % 94], chr(33 + (token_id + 1) % 94)
    return b"data: " + json.dumps(chunk).encode() + b"\n"


@pytest.fixture
def proxy(plain: str) -> Iterator[str]:
    handler = type("Bound", (Proxy,), {"behind": plain})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_server_without_speculation_is_exact_against_itself(certify, plain, tmp_path):
    result = certify(plain, plain, "--out", str(tmp_path / "run"), "--concurrency", "2")
    assert result.exit_code == 0, result.output
    assert f"baseline: {plain}/v1, llama.cpp, model " in result.output
    assert "verdict: exact" in result.output
    rows = read_samples(tmp_path / "run").to_pylist()
    assert len(rows) == len(PROMPTS) * 2 * 2
    assert all(row["output_token_ids"] and row["prompt_len"] and row["num_drafted"] is None for row in rows)
    assert all(row["finish_reason"] == "eos" or row["output_len"] == MAX_NEW_TOKENS for row in rows)


def test_its_own_speculation_by_ngrams_drafts_and_is_reported(certify, plain, gguf_file, tmp_path):
    server = serve(gguf_file, ngrams=True)
    result = certify(plain, server.listening_address, "--out", str(tmp_path / "run"))
    baseline, candidate = pq.read_table(tmp_path / "run" / "summary.parquet").to_pylist()
    assert result.exit_code in (0, 3), result.output  # what it is is reported: batches of a draft may round otherwise
    assert ("verdict: exact" in result.output) == (result.exit_code == 0)
    assert (baseline["num_drafted"], candidate["num_drafted"] > candidate["num_accepted"] > 0) == (None, True)
    assert candidate["num_parity_checked"] == candidate["n"] == len(PROMPTS) * 2
    assert candidate["speedup_geomean"] > 0
    del server


def test_its_chat_completions_are_compared_by_text_and_count_drafts(certify, plain, gguf_file, tmp_path):
    server = serve(gguf_file, ngrams=True)
    result = certify(plain, server.listening_address, "--api", "chat", "--limit", "8", "--out", str(tmp_path / "run"))
    assert result.exit_code in (0, 3), result.output  # as above
    assert "its /v1/chat/completions gives no token ids: texts are compared" in result.output
    assert "compared by text, not by token ids, where a side gave none: baseline on 16 of 16" in result.output
    rows = read_samples(tmp_path / "run").to_pylist()
    assert all(row["status"] == "ok" and row["output_text"] and row["output_len"] for row in rows)
    drafted = {side: sum(row["num_drafted"] or 0 for row in rows if row["method"] == side) for side in SIDES}
    assert (drafted["baseline"], drafted["candidate"] > 0) == (0, True)
    del server


def test_a_proxy_that_changes_one_token_in_fifty_outputs_is_found(certify, plain, proxy, tmp_path):
    result = certify(plain, proxy, "--out", str(tmp_path / "run"))
    assert result.exit_code == 3, result.output
    (line,) = [
        row for row in pq.read_table(tmp_path / "run" / "verify.parquet").to_pylist() if row["parity"] != "exact"
    ]
    assert (line["method"], line["first_diff_idx"]) == ("candidate", 3)
    assert line["method_token_id"] == (line["vanilla_token_id"] + 1) % 94
    assert f"candidate differs from baseline at token 3: {line['method_token_id']}, not " in result.output
