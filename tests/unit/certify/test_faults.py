"""Servers that fail in mid-run: an error row with the reason, a bounded number of tries, and the same command finishes."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from adadecode.certify.endpoint import retry_after_s
from adadecode.runs.folder import read_samples
from tests import completion_server as faults
from tests.completion_server import CompletionServer, ServerProcess, server_process
from tests.unit.certify.conftest import NUM_PROMPTS, Certified

FAULTS = {
    "html": (faults.html, "BadAnswer", "the answer is text/html, not an event stream: <html><body>Bad gateway"),
    "no json": (faults.no_json, "BadAnswer", "an event is not JSON: {choices: oops"),
    "schema": (faults.wrong_schema, "BadAnswer", "a choice has no text: {'delta': {'content': 'a chat'}}"),
    "error event": (faults.error_event, "ServerError", "the server says: {'message': 'engine died; "),
    "truncated": (faults.truncated, "TruncatedStream", "the stream ended after 2 chunks, before the output did"),
    "died": (faults.died, "ServerUnreachable", "the connection broke: "),
    "stalled": (faults.stalled, "ServerTimeout", "nothing came for 0.3 s (--timeout)"),
    "kept alive": (faults.kept_alive, "ServerTimeout", "the output was not done in 0.3 s (--deadline)"),
    "overloaded": (faults.overloaded, "ServerError", "status 503: loading"),
    "rate limit": (faults.rate_limited("3600"), "RateLimited", "status 429: slow down; it asks to wait 3600 s"),
    "refused": (faults.refused, "RequestRefused", 'status 400: {"error": {"message": "the prompt is too long"}}'),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("side", ["baseline", "candidate"])
def test_a_fault_is_an_error_row_with_its_reason_and_the_same_command_finishes(name, side, certify):
    fault, kind, reason = FAULTS[name]
    limits = {"timeout": 0.3} if name == "stalled" else {"deadline": 0.3} if name == "kept alive" else {}
    with CompletionServer() as baseline, CompletionServer() as candidate:
        broken = baseline if side == "baseline" else candidate
        broken.fault = lambda asked: fault if asked.number == 5 else None
        found = certify(baseline, candidate, **limits)
        assert found.result.exit_code == 1, found.said
        assert "1 rows are errors, so no verdict is of all prompts; remove the cause and go on with: " in found.said
        failed = [row for row in read_samples(found.folder).to_pylist() if row["status"] == "error"]
        assert [(row["method"], row["error_type"], row["finish_reason"]) for row in failed] == [(side, kind, "error")]
        assert failed[0]["error_message"].startswith(reason)
        assert failed[0]["e2e_s"] is None
        num_asked = len(baseline.asked) + len(candidate.asked)
        again = certify(baseline, candidate, **limits)
    assert again.result.exit_code == 0, again.said
    assert "verdict: exact" in again.said
    assert f"{NUM_PROMPTS - 1} prompts done before, 1 to do" in again.said
    assert len(baseline.asked) + len(candidate.asked) == num_asked + 4  # one prompt, 2 passes, 2 servers
    assert read_samples(again.folder).num_rows == NUM_PROMPTS * 4


IN_AN_HOUR = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
RUBBISH = {  # by the request that it answers, one of each of six prompts
    0: (faults.no_utf8, "BadAnswer", "a line of the stream is no UTF-8"),
    2: (faults.half_a_pair, "BadAnswer", "the text has half of a surrogate pair"),
    4: (faults.cut_json, "BadAnswer", 'an event is not JSON: {"choices": [{"text": "<1'),
    6: (faults.ids_out_of_range, "BadAnswer", "token ids are no list of numbers in their range: [2147483648]"),
    8: (faults.too_many, "BadAnswer", "9 tokens came where at most 8 were asked for"),
    10: (faults.rate_limited(IN_AN_HOUR), "RateLimited", "status 429: slow down; it asks to wait 3"),
}


def test_rubbish_of_every_kind_is_error_rows_and_the_rest_goes_on(certify):
    with CompletionServer() as baseline, CompletionServer() as candidate:
        candidate.fault = lambda asked: RUBBISH[asked.number][0] if asked.number in RUBBISH else None
        found = certify(baseline, candidate)
        assert found.result.exit_code == 1, found.said
        failed = [row for row in read_samples(found.folder).to_pylist() if row["status"] == "error"]
        assert [row["error_type"] for row in failed] == [kind for _, kind, _ in RUBBISH.values()]
        for row, (_, _, reason) in zip(failed, RUBBISH.values(), strict=True):
            assert row["error_message"].startswith(reason)
        again = certify(baseline, candidate)
    assert again.result.exit_code == 0, again.said
    assert f"{NUM_PROMPTS - len(RUBBISH)} prompts done before, {len(RUBBISH)} to do" in again.said


def test_what_retry_after_says_is_seconds_or_a_date():
    assert [retry_after_s(header) for header in ("0", "7", "soon", "-1", "1.5", "", None)] == [0, 7, *[None] * 5]
    ahead, behind = (datetime.now(UTC) + timedelta(seconds=seconds) for seconds in (90, -90))
    wait_s = retry_after_s(format_datetime(ahead, usegmt=True))
    assert wait_s is not None
    assert 80 < wait_s <= 90
    assert retry_after_s(format_datetime(behind, usegmt=True)) == 0
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00") == 0  # without a zone


def interrupted(server: ServerProcess, number: int, run: Callable[[], Certified]) -> Certified:
    """What `run` returns, while which the server's process gets a signal in mid-run."""
    before = len(server.asked())

    def interrupt() -> None:
        server.wait_for(before + 7)
        server.signal(number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    found = run()
    thread.join()
    return found


def test_a_server_process_that_stalls_and_then_is_killed_costs_only_what_failed(certify, tmp_path):
    limits = {"timeout": 0.3, "max_errors": "1"}
    with server_process(tmp_path / "b.log") as baseline, server_process(tmp_path / "c.log", delay_s=0.02) as candidate:
        found = interrupted(candidate, signal.SIGSTOP, lambda: certify(baseline.url, candidate.url, **limits))
        assert found.result.exit_code == 1, found.said
        assert {row["error_type"] for row in failures(found)} == {"ServerTimeout"}
        candidate.signal(signal.SIGCONT)
        num_asked = len(candidate.asked())
        found = interrupted(candidate, signal.SIGKILL, lambda: certify(baseline.url, candidate.url, **limits))
        assert found.result.exit_code == 1, found.said
        assert {row["error_type"] for row in failures(found)} == {"ServerUnreachable"}
        assert len(candidate.asked()) > num_asked
        port = urlsplit(candidate.url).port or 0
        num_done = NUM_PROMPTS - len({row["sample_id"] for row in failures(found)}) - missing(found)
        with server_process(tmp_path / "d.log", port=port) as restarted:
            again = certify(baseline.url, restarted.url, **limits)
            assert again.result.exit_code == 0, again.said
            assert len(restarted.asked()) == (NUM_PROMPTS - num_done) * 2
    assert f"{num_done} prompts done before, {NUM_PROMPTS - num_done} to do" in again.said


def failures(found: Certified) -> list[dict]:
    return [row for row in read_samples(found.folder).to_pylist() if row["status"] == "error"]


def missing(found: Certified) -> int:
    """How many prompts have no rows."""
    return NUM_PROMPTS - len({row["sample_id"] for row in read_samples(found.folder).to_pylist()})


@pytest.mark.parametrize("name", [name for name in FAULTS if name not in ("refused", "rate limit")])
def test_what_another_try_mends_leaves_no_trace(name, certify):
    fault = FAULTS[name][0]
    limits = {"timeout": 0.3} if name == "stalled" else {"deadline": 0.3} if name == "kept alive" else {}
    with CompletionServer() as baseline, CompletionServer() as candidate:
        candidate.fault = lambda asked: fault if asked.number == 3 else None
        found = certify(baseline, candidate, retries=1, **limits)
    assert found.result.exit_code == 0, found.said
    assert len(candidate.asked) == NUM_PROMPTS * 2 + 1


def test_a_limit_of_requests_is_waited_for_as_long_as_the_server_asks(certify):
    with CompletionServer() as baseline, CompletionServer() as candidate:
        candidate.fault = lambda asked: faults.rate_limited("0") if asked.number < 3 else None
        found = certify(baseline, candidate, retries=3)
    assert found.result.exit_code == 0, found.said


def test_what_the_request_is_at_fault_for_is_not_tried_again(certify):
    with CompletionServer() as baseline, CompletionServer(fault=lambda asked: faults.refused) as candidate:
        found = certify(baseline, candidate, retries=3)
    assert found.result.exit_code == 1
    assert "verdict: none: no prompt has outputs to compare" in found.said
    assert len(candidate.asked) == NUM_PROMPTS * 2


def test_a_server_that_dies_for_good_stops_the_run_and_the_same_command_finishes_it(certify):
    with CompletionServer() as baseline, CompletionServer() as candidate:
        candidate.fault = lambda asked: faults.died if asked.number >= 4 else None
        found = certify(baseline, candidate, max_errors="1", retries=1)
        assert found.result.exit_code == 1, found.said
        assert "2 of 10 prompts failed, and --max-errors 1 allows 1: what is finished stays" in found.said
        assert found.run["status"] == "incomplete"
        assert len(candidate.asked) == 4 + 2 + 3  # the first that fails has two tries, those after it one
        candidate.fault = lambda asked: None
        again = certify(baseline, candidate, max_errors="1", retries=1)
    assert again.result.exit_code == 0, again.said
    assert "2 prompts done before, 8 to do" in again.said


def test_a_driver_that_is_killed_is_followed_by_the_same_command(prompts, tmp_path):
    out = tmp_path / "run"
    with CompletionServer() as baseline, CompletionServer() as candidate:
        candidate.fault = lambda asked: faults.stalled if asked.number == 7 else None
        flags = f"--baseline {baseline.url} --candidate {candidate.url} --task jsonl --data-file {prompts} --passes 2"
        command = [sys.executable, "-m", "adadecode", "certify", *flags.split(), "--out", str(out)]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            while len(candidate.asked) < 8:
                assert process.poll() is None, process.stdout
                candidate.is_over.wait(0.02)
            process.send_signal(signal.SIGKILL)
        assert not (out / "summary.parquet").exists()
        commits = sorted(file.name for file in (out / "commits").iterdir())
        assert commits == ["00000.json", "00001.json", "00002.json"]
        before = len(candidate.asked)
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        asked_again = {asked.prompt for asked in candidate.asked[before:]}
    assert asked_again == {f"prompt {idx}" for idx in range(3, NUM_PROMPTS)}
    assert json.loads((out / "run.json").read_text())["verdict"]["outcome"] == "exact"


def test_ctrl_c_leaves_what_is_finished_and_says_how_to_go_on(prompts, tmp_path):
    out = tmp_path / "run"
    with CompletionServer() as baseline, CompletionServer() as candidate:
        candidate.fault = lambda asked: faults.stalled if asked.number == 4 else None
        flags = f"--baseline {baseline.url} --candidate {candidate.url} --task jsonl --data-file {prompts} --passes 2"
        command = [sys.executable, "-m", "adadecode", "certify", *flags.split(), "--grace", "0", "--out", str(out)]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            while len(candidate.asked) < 5:
                candidate.is_over.wait(0.02)
            process.send_signal(signal.SIGINT)
            said, problems = process.communicate(timeout=60)
    assert process.returncode == 4, problems
    assert "32 planned rows are missing; go on with: " in problems
    assert "2 of 2 prompts equal in all passes" in said
    assert read_samples(out).num_rows == 8
