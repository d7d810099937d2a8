"""`submit`: a command as a job on a Ray cluster."""

import sys
from collections.abc import Sequence

import click

from adadecode.cli.options import some_text
from adadecode.errors import UsageError
from adadecode.printable import printable

SUBMITTED = ("eval", "train-heads", "sweep", "tune")


@click.command("submit", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "--address",
    callback=some_text,
    default="http://127.0.0.1:8265",
    show_default=True,
    help="The head's dashboard.",
)
@click.option(
    "--working-dir",
    callback=some_text,
    help="Folder sent to a cluster without adadecode, less .gitignore, .git, .env and the like.",
)
@click.argument("command", type=click.Choice(SUBMITTED))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def submit_command(address: str, working_dir: str | None, command: str, arguments: tuple[str, ...]) -> None:
    """Run `adadecode COMMAND ARGUMENTS` as a Ray job; exits with the driver's own exit code.

    --out must be on storage every node sees; a relative one is taken from this folder.
    """
    from ray_jobs.submit import submit_job

    arguments = with_absolute_out(arguments)
    sys.exit(submit_job(command, arguments, address, working_dir, show_text))


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
