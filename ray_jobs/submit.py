"""Submits a command as a Ray job, follows its log and returns the driver's own exit code."""

import asyncio
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import requests
from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.exceptions import AuthenticationError, RayError
from ray.job_submission import JobStatus, JobSubmissionClient

from adadecode.errors import EXIT_FAILED, EXIT_OK, AdaDecodeError, UsageError
from adadecode.printable import on_one_line
from adadecode.records import Say
from ray_jobs.cluster import TOKEN_REMEDY

POLL_S, MOST_S = 0.5, 30.0
AGENT_TIMEOUT_S = 60.0
QUIET_S = 60.0  # of a log, after which the job is asked for: a connection may be cut without a sign
RETRY_S = 300.0
ANSWER_S = 60.0
# What no job needs of a working directory, and what should not leave this machine; patterns as in .gitignore.
NEVER_SENT = (
    *(".git/", ".venv/", "venv/", "__pycache__/", "/results/"),
    *(".env", ".env.*", ".envrc", ".netrc", ".git-credentials", ".npmrc", ".pypirc"),
    *(".ssh/", ".aws/", ".azure/", ".kube/", ".gnupg/", ".config/gcloud/", ".huggingface/"),
    *("*.pem", "*.key", "*.p12", "*.pfx", "id_rsa", "id_dsa", "id_ecdsa", "id_ed25519"),
)


def submit_job(command: str, arguments: Sequence[str], address: str, working_dir: str | None, say: Say) -> int:
    """Runs `adadecode COMMAND ARGUMENTS` on the cluster whose dashboard is at `address`; returns its exit code.

    The log is passed on to `say` piece by piece. Ray itself tells SUCCEEDED from FAILED only; the driver's exit code
    (3 for a parity mismatch, 4 for missing rows, ...) comes from the job's record. Raises UsageError when the job is not
    taken, and AdaDecodeError when its cluster is lost.
    """
    if not is_web_address(address):
        raise UsageError(
            f"--address {on_one_line(repr(address))}: submit needs the dashboard's, such as http://HOST:8265"
        )
    try:
        client = PatientClient(address)
    except (OSError, RuntimeError, ValueError, AuthenticationError, RayError, requests.RequestException) as error:
        raise UsageError(
            f"--address {address!r}: no Ray dashboard answers there; give http://HOST:8265 of a running head, and where "
            f"it asks for a token {TOKEN_REMEDY} ({on_one_line(error)})"
        ) from error
    shell_command = entrypoint(command, arguments)
    try:
        job_id = _submit_when_ready(client, shell_command, runtime_env(working_dir))
    except requests.Timeout as error:
        raise UsageError(
            f"the cluster at {address} gave no answer for {ANSWER_S:.0f} s and may have taken the job: look with "
            f"ray job list --address {address}"
        ) from error
    except (RuntimeError, ValueError, OSError) as error:
        raise UsageError(
            f"the cluster at {address} did not take the job; check --working-dir ({on_one_line(error)})"
        ) from error
    say(f"job {job_id}: {shell_command}\n")
    details = follow_job(client, job_id, say, address)
    say(f"job {job_id}: {details.status}\n")
    return exit_code(details)


class PatientClient(JobSubmissionClient):
    """Ray's client with an end to its patience: a request of which nothing was heard for ANSWER_S raises an OSError.

    Ray's own waits for ever where a link was cut without a sign.
    """

    def _do_request(self, method: str, endpoint: str, **given: Any) -> requests.Response:
        return super()._do_request(method, endpoint, timeout=ANSWER_S, **given)


def is_web_address(address: str) -> bool:
    """Whether `address` is that of a web server: http(s)://HOST, with a port from 1 to 65535 where it has one."""
    try:
        parts = urlsplit(address)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none, or brackets that do not close
        return False


def entrypoint(command: str, arguments: Sequence[str]) -> str:
    """The shell command a job runs, with the `python` of the node it is on."""
    return shlex.join(["python", "-m", "adadecode", command, *arguments])


def runtime_env(working_dir: str | None) -> dict[str, Any]:
    """Ray's environment of the job: the folder that is sent, less NEVER_SENT and what its .gitignore names."""
    return {"working_dir": working_dir, "excludes": list(NEVER_SENT)} if working_dir else {}


def _submit_when_ready(client: JobSubmissionClient, shell_command: str, environment: dict[str, Any]) -> str:
    """The id of the submitted job; a head that has just started answers before its agent can take jobs."""
    deadline = time.monotonic() + AGENT_TIMEOUT_S
    while True:
        try:
            return client.submit_job(entrypoint=shell_command, runtime_env=environment)
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)


@dataclass
class JobLog:
    """A log that is read from its beginning more than once, and shown once; lengths in characters."""

    say: Say
    shown_len: int = 0
    read_len: int = 0

    def add(self, text: str) -> None:
        """Takes the next piece; shows what of it was not shown before."""
        self.read_len += len(text)
        if self.read_len > self.shown_len:
            self.say(text[self.shown_len - self.read_len :])
            self.shown_len = self.read_len

    async def tail(self, client: JobSubmissionClient, job_id: str) -> None:
        """Reads the log from its beginning until the job has ended or been quiet for QUIET_S."""
        self.read_len = 0
        pieces = aiter(client.tail_job_logs(job_id))
        try:
            while True:
                self.add(await asyncio.wait_for(anext(pieces), QUIET_S))
        except (StopAsyncIteration, TimeoutError):
            return


def follow_job(
    client: JobSubmissionClient,
    job_id: str,
    say: Say,
    address: str,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> JobDetails:
    """Passes a job's log on until the job has ended; returns its record.

    A lost connection is told once, and tried again for RETRY_S with growing pauses. Raises AdaDecodeError after that, and
    when the cluster does not know the job any more.
    """
    log, lost_at, pause_s = JobLog(say), None, POLL_S
    while True:
        shown_len = log.shown_len
        try:
            asyncio.run(log.tail(client, job_id))
            details = client.get_job_info(job_id)
            lost_at = None
            if details.status.is_terminal():
                log.read_len = 0
                log.add(client.get_job_logs(job_id))
                return details
        except (OSError, RuntimeError, aiohttp.ClientError, AuthenticationError) as error:
            if is_unknown_job(error):
                raise AdaDecodeError(
                    f"the cluster at {address} knows no job {job_id} any more: its head was started anew; what is "
                    "committed stays, and the same command continues"
                ) from error
            if lost_at is None:
                lost_at = clock()
                say(f"the connection to {address} is lost; trying again for {RETRY_S:.0f} s ({on_one_line(error)})\n")
            if clock() - lost_at > RETRY_S:
                raise AdaDecodeError(
                    f"the dashboard at {address} has not answered for {RETRY_S:.0f} s; the job may go on: "
                    f"ray job logs --address {address} --follow {job_id}"
                ) from error
        pause_s = POLL_S if log.shown_len > shown_len else min(2 * pause_s, MOST_S)
        pause(pause_s)


def is_unknown_job(error: Exception) -> bool:
    """Whether the dashboard answered that there is no such job."""
    status = error.status if isinstance(error, aiohttp.ClientResponseError) else None
    return status == HTTPStatus.NOT_FOUND or f"status code {HTTPStatus.NOT_FOUND}" in str(error)


def exit_code(details: JobDetails) -> int:
    """The driver's exit code; 1 for a job that was stopped or never started."""
    if details.status == JobStatus.SUCCEEDED:
        return EXIT_OK
    return details.driver_exit_code or EXIT_FAILED
