"""What cannot be certified is one line and exit code 2; keys and passwords are nowhere."""

import json
import socket

import pytest

from adadecode.runs.folder import read_samples
from tests import completion_server as faults
from tests.completion_server import CompletionServer

KEY = "sk-7e2f90aa-secret"


def refusal(found) -> str:
    """The one line with which a certification was refused."""
    assert found.result.exit_code == 2, found.said
    assert not (found.folder / "run.json").exists()
    lines = found.result.stderr.splitlines()
    assert len(lines) == 1, found.said
    return lines[0]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000", "'localhost:8000' is no URL of a server: give http://HOST:PORT or https://HOST"),
        ("ftp://host/v1", "'ftp://host/v1' is no URL of a server"),
        ("http://", "'http://' is no URL of a server"),
        (f"http://host/v1?key={KEY}", "'http://host/v1' is no URL of a server"),
        (f"http://user:{KEY}/x@host/v1", "'host/v1' is no URL of a server"),
        (f"user:{KEY}@host", "'host' is no URL of a server"),
        ("http://no-such-host.invalid", "http://no-such-host.invalid/v1 does not answer: no connection: "),
    ],
)
@pytest.mark.parametrize("side", ["baseline", "candidate"])
def test_a_url_that_is_none_is_one_line_without_its_password(side, url, message, certify):
    with CompletionServer() as server:
        line = refusal(certify(*((url, server) if side == "baseline" else (server, url))))
    assert f"--{side} " in line
    assert message in line
    assert KEY not in line


def test_a_port_at_which_nobody_listens_is_one_line(certify):
    with socket.socket() as taken, CompletionServer() as server:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        line = refusal(certify(server, url))
    assert f"--candidate {url}/v1 does not answer: no connection: " in line


def test_an_endpoint_that_is_none_is_one_line(certify):
    with CompletionServer() as server:
        line = refusal(certify(server, f"{server.url}/other"))
    assert "is no OpenAI-compatible endpoint: GET /models gave status 404: no such page; give the URL whose" in line


@pytest.mark.parametrize("models", [[{"object": "model"}], [3], [{"id": 3}]])
def test_a_server_without_a_model_is_one_line(models, certify):
    with CompletionServer() as server, CompletionServer(models=models) as empty:
        assert "serves no model: load one" in refusal(certify(server, empty))


def test_a_model_that_the_server_lacks_is_one_line_with_the_nearest(certify):
    models = [{"id": "qwen3-0.6b"}, {"id": "llama-1b"}]
    with CompletionServer() as server, CompletionServer(models=models) as other:
        line = refusal(certify(server, other))
        assert "serves qwen3-0.6b, llama-1b: choose one with --candidate-model" in line
        line = refusal(certify(server, other, candidate_model="qwen-0.6b"))
        assert "--candidate-model 'qwen-0.6b': " in line
        assert line.endswith("has no such model; did you mean 'qwen3-0.6b'?")
        line = refusal(certify(server, other, baseline_model="gpt"))
        assert "--baseline-model 'gpt': " in line
        assert line.endswith("has no such model; it serves tiny")
        assert certify(server, other, candidate_model="llama-1b").result.exit_code == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"passes": 1}, "--passes 1: "),
        ({"concurrency": 0}, "--concurrency 0: "),
        ({"api": "chats"}, "--api 'chats': "),
        ({"workers": 0, "concurrency": 2}, "--workers 0: "),
        ({"workers": 2}, "--workers 2: --concurrency 1 cannot be shared among them equally; give a multiple of 2"),
        ({"workers": 3, "concurrency": 8}, "such as --concurrency 9"),
        ({"address": "host:6379"}, "--address host:6379: without --workers no cluster is used; give both or neither"),
        ({"server": "tgi"}, "--server 'tgi': "),
        ({"max_errors": "lots"}, "--max-errors 'lots': "),
        ({"task": "gsm9k"}, "--task gsm9k: unknown task"),
    ],
)
def test_a_bad_flag_is_one_line(changed, message, certify):
    with CompletionServer() as server:
        assert message in refusal(certify(server, server, **changed))


def test_a_folder_of_another_certification_is_refused(certify):
    with CompletionServer() as server:
        assert certify(server, server).result.exit_code == 0
        found = certify(server, server, max_new_tokens=9)
    assert found.result.exit_code == 2
    assert "belongs to another run" in found.said
    assert "different: max_new_tokens" in found.said


def test_a_key_comes_from_the_environment_and_is_written_nowhere(certify, monkeypatch):
    monkeypatch.setenv("ADADECODE_CANDIDATE_API_KEY", KEY)
    with CompletionServer() as baseline, CompletionServer(key=KEY) as candidate:
        candidate.fault = lambda asked: faults.error_event if asked.number == 5 else None
        found = certify(baseline.url.replace("//", f"//user:{KEY}@"), candidate)
    assert found.result.exit_code == 1
    assert "engine died; Bearer HIDDEN" in found.said
    assert candidate.asked[0].headers["Authorization"] == f"Bearer {KEY}"
    assert baseline.asked[0].headers["Authorization"].startswith("Basic ")
    assert KEY not in found.said
    assert [file for file in found.folder.rglob("*") if file.is_file() and KEY.encode() in file.read_bytes()] == []


def test_no_half_of_a_key_is_shown_where_what_a_server_says_is_cut(certify, monkeypatch):
    monkeypatch.setenv("ADADECODE_CANDIDATE_API_KEY", KEY)

    def repeats(length: int) -> faults.Fault:
        return lambda handler, asked: handler.answer(500, "x" * length + str(handler.headers["Authorization"]))

    with CompletionServer() as baseline, CompletionServer(key=KEY) as candidate:
        candidate.fault = lambda asked: repeats(130 + 2 * asked.number)
        found = certify(baseline, candidate)
    messages = {row["error_message"] for row in read_samples(found.folder).to_pylist() if row["status"] == "error"}
    assert len(messages) > 10
    assert [message for message in messages if KEY[:4] in message] == []


def test_a_key_that_is_missing_or_wrong_is_one_line_that_names_the_variable(certify, monkeypatch):
    with CompletionServer() as baseline, CompletionServer(key=KEY) as candidate:
        line = refusal(certify(baseline, candidate))
        assert "asks for a key (status 401: wrong key: None): set ADADECODE_CANDIDATE_API_KEY" in line
        monkeypatch.setenv("ADADECODE_CANDIDATE_API_KEY", "sk-other-secret")
        line = refusal(certify(baseline, candidate))
    assert "status 401: wrong key: Bearer HIDDEN" in line


@pytest.mark.parametrize("url", ["", "  "])
def test_an_empty_url_is_one_line(url, certify):
    assert "--baseline '" in refusal(certify(url, "http://host"))


def test_a_url_that_is_missing_is_one_line(usage_error):
    assert "--candidate: Field required" in usage_error("certify", "--baseline", "http://host")


@pytest.mark.parametrize(
    ("task", "row", "said"),
    [
        (
            "spec_bench",
            {"question_id": 81, "category": "writing", "turns": ["Write a story.", "Shorter."]},
            "--task spec_bench: sample 'spec_bench-81' is a conversation of 2 turns, and servers are asked for one answer",
        ),
        (
            "jsonl",
            {"id": "a", "messages": [{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "Hello."}]},
            "--task jsonl: sample 'a' is a conversation of 2 messages, and has no plain prompt to continue: give --api ",
        ),
    ],
)
def test_a_conversation_is_refused_before_anything_is_asked(task, row, said, certify, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(row))
    with CompletionServer() as server:
        line = refusal(certify(server, server, task=task, data_file=rows))
        assert server.asked == []
    assert said in line
