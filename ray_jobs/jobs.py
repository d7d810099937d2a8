"""Jobs of this program on a cluster: followed to their end, listed, stopped."""

import re
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import aiohttp
from ray.dashboard.modules.job.pydantic_models import JobDetails, JobType
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus

from adadecode.errors import EXIT_FAILED, EXIT_INCOMPLETE, EXIT_OK, AdaDecodeError, UsageError
from adadecode.printable import on_one_line
from adadecode.records import Say
from ray_jobs.dashboard import PatientClient, is_unknown_job
from ray_jobs.job_log import JobLog, show_growth, show_rest

POLL_S, MOST_POLL_S, MOST_S = 0.5, 2.0, 30.0
RETRY_S = 300.0
PENDING_S = 30.0  # after which a job that has not begun is told
LAST_OF_MESSAGE = 20  # lines
LOST = (OSError, RuntimeError, aiohttp.ClientError, AuthenticationError)
PROGRAM = re.compile(r"-m adadecode (.*)|\badadecode ((?:eval|sweep|train-heads|tune|certify)\b.*)", re.DOTALL)


@dataclass(frozen=True)
class JobLine:
    """A job as it is listed; times in seconds since the epoch."""

    job_id: str
    status: str
    command: str
    started_at: datetime | None
    for_s: float


def follow_job(
    client: PatientClient,
    job_id: str,
    say: Say,
    address: str,
    log: JobLog | None = None,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> JobDetails:
    """Passes a job's log on until the job has ended; returns its record.

    `log` is what was shown of it before. A lost connection is told once, and tried again for RETRY_S with growing pauses.
    Raises AdaDecodeError after that, and when the cluster does not know the job any more.
    """
    log, lost_at, pause_s = log or JobLog(say), None, POLL_S
    tell_at: float | None = clock() + PENDING_S
    while True:
        shown_len = log.shown_len
        try:
            details = client.get_job_info(job_id)
            if details.status.is_terminal():
                show_end(client, job_id, details, log)
                return details
            if details.driver_node_id is None and tell_at is not None and clock() >= tell_at:
                tell_at = None
                say(f"job {job_id} waits: {on_one_line(details.message or details.status.value)}\n")
            if details.driver_node_id is not None:
                show_growth(client, job_id, details.driver_node_id, log, lambda: has_ended(client, job_id))
            lost_at = None
        except BrokenPipeError:  # of what is shown: no connection breaks so
            raise
        except LOST as error:
            if is_unknown_job(error):
                raise AdaDecodeError(
                    f"the cluster at {address} knows no job {job_id} any more: its head was started anew; what is "
                    "committed stays, and the same command continues"
                ) from error
            if lost_at is None or log.shown_len > shown_len:
                lost_at = clock()
                say(f"the connection to {address} is lost; trying again for {RETRY_S:.0f} s ({on_one_line(error)})\n")
            if clock() - lost_at > RETRY_S:
                raise AdaDecodeError(
                    f"the dashboard at {address} has not answered for {RETRY_S:.0f} s; the job may go on: "
                    f"{follow_command(job_id, address)}"
                ) from error
        most_s = MOST_POLL_S if lost_at is None else MOST_S
        pause_s = POLL_S if log.shown_len > shown_len else min(2 * pause_s, most_s)
        pause(pause_s)


def show_end(client: PatientClient, job_id: str, details: JobDetails, log: JobLog) -> None:
    """Shows what is left of an ended job's log; of one that never began to run, what Ray says of it."""
    if details.driver_node_id is None:
        lines = (details.message or "").splitlines()[-LAST_OF_MESSAGE:]
        log.say("".join(f"{line}\n" for line in lines))
        return
    try:
        show_rest(client, job_id, details.driver_node_id, log)
    except RuntimeError as error:  # the node is gone, and its log with it
        if is_unknown_job(error):
            raise
        log.say(f"the end of the log cannot be read: {on_one_line(error)}\n")


def has_ended(client: PatientClient, job_id: str) -> bool:
    """Whether the job runs no more."""
    return client.get_job_info(job_id).status.is_terminal()


def follow_command(job_id: str, address: str) -> str:
    """The command that shows a job's log until it has ended."""
    return shlex.join(["adadecode", "jobs", "logs", "--address", address, "--follow", job_id])


def stop_command(job_id: str, address: str) -> str:
    """The command that stops a job."""
    return shlex.join(["adadecode", "jobs", "stop", "--address", address, job_id])


def find_job(client: PatientClient, job_id: str, address: str) -> JobDetails:
    """The record of a job that was submitted; raises UsageError where there is none, AdaDecodeError without an answer."""
    try:
        details = client.get_job_info(job_id) if re.fullmatch(r"\w[\w.-]*", job_id) else None
    except LOST as error:
        if not is_unknown_job(error):
            raise AdaDecodeError(f"the dashboard at {address} does not answer: {on_one_line(error)}") from error
        details = None
    if details is None or details.type is not JobType.SUBMISSION:
        raise UsageError(
            f"the cluster at {address} knows no job {on_one_line(repr(job_id))}: adadecode jobs ls --address {address} "
            "lists those it has"
        )
    return details


def show_log(client: PatientClient, job_id: str, say: Say, address: str) -> None:
    """Shows what there is now of a job's log; raises as `find_job` does."""
    details = find_job(client, job_id, address)
    try:
        show_end(client, job_id, details, JobLog(say))
    except BrokenPipeError:
        raise
    except LOST as error:
        raise AdaDecodeError(f"the dashboard at {address} does not answer: {on_one_line(error)}") from error


def ask_to_stop(client: PatientClient, job_id: str, address: str) -> None:
    """Asks a job to stop, as Ctrl-C asks a run; raises AdaDecodeError where the dashboard does not answer."""
    try:
        client.stop_job(job_id)
    except LOST as error:
        raise AdaDecodeError(
            f"the dashboard at {address} does not answer, and job {job_id} may go on ({on_one_line(error)}): "
            f"{stop_command(job_id, address)}"
        ) from error


def stop_job(
    client: PatientClient, job_id: str, address: str, pause: Callable[[float], None] = time.sleep
) -> JobDetails:
    """Asks a job to stop and waits until it has ended; returns its record; raises as `ask_to_stop` does."""
    ask_to_stop(client, job_id, address)
    try:
        while not (details := client.get_job_info(job_id)).status.is_terminal():
            pause(POLL_S)
    except LOST as error:
        raise AdaDecodeError(
            f"the dashboard at {address} does not answer, and job {job_id} may not have ended: {on_one_line(error)}"
        ) from error
    return details


def list_jobs(client: PatientClient, address: str) -> list[JobLine]:
    """The jobs that run this program, the newest first; raises AdaDecodeError where the dashboard does not answer."""
    try:
        jobs = client.list_jobs()
    except LOST as error:
        raise AdaDecodeError(f"the dashboard at {address} does not answer: {on_one_line(error)}") from error
    submitted = (job for job in jobs if job.type is JobType.SUBMISSION)
    lines = [line for job in submitted if (line := job_line(job)) is not None]
    return sorted(lines, key=lambda line: line.started_at.timestamp() if line.started_at else 0.0, reverse=True)


def job_line(job: JobDetails, now: Callable[[], float] = time.time) -> JobLine | None:
    """What is listed of a job; None of one that runs another program."""
    found = PROGRAM.search(job.entrypoint)
    if found is None or job.submission_id is None:
        return None
    started_s = (job.start_time or 0) / 1000
    for_s = (job.end_time / 1000 if job.end_time else now()) - started_s
    started_at = datetime.fromtimestamp(started_s) if started_s else None
    return JobLine(job.submission_id, job.status.value, found[1] or found[2], started_at, max(0.0, for_s))


def exit_code(details: JobDetails) -> int:
    """The driver's own exit code; 4 for a job that was stopped, 1 for one that never started or was killed."""
    if details.status == JobStatus.SUCCEEDED:
        return EXIT_OK
    if details.status == JobStatus.STOPPED:
        return EXIT_INCOMPLETE
    code = details.driver_exit_code
    return code if code is not None and code > 0 else EXIT_FAILED
