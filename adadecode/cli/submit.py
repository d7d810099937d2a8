"""`submit`: a command as a job on a Ray cluster."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adadecode.cli.console import say, say_on_stderr
from adadecode.cli.options import some_path, some_text
from adadecode.errors import EXIT_INCOMPLETE, EXIT_OK, UsageError
from adadecode.printable import printable
from adadecode.settings.sending import LARGEST_MIB, MOST_MIB

if TYPE_CHECKING:
    from ray_jobs.dashboard import PatientClient

SUBMITTED = ("eval", "sweep", "train-heads", "tune", "certify")
ADDRESS_HELP = "The head's dashboard.  [default: $RAY_API_SERVER_ADDRESS, $RAY_ADDRESS, else http://127.0.0.1:8265]"


@click.command("submit", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--address", callback=some_text, help=ADDRESS_HELP)
@click.option(
    "--working-dir",
    callback=some_path,
    metavar="PATH",
    help="Folder sent with the job, which runs in it, less what may be secret, .gitignore, run folders and caches.",
)
@click.option(
    "--max-mib",
    type=click.IntRange(1, LARGEST_MIB),
    default=MOST_MIB,
    show_default=True,
    help="The most that is sent of --working-dir, in MiB before it is packed.",
)
@click.option(
    "--requirements",
    callback=some_path,
    metavar="PATH",
    help="File of pip packages, such as constraints.txt, that the job's nodes install.  [default: what they have]",
)
@click.option("--no-wait", is_flag=True, help="Print the job's id and how to follow it; wait for nothing.")
@click.argument("command", type=click.Choice(SUBMITTED))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def submit_command(
    address: str | None,
    working_dir: Path | None,
    max_mib: int,
    requirements: Path | None,
    no_wait: bool,
    command: str,
    arguments: tuple[str, ...],
) -> None:
    """Run `adadecode COMMAND ARGUMENTS` as a Ray job, show its log, and exit with the driver's own exit code.

    --out must be on storage every node sees; a relative one is taken from this folder. The job has the name of that
    folder, and a run is one job: submitted again it is followed while it runs, and resumed once it has ended. Ctrl-C asks
    whether to stop the job or to leave it running. Exit code 4: it was stopped, or is left running.
    """
    from ray_jobs.dashboard import open_dashboard
    from ray_jobs.jobs import follow_command
    from ray_jobs.submit import Submission, check_no_secret, submit_job

    check_no_secret(arguments, os.environ)
    arguments = with_absolute_out(arguments)
    out = arguments[arguments.index("--out") + 1]
    submission = Submission(command, arguments, out, max_mib, working_dir, requirements)
    if command == "certify":
        say_keys_stay()
    client, address = open_dashboard(address)
    submitted = submit_job(client, submission, address, show_text)
    job_id = submitted.job_id
    if submitted.is_new:
        say(f"job {job_id}: {shlex.join(('adadecode', command, *arguments))}")
    else:
        say(f"job {job_id}: runs for {out} already, and is followed; nothing was submitted")
    if no_wait:
        say(f"follow it with: {follow_command(job_id, address)}")
        sys.exit(EXIT_OK)
    sys.exit(follow_or_leave(client, job_id, address))


def say_keys_stay() -> None:
    """Says of the API keys that are set here that the job does not get them."""
    from adadecode.certify.asking import key_variable
    from adadecode.certify.compare import SIDES

    for name in (key_variable(side) for side in SIDES):
        if os.environ.get(name):
            say_on_stderr(f"{name} is not sent, as a job's environment can be read: set it where the head is started")


def follow_or_leave(client: "PatientClient", job_id: str, address: str) -> int:
    """Shows a job's log until it has ended; returns its driver's exit code, and 4 where Ctrl-C left it running."""
    from ray_jobs.job_log import JobLog
    from ray_jobs.jobs import ask_to_stop, exit_code, follow_command, follow_job, stop_command

    log = JobLog(show_text)
    try:
        try:
            details = follow_job(client, job_id, show_text, address, log)
        except KeyboardInterrupt:
            if not is_stop_wanted(job_id):
                raise
            ask_to_stop(client, job_id, address)
            details = follow_job(client, job_id, show_text, address, log)
    except KeyboardInterrupt:
        say(f"job {job_id} is left running")
        say(f"follow it with: {follow_command(job_id, address)}")
        say(f"stop it with: {stop_command(job_id, address)}")
        return EXIT_INCOMPLETE
    code = exit_code(details)
    say(f"job {job_id}: {details.status.value}, exit code {code}")
    if details.driver_exit_code is not None and details.driver_exit_code < 0:
        say_on_stderr(f"its driver was ended by signal {-details.driver_exit_code}")
    return code


def is_stop_wanted(job_id: str) -> bool:
    """Asks on a terminal, after Ctrl-C, whether the job is to be stopped; elsewhere it is not. Ctrl-C again: neither."""
    if not sys.stdin.isatty():
        return False
    try:
        return input(f"\nstop job {printable(job_id)} too? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def show_text(text: str) -> None:
    """Prints a piece of the job's log: its lines without colours, and nothing else a terminal would heed."""
    print(printable(click.unstyle(text), keep="\n\t"), end="", flush=True)


def with_absolute_out(arguments: Sequence[str]) -> tuple[str, ...]:
    """`arguments` with --out absolute or a URL: a job runs in a folder of its own; raises UsageError without one."""
    from adadecode.runs.storage import absolute

    given = list(arguments)
    for idx, argument in enumerate(given):
        if argument.startswith("--out="):
            given[idx : idx + 1] = ["--out", argument.removeprefix("--out=")]
    if "--out" not in given:
        raise UsageError("--out is missing: a job needs a run folder on storage every node of the cluster sees")
    value_idx = given.index("--out") + 1
    if value_idx == len(given):
        raise UsageError("--out needs a folder")
    given[value_idx] = absolute(given[value_idx])
    return tuple(given)
