"""`jobs`: what was submitted to a cluster: a list, a log, an end."""

import sys

import click
from rich import box
from rich.table import Table

from adadecode.cli.console import console, say
from adadecode.cli.options import some_text
from adadecode.cli.submit import ADDRESS_HELP, follow_or_leave, show_text

NUM_LISTED = 20
WIDTH = 80


@click.group("jobs")
def jobs_command() -> None:
    """List, follow and stop the jobs that `submit` made on a cluster."""


@jobs_command.command("ls")
@click.option("--address", callback=some_text, help=ADDRESS_HELP)
@click.option("--all", "is_all", is_flag=True, help=f"All that the cluster knows, not the newest {NUM_LISTED}.")
def ls_command(address: str | None, is_all: bool) -> None:
    """List the cluster's jobs that run this program, the newest first. Exit code 0, also of an empty list."""
    from adadecode.report.cells import cell, duration_text
    from ray_jobs.dashboard import open_dashboard
    from ray_jobs.jobs import list_jobs

    client, address = open_dashboard(address)
    jobs = list_jobs(client, address)
    if not jobs:
        say(f"no jobs of adadecode at {address}")
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, width=min(WIDTH, console().width))
    table.add_column("job", no_wrap=True, overflow="ellipsis", max_width=24)
    table.add_column("status", no_wrap=True)
    table.add_column("started", no_wrap=True)
    table.add_column("for", no_wrap=True, justify="right")
    table.add_column("command", no_wrap=True, overflow="ellipsis", ratio=1)
    listed = jobs if is_all else jobs[:NUM_LISTED]
    for job in listed:
        started = "-" if job.started_at is None else f"{job.started_at:%m-%d %H:%M}"
        table.add_row(*map(cell, (job.job_id, job.status, started, duration_text(job.for_s), job.command)))
    console().print(table)
    if len(listed) < len(jobs):
        say(f"and {len(jobs) - len(listed)} older: --all")


@jobs_command.command("logs")
@click.option("--address", callback=some_text, help=ADDRESS_HELP)
@click.option("--follow", is_flag=True, help="Go on until the job has ended; the exit code is then the driver's own.")
@click.argument("job", callback=some_text)
def logs_command(address: str | None, follow: bool, job: str) -> None:
    """Show a job's log. Exit code 0; with --follow that of the driver, or 4 where Ctrl-C leaves the job running."""
    from ray_jobs.dashboard import open_dashboard
    from ray_jobs.jobs import find_job, show_log

    client, address = open_dashboard(address)
    if follow:
        find_job(client, job, address)
        sys.exit(follow_or_leave(client, job, address))
    show_log(client, job, show_text, address)


@jobs_command.command("stop")
@click.option("--address", callback=some_text, help=ADDRESS_HELP)
@click.argument("job", callback=some_text)
def stop_command(address: str | None, job: str) -> None:
    """Stop a job as Ctrl-C stops a run, and wait until it has ended: its driver writes the tables of what is committed.

    Exit code 0 once the job has ended, also where it had before; 2 for one that the cluster does not know; 1 where the
    cluster does not answer. Whoever follows the job exits with 4.
    """
    from ray_jobs.dashboard import open_dashboard
    from ray_jobs.jobs import find_job, stop_job

    client, address = open_dashboard(address)
    details = find_job(client, job, address)
    if details.status.is_terminal():
        say(f"job {job} had ended before: {details.status.value}")
        return
    say(f"job {job} is being stopped")
    say(f"job {job}: {stop_job(client, job, address).status.value}")
