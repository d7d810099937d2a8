"""Submits a command as a Ray job: one job for one run, named as its folder is."""

import re
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from ray.dashboard.modules.job.pydantic_models import JobDetails, JobType

from adadecode.errors import UsageError
from adadecode.files import readable, short_hash
from adadecode.printable import has_password, on_one_line, without_password
from adadecode.records import Say
from ray_jobs.cluster import STOP_WAIT
from ray_jobs.dashboard import PatientClient
from ray_jobs.jobs import POLL_S
from ray_jobs.packing import package_of

RETRY_S = 60.0  # of a head that has no agent yet, or a connection that breaks
STOP_WAIT_S = 300  # that a driver has for its tables once its job is stopped; Ray's own 3 s are too few
RUN_KEY = "adadecode_run"  # of a job's metadata: a hash of where its run lies
NAME_LEN = 80
LEAST_SECRET_LEN = 8
SECRET_NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|API_KEY|ACCESS_KEY", re.IGNORECASE)
# The folder of the interpreter that Ray runs on, found by the library that the shell's parent has loaded: the PATH of a
# head that was started as .venv/bin/ray may begin with another. Nothing where there is no /proc.
RAY_LIBRARY = r"s|.* \(/.*\)/lib[64]*/python[^/]*/[a-z]*-packages/ray/_raylet.so$|\1/bin:|p"
RAY_BIN = f"$(sed -n '{RAY_LIBRARY}' /proc/$PPID/maps 2>/dev/null | head -n 1)"


@dataclass(frozen=True)
class Submission:
    """What is to be a job: `adadecode COMMAND ARGUMENTS`, whose run lies at `out`, absolute or a URL."""

    command: str
    arguments: tuple[str, ...]
    out: str
    most_mib: int  # of working_dir
    working_dir: Path | None = None
    requirements: Path | None = None

    @property
    def entrypoint(self) -> str:
        """The shell command that a job runs, on the interpreter that Ray runs on, or in the environment made for it."""
        program = f"exec {shlex.join(['python', '-m', 'adadecode', self.command, *self.arguments])}"
        return program if self.requirements is not None else f'PATH="{RAY_BIN}$PATH"; {program}'

    @property
    def run_key(self) -> str:
        """What tells this run from others of the same name."""
        return short_hash(without_password(self.out.rstrip("/")))


@dataclass(frozen=True)
class Submitted:
    """A job of the cluster; `is_new` where this call has made it."""

    job_id: str
    is_new: bool


def submit_job(client: PatientClient, submission: Submission, address: str, say: Say) -> Submitted:
    """The job of a run: the one that waits or runs already, or a new one. Says how much of a folder is sent.

    Raises UsageError for what must not be stored on a cluster or cannot be sent, and where the cluster takes no job.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="adadecode-") as scratch:
            return _try_to_submit(client, submission, Path(scratch), say)
    except (requests.Timeout, requests.ConnectionError) as error:
        raise UsageError(
            f"the connection to {address} broke, and the cluster may have taken the job: the same command follows it, or "
            f"submits it again ({on_one_line(error)})"
        ) from error
    except UsageError:
        raise
    except (RuntimeError, ValueError, OSError) as error:
        raise UsageError(f"the cluster at {address} did not take the job: {refusal(error)}") from error


def _try_to_submit(client: PatientClient, submission: Submission, scratch: Path, say: Say) -> Submitted:
    """The job of a run; tries again for RETRY_S where that may help: of a job that was taken unheard, it finds that one."""
    environment: dict[str, Any] | None = None
    deadline: float | None = None
    while True:
        try:
            jobs = client.list_jobs()
            if (active := active_job(jobs, submission.run_key)) is not None:
                return Submitted(active, is_new=False)
            environment = environment or runtime_env(submission, scratch, say)
            job_id = free_id(run_name(submission.out), {job.submission_id for job in jobs})
            client.submit_job(
                entrypoint=submission.entrypoint,
                submission_id=job_id,
                runtime_env=environment,
                metadata={RUN_KEY: submission.run_key},
            )
            return Submitted(job_id, is_new=True)
        except (RuntimeError, requests.ConnectionError) as error:
            if not may_pass(error) or (deadline is not None and time.monotonic() > deadline):
                raise
            if deadline is None and isinstance(error, requests.ConnectionError):
                say(f"the connection broke; trying again for {RETRY_S:.0f} s ({on_one_line(error)})\n")
            deadline = deadline or time.monotonic() + RETRY_S
        time.sleep(POLL_S)


def may_pass(error: Exception) -> bool:
    """Whether another try may succeed: the connection broke, the head's agent has not started, or an id was just taken."""
    if isinstance(error, requests.ConnectionError):
        return True
    said = str(error)
    return "No available agent" in said or ("submission_id" in said and "already exists" in said)


def refusal(error: Exception) -> str:
    """Why a cluster took no job, in a line with the remedy."""
    if "No available agent" in str(error):
        return (
            f"no agent has answered on its head for {RETRY_S:.0f} s. Most likely another Ray on that host has the "
            "agent's port (52365): stop that one, or start the head with another --dashboard-agent-listen-port; its "
            "dashboard_agent.log says more"
        )
    last = str(error).strip().rpartition("\n")[2]  # Ray sends a traceback
    return f"check --working-dir and --requirements ({on_one_line(last)})"


def active_job(jobs: Sequence[JobDetails], run_key: str) -> str | None:
    """The id of the job of a run that waits or runs; None where there is none."""
    for job in jobs:
        is_same = job.type is JobType.SUBMISSION and (job.metadata or {}).get(RUN_KEY) == run_key
        if is_same and not job.status.is_terminal():
            return job.submission_id
    return None


def run_name(out: str) -> str:
    """The last part of where a run lies, as Ray takes it for an id: letters, digits, `_`, `.` and `-`."""
    last = out.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", last).strip("-.")[:NAME_LEN] or "run"


def free_id(name: str, taken: set[str | None]) -> str:
    """`name`, or with the first number from 2 on that is free: Ray appends to the log of an id that is used again."""
    if name not in taken:
        return name
    number = 2
    while f"{name}-{number}" in taken:
        number += 1
    return f"{name}-{number}"


def runtime_env(submission: Submission, scratch: Path, say: Say) -> dict[str, Any]:
    """Ray's environment of the job: the folder that is sent, packed in `scratch`, and the packages asked for.

    Its variables are for the process that starts and stops the driver: `connect` takes them back from the driver's actors.
    """
    environment: dict[str, Any] = {"env_vars": {STOP_WAIT: str(STOP_WAIT_S)}}
    if submission.working_dir is not None:
        package = package_of(submission.working_dir)
        package.check(submission.most_mib)
        say(f"{package.line()}\n")
        package.write(scratch / "working-dir.zip")
        environment["working_dir"] = str(scratch / "working-dir.zip")
    if submission.requirements is not None:
        environment["pip"] = {"packages": read_requirements(submission.requirements)}
    return environment


def read_requirements(path: Path) -> list[str]:
    """The lines of a requirements file; raises UsageError for what a cluster cannot install or may not know."""
    with readable("--requirements", path):
        text = path.read_text(encoding="utf-8", errors="replace")
    lines = [line for written in text.splitlines() if (line := re.sub(r"(^|\s)#.*", "", written).strip())]
    for line in lines:
        if has_password(line):
            raise UsageError(
                f"--requirements {str(path)!r}: {on_one_line(without_password(line))!r} has a user name or a password, and "
                "a job's environment is stored and shown on the cluster: set up pip's index on its nodes"
            )
        if re.match(r"(-r|-c|-e|--requirement|--constraint|--editable)\b|\.{0,2}/|(.*@\s*)?file:", line):
            raise UsageError(
                f"--requirements {str(path)!r}: {on_one_line(line)!r} names a file of this machine, which the nodes lack: "
                "give packages with versions"
            )
    if not lines:
        raise UsageError(f"--requirements {str(path)!r} names no package: give lines such as regex==2026.11.15")
    return lines


def check_no_secret(arguments: Sequence[str], environ: Mapping[str, str]) -> None:
    """Raises UsageError for a password or a secret variable's value in `arguments`: a job's command is stored and shown."""
    secrets = {
        name: value for name, value in environ.items() if SECRET_NAMES.search(name) and len(value) >= LEAST_SECRET_LEN
    }
    for argument in arguments:
        if has_password(argument):
            raise UsageError(
                f"{on_one_line(repr(without_password(argument)))}: a job's command is stored and shown on the cluster, and "
                "this has a user name or a password in it; leave it out, and set keys where the head is started"
            )
        if (found := next((name for name, value in secrets.items() if value in argument), None)) is not None:
            raise UsageError(
                f"an argument holds the value of {found}: a job's command is stored and shown on the cluster; leave it "
                f"out, and set {found} where the head is started"
            )
