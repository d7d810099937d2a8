"""`eval`, `plan`, `report`, `verify` and `submit`: runs, what they would take, what they came to."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adadecode.cli.console import console, say_on_stderr
from adadecode.cli.options import integers, settings_options
from adadecode.cli.watch import Watcher
from adadecode.errors import AdaDecodeError, StoppedError, UsageError
from adadecode.evaluation.stop import StopRequest
from adadecode.settings import EvalConfig, build_settings

if TYPE_CHECKING:
    from adadecode.runs.result import RunResult

DEFAULT_GPUS = (1, 2, 4, 8)
SUBMITTED = ("eval", "train-heads", "sweep", "tune")


@click.command("eval")
@settings_options(EvalConfig)
@click.option("--out", help="Run folder, or s3:// or gs:// URL.  [default: results/<task>-<fingerprint>]")
def eval_command(config_file: Path | None, out: str | None, **flags: Any) -> None:
    """Evaluate AdaDecode against vanilla decoding; rerun the same command to finish what is missing.

    Without arguments: the embedded model on the embedded prompts.
    """
    config = build_settings(EvalConfig, config_file, flags)
    with StopRequest(config.grace_s, say_on_stderr) as stop:
        sys.exit(report_result(evaluate(config, out, stop), resume_command()))


def evaluate(config: EvalConfig, out: str | None, stop: StopRequest) -> "RunResult":
    """`adadecode.evaluate`, shown as it goes; says how to go on when it ends early."""
    from adadecode import api

    try:
        return api.evaluate(config, out, observer=Watcher(), stop=stop)
    except StoppedError as error:
        raise StoppedError(f"{error}; go on with: {resume_command()}") from error
    except AdaDecodeError as error:
        if error.closed is not None and error.closed.num_missing and not isinstance(error, UsageError):
            say_on_stderr(error.closed.missing_line(resume_command()))
        raise


def report_result(result: "RunResult", resume: str | None = None) -> int:
    """Prints the summary, the parity and what is wrong; returns the exit code. `resume` is the command that goes on."""
    from adadecode.report.tables import summary_table

    console().print(summary_table(result.summary))
    for line in result.lines():
        click.echo(line)
    for line in result.problem_lines(resume):
        say_on_stderr(line)
    return result.exit_code


def resume_command() -> str:
    """The command that this process was started with, as a user would type it."""
    started = getattr(sys.modules["__main__"], "__spec__", None)  # set by `python -m` alone
    is_module = started is not None and started.name == "adadecode.__main__"
    return f"{'python -m adadecode' if is_module else 'adadecode'} {shlex.join(sys.argv[1:])}"


@click.command("plan")
@settings_options(EvalConfig)
@click.option("--rates", help="Run folder (or its URL) whose measured times predict this run's.")
@click.option("--gpus", callback=integers, help="Numbers of workers to predict for, with --rates.  [default: 1,2,4,8]")
def plan_command(config_file: Path | None, rates: str | None, gpus: tuple[int, ...] | None, **flags: Any) -> None:
    """Show how a run would be sharded; with --rates, how long it would take. Loads no model and writes nothing."""
    from adadecode.runs.plan import plan_hash
    from adadecode.runs.run import plan_run

    config = build_settings(EvalConfig, config_file, flags)
    if gpus is not None and rates is None:
        raise UsageError(f"--gpus {','.join(map(str, gpus))}: without --rates no time is known; give a finished run")
    if gpus is not None and min(gpus) < 1:
        raise UsageError(f"--gpus {','.join(map(str, gpus))}: numbers of workers, each at least 1, such as 1,2,4,8")
    shards, plan = plan_run(config)
    rows_per_sample = len(config.methods) * config.repeats
    for task in dict.fromkeys(shard.task for shard in shards):
        of_task = [shard for shard in shards if shard.task == task]
        num_samples = sum(len(shard.examples) for shard in of_task)
        click.echo(f"{task}: {num_samples} samples in {len(of_task)} shards of at most {config.shard_size}")
    click.echo(
        f"{plan.num_rows} samples x {len(config.methods)} methods x {config.repeats} repeats = "
        f"{plan.num_rows * rows_per_sample} rows; plan hash {plan_hash(plan)}"
    )
    if rates is not None:
        from adadecode.evaluation.capacity import plan_capacity, read_rates
        from adadecode.evaluation.capacity_table import capacity_lines, methods_table, times_table

        capacity = plan_capacity(shards, plan, config, read_rates(rates), gpus or DEFAULT_GPUS)
        console().print(methods_table(capacity))
        console().print(times_table(capacity, "GPU" if config.device == "cuda" else "worker"))
        for line in capacity_lines(capacity):
            click.echo(line)


@click.command("report")
@click.argument("run")
def report_command(run: str) -> None:
    """Print a run's tables, from its committed rows."""
    from adadecode.report.tables import provenance_lines, summary_table
    from adadecode.runs.folder import read_run
    from adadecode.runs.result import read_report

    for line in provenance_lines(read_run(run)):
        click.echo(line)
    summary, lines = read_report(run)
    console().print(summary_table(summary))
    for line in lines:
        click.echo(line)


@click.command("verify")
@click.argument("run")
def verify_command(run: str) -> None:
    """Recompute the parity of a run from its tables alone: token ids, lengths, digests, stored claims, planned rows."""
    from adadecode.runs.result import read_result

    sys.exit(report_result(read_result(run)))


@click.command("submit", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--address", default="http://127.0.0.1:8265", show_default=True, help="The head's dashboard.")
@click.option("--working-dir", help="Folder sent to the cluster, where adadecode is not installed there.")
@click.argument("command", type=click.Choice(SUBMITTED))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def submit_command(address: str, working_dir: str | None, command: str, arguments: tuple[str, ...]) -> None:
    """Run `adadecode COMMAND ARGUMENTS` as a Ray job; exits with the driver's own exit code.

    --out must be on storage every node sees; a relative one is taken from this folder.
    """
    from ray_jobs.submit import submit_job

    arguments = with_absolute_out(arguments)
    sys.exit(submit_job(command, arguments, address, working_dir, lambda text: click.echo(text, nl=False)))


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
