"""What a submitted job runs, and the exit code it ends with; no cluster."""

import shlex
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import requests
from ray.dashboard.modules.job.pydantic_models import JobDetails, JobType
from ray.job_submission import JobStatus

from adadecode.cli.main import main
from adadecode.cli.submit import with_absolute_out
from adadecode.errors import AdaDecodeError, UsageError
from ray_jobs.submit import MOST_S, NEVER_SENT, RETRY_S, PatientClient, entrypoint, exit_code, follow_job, submit_job
from tests.command_lines import parse, program_commands


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("eval", "--task demo --workers 4"),
        ("train-heads", "--task gsm8k --workers 4 --exits 4,8"),
        ("sweep", "--task demo --gammas 0.6,0.75 --workers 4"),
        ("tune", "--task demo-math --limit 8"),
    ],
)
def test_a_job_runs_the_module_with_the_same_command_and_out_made_absolute(command, flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = with_absolute_out([*flags.split(), "--out", "an out"])
    job = entrypoint(command, arguments)
    assert job.startswith(f"python -m adadecode {command} --task ")
    assert [[command, *arguments]] == list(program_commands(job))
    assert str(parse([command, *arguments])["out"]) == str(tmp_path / "an out")


def test_submit_takes_the_commands_that_make_results():
    submit = main.commands["submit"]
    (choice,) = (parameter.type for parameter in submit.params if parameter.name == "command")
    assert list(choice.choices) == ["eval", "train-heads", "sweep", "tune"]


@pytest.mark.parametrize("out", ["s3://bucket/run", "gs://bucket/run"])
def test_an_out_in_a_bucket_stays_as_it_is(out):
    assert shlex.split(entrypoint("sweep", with_absolute_out([f"--out={out}"])))[-2:] == ["--out", out]


@pytest.mark.parametrize(
    "address",
    [
        *("foo", "", "auto", "127.0.0.1:6379", "head.example:8265", "ray://head.example:10001", "ftp://head.example"),
        *("http://", "http://:8265", "http://127.0.0.1:x", "http://127.0.0.1:99999", "http://127.0.0.1:-1"),
        *("http://127.0.0.1:0", "https://[::1", "http:\x1b[2J\n"),
    ],
)
def test_an_address_of_another_form_is_refused_in_one_line_that_names_the_right_one(address):
    with pytest.raises(UsageError, match="such as http://HOST:8265") as caught:
        submit_job("eval", [], address, None, print)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:1", "http://a..b:8265", f"http://{'x' * 70}:8265", "https://[::1]:1"]
)
def test_an_address_where_no_dashboard_can_answer_is_one_line(address):
    with pytest.raises(UsageError, match="no Ray dashboard answers there"):
        submit_job("eval", [], address, None, print)


@pytest.fixture
def mute():
    """The address of a server that takes a connection and every byte, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_dashboard_that_takes_a_request_and_never_answers_is_not_waited_for_for_ever(mute, monkeypatch):
    monkeypatch.setattr("ray_jobs.submit.ANSWER_S", 0.1)
    with pytest.raises(UsageError, match="no Ray dashboard answers there"):
        submit_job("eval", [], mute, None, print)
    client = PatientClient.__new__(PatientClient)  # as if it had been reached before
    vars(client).update(_address=mute, _cookies=None, _headers={}, _verify=True)
    for request in (client.get_job_info, client.get_job_logs):
        with pytest.raises(OSError, match="timed out"):
            request("job-1")


@pytest.mark.parametrize(
    ("status", "driver_exit_code", "expected"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.FAILED, 3, 3),
        (JobStatus.FAILED, None, 1),
        (JobStatus.STOPPED, None, 1),
    ],
)
def test_the_exit_code_is_the_drivers_own_and_1_where_there_is_none(status, driver_exit_code, expected):
    assert exit_code(record(status, driver_exit_code)) == expected


def record(status: JobStatus, driver_exit_code: int | None = None) -> Any:
    details: Any = JobDetails  # most of its fields have defaults that types do not show
    return details(type=JobType.SUBMISSION, entrypoint="x", status=status, driver_exit_code=driver_exit_code)


LINES = [f"line {i} of the log\n" for i in range(6)]
RESET, REFUSED = aiohttp.ServerDisconnectedError(), requests.ConnectionError("connection refused\nby the peer")
GONE = RuntimeError("Request failed with status code 404: Job job-1 does not exist.")


class Wire:
    """A dashboard whose job has written all LINES and ends with the last of `cuts`, and the time.

    Each connection breaks after as many lines as the next of `cuts` says, for its reason; None: it does not break.
    """

    def __init__(self, *cuts: tuple[int, Exception | None]) -> None:
        self.cuts, self.said, self.pauses, self.num_whole = list(cuts), [], [], 0
        self.now = 0.0

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        num_lines, error = self.cuts.pop(0) if len(self.cuts) > 1 else self.cuts[0]
        for line in LINES[:num_lines]:
            yield line
        if error is not None:
            raise error

    def get_job_info(self, job_id: str) -> Any:
        return record(JobStatus.SUCCEEDED if len(self.cuts) == 1 else JobStatus.RUNNING)

    def get_job_logs(self, job_id: str) -> str:
        self.num_whole += 1
        return "".join(LINES)

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def follow(self) -> Any:
        client: Any = self
        return follow_job(client, "job-1", self.said.append, "http://head:8265", lambda: self.now, self.pause)


def test_a_log_is_shown_once_and_fetched_whole_once():
    wire = Wire((6, None))
    assert wire.follow().status == JobStatus.SUCCEEDED
    assert "".join(wire.said) == "".join(LINES)
    assert wire.num_whole == 1


@pytest.mark.parametrize("error", [RESET, REFUSED, RuntimeError("Request failed with status code 503: starting")])
def test_a_lost_connection_is_told_once_and_no_line_is_lost_or_there_twice(error):
    wire = Wire((2, error), (0, REFUSED), (1, error), (4, None), (6, None))
    assert wire.follow().status == JobStatus.SUCCEEDED
    (told,) = [
        line for line in wire.said if line.startswith("the connection to http://head:8265 is lost; trying again")
    ]
    assert told.count("\n") == 1
    wire.said.remove(told)
    assert "".join(wire.said) == "".join(LINES)


def test_a_connection_that_stays_lost_is_given_up_after_five_minutes_with_how_to_follow_the_job():
    wire = Wire((1, REFUSED), (0, REFUSED))
    with pytest.raises(
        AdaDecodeError, match=r"has not answered for 300 s; .* ray job logs --address .* --follow job-1"
    ):
        wire.follow()
    assert RETRY_S < wire.now <= RETRY_S + MOST_S
    assert wire.pauses == sorted(wire.pauses), "the pauses grow"
    assert len(wire.said) == 2


def test_a_job_that_the_head_no_longer_knows_is_one_line_at_once():
    wire = Wire((2, GONE))
    with pytest.raises(AdaDecodeError, match=r"knows no job job-1 any more: .* the same command continues"):
        wire.follow()
    assert wire.pauses == []


def test_the_security_page_lists_what_is_never_sent():
    text = (Path(__file__).parents[3] / "SECURITY.md").read_text(encoding="utf-8")
    told = [pattern for pattern in NEVER_SENT if f"`{pattern}`" in text]
    keys = {name for name in NEVER_SENT if name.startswith("id_")}
    assert set(NEVER_SENT) - set(told) == {".git/", ".venv/", "venv/", "__pycache__/", "/results/", *keys}, (
        "told in words"
    )
