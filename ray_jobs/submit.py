"""Submits a command as a Ray job, follows its log and returns the driver's own exit code."""

import shlex
import time
from collections.abc import Sequence

from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from adadecode.errors import EXIT_FAILED, EXIT_OK, UsageError
from adadecode.records import Say

POLL_S = 0.5
AGENT_TIMEOUT_S = 60.0


def submit_job(command: str, arguments: Sequence[str], address: str, working_dir: str | None, say: Say) -> int:
    """Runs `adadecode COMMAND ARGUMENTS` on the cluster whose dashboard is at `address`; returns its exit code.

    The log is passed on to `say` piece by piece. Ray itself tells SUCCEEDED from FAILED only; the driver's exit code
    (3 for a parity mismatch, 4 for missing rows, ...) comes from the job's record.
    """
    try:
        client = JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, AuthenticationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"--address {address!r}: no Ray dashboard answers there; give http://HOST:8265 of a running head, and "
            f"RAY_AUTH_MODE=token with its RAY_AUTH_TOKEN where it asks for one ({reason})"
        ) from error
    shell_command = entrypoint(command, arguments)
    try:
        job_id = _submit_when_ready(client, shell_command, {"working_dir": working_dir} if working_dir else {})
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"the cluster at {address} did not take the job; check --working-dir ({reason})") from error
    say(f"job {job_id}: {shell_command}\n")
    shown_len = 0
    while True:
        details = client.get_job_info(job_id)
        log = client.get_job_logs(job_id)
        say(log[shown_len:])
        shown_len = len(log)
        if details.status.is_terminal():
            break
        time.sleep(POLL_S)
    say(f"job {job_id}: {details.status}\n")
    return exit_code(details)


def entrypoint(command: str, arguments: Sequence[str]) -> str:
    """The shell command a job runs, with the `python` of the node it is on."""
    return shlex.join(["python", "-m", "adadecode", command, *arguments])


def _submit_when_ready(client: JobSubmissionClient, shell_command: str, runtime_env: dict[str, str]) -> str:
    """The id of the submitted job; a head that has just started answers before its agent can take jobs."""
    deadline = time.monotonic() + AGENT_TIMEOUT_S
    while True:
        try:
            return client.submit_job(entrypoint=shell_command, runtime_env=runtime_env)
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)


def exit_code(details: JobDetails) -> int:
    """The driver's exit code; 1 for a job that was stopped or never started."""
    if details.status == JobStatus.SUCCEEDED:
        return EXIT_OK
    return details.driver_exit_code or EXIT_FAILED
