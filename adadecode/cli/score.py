"""`score`: what the outputs of a run are worth by their tasks' metrics."""

import sys
from typing import Any, get_args

import click

from adadecode.cli.console import console, say
from adadecode.cli.options import some_text
from adadecode.errors import UsageError
from adadecode.scoring.sandbox import Sandbox, SandboxKind


@click.command("score")
@click.argument("run", callback=some_text)
@click.option("--allow-code-execution", is_flag=True, help="Run the programs that the model wrote, in a sandbox.")
@click.option(
    "--sandbox",
    type=click.Choice(get_args(SandboxKind)),
    help="What keeps these programs apart: namespaces of their own, or none but limits.  [default: namespaces]",
)
@click.option("--timeout", "timeout_s", type=float, help="Seconds that one of these programs may run.  [default: 10]")
@click.option("--memory-mb", type=int, help="Megabytes of address space of each of its processes.  [default: 512]")
def score_command(run: str, allow_code_execution: bool, **limits: Any) -> None:
    """Score a run's outputs by their tasks' metrics and write its scores.parquet; decodes nothing, may be repeated.

    Code is scored by running it, only with --allow-code-execution.
    """
    from adadecode.api import score
    from adadecode.report.scores import scores_table

    scores = score(run, sandbox_of(allow_code_execution, **limits))
    console().print(scores_table(scores.table))
    for line in (*scores.notes, *scores.contradictions):
        say(line)
    sys.exit(scores.exit_code)


def sandbox_of(allow_code_execution: bool, sandbox: SandboxKind | None, **limits: Any) -> Sandbox | None:
    """The sandbox that the flags describe, None where nothing may run; raises UsageError where they have no effect."""
    given: dict[str, Any] = {"kind": sandbox, **limits}
    flags = {"kind": "--sandbox", "timeout_s": "--timeout", "memory_mb": "--memory-mb"}
    settings = {name: value for name, value in given.items() if value is not None}
    if not allow_code_execution and settings:
        raise UsageError(
            f"{flags[next(iter(settings))]} is about programs that are run: give --allow-code-execution too"
        )
    return Sandbox(**settings) if allow_code_execution else None
