"""Evaluations as the commands run and report them: the executor, what is shown meanwhile, how they end."""

import contextlib
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from adadecode.errors import (
    EXIT_FAILED,
    EXIT_INCOMPLETE,
    EXIT_MISMATCH,
    EXIT_OK,
    AdaDecodeError,
    StoppedError,
    UsageError,
)
from adadecode.evaluation.stop import StopRequest
from adadecode.records import ShardOutcome, WorkerState
from adadecode.settings import EvalConfig

if TYPE_CHECKING:
    from adadecode.evaluation.progress import ErrorLimit, RunProgress
    from adadecode.report.live import LiveProgress
    from adadecode.runs.result import RunResult
    from adadecode.runs.run import PreparedRun
    from ray_jobs.metrics import RunMetrics


PLAIN_WIDTH = 120  # rich assumes 80 columns in a job log, too few for the summary
METRICS_EVERY_S = 1.0


def console() -> Console:
    """A terminal's console, or a plain one wide enough for the tables."""
    found = Console()
    return found if found.is_terminal else Console(width=PLAIN_WIDTH)


def say_on_stderr(line: str) -> None:
    click.echo(line, err=True)


def resume_command() -> str:
    """The command that this process was started with, as a user would type it."""
    program = Path(sys.argv[0])
    name = f"python -m ray_jobs.{program.stem}" if program.parent.name == "ray_jobs" else "adadecode"
    return f"{name} {shlex.join(sys.argv[1:])}"


def evaluate(config: EvalConfig, out: str | None, stop: StopRequest) -> "RunResult":
    """Runs `config` until it is done or was asked to `stop`, on Ray or in this process; returns the closed run.

    Whatever ends it, the tables are written from what is committed. Raises StoppedError when it had not begun.
    """
    stop.install()
    try:
        return _evaluate(config, out, stop)
    except KeyboardInterrupt as error:
        if not stop.is_made:
            raise
        raise StoppedError(f"stopped before the first shard; go on with: {resume_command()}") from error


def _evaluate(config: EvalConfig, out: str | None, stop: StopRequest) -> "RunResult":
    from adadecode.evaluation.progress import ErrorLimit, RunProgress, total_outcome
    from adadecode.report.live import LiveProgress
    from adadecode.runs.run import close_run, open_run

    with open_run(config, out) as prepared:
        for note in prepared.notes:
            click.echo(note)
        num_todo, num_shards = len(prepared.todo), len(prepared.shards)
        click.echo(
            f"run {prepared.folder.location}: {prepared.plan.num_rows} samples in {num_shards} shards, "
            f"{num_shards - num_todo} done before, {num_todo} to do; methods {', '.join(config.methods)}"
        )
        progress = RunProgress(prepared.plan.num_rows, total_outcome(prepared.committed.values()))
        limit = ErrorLimit.of(config.max_errors, progress.num_planned)
        try:
            limit.check(progress.num_errors)
            with LiveProgress(progress, console()) as live:
                _execute(prepared, Watcher(progress, live, limit), stop)
        except KeyboardInterrupt:
            if not stop.is_made:
                raise
        except AdaDecodeError as error:
            stop.end()
            with contextlib.suppress(AdaDecodeError):  # the first error is the one to tell
                result = close_run(prepared)
                if result.num_missing and not isinstance(error, UsageError):
                    say_on_stderr(missing_line(result, resume_command()))
            raise
        stop.end()
        return close_run(prepared)


def _execute(prepared: "PreparedRun", watcher: "Watcher", stop: StopRequest) -> None:
    if not prepared.todo or stop.is_made:
        return
    if prepared.config.local:
        from adadecode.evaluation.local import run_local

        run_local(prepared, watcher.on_shard, stop)
        return
    from ray_jobs.cluster import connect
    from ray_jobs.evaluation import run_on_ray
    from ray_jobs.metrics import RunMetrics

    connect(prepared.config.address)
    stop.install()  # Ray has set handlers of its own
    watcher.metrics = RunMetrics(prepared.folder.run_id)
    run_on_ray(prepared, watcher, stop)


class Watcher:
    """Shows how a run goes, reports it to Ray's metrics where there is Ray, and ends it when too many samples fail."""

    def __init__(self, progress: "RunProgress", live: "LiveProgress", limit: "ErrorLimit") -> None:
        self._progress, self._live, self._limit = progress, live, limit
        self._due_at = 0.0
        self.metrics: RunMetrics | None = None

    def on_shard(self, outcome: ShardOutcome) -> None:
        """Counts a shard that was committed; raises TooManyErrorsError."""
        self._live.on_shard(outcome)
        self._limit.check(self._progress.num_errors)

    def update(self, workers: Sequence[WorkerState]) -> None:
        self._live.update(workers)
        if self.metrics is not None and time.monotonic() >= self._due_at:
            self._due_at = time.monotonic() + METRICS_EVERY_S
            self.metrics.update(self._progress, workers)

    def on_lost_worker(self, line: str) -> None:
        self._live.say(line)
        if self.metrics is not None:
            self.metrics.worker_restarted()

    def say(self, line: str) -> None:
        self._live.say(line)


def missing_line(result: "RunResult", resume: str | None) -> str:
    """How many planned rows are missing, and how to go on."""
    how = "run the same command again" if resume is None else f"go on with: {resume}"
    return f"{result.num_missing} planned rows are missing; {how}"


def report_result(result: "RunResult", resume: str | None = None) -> int:
    """Prints the summary, the parity and what is wrong; returns the exit code.

    `resume` is the command that goes on, when it is known.
    """
    from adadecode.report.parity import broken_contract, num_checked
    from adadecode.report.summary import num_owed, parity_line
    from adadecode.report.tables import mismatch_lines, summary_table

    console().print(summary_table(result.summary))
    click.echo(parity_line(result.summary))
    for line in result.errors + mismatch_lines(result.verify) + result.disagreements:
        click.echo(line)
    click.echo(f"tables: {result.folder}")
    broken = broken_contract(result.verify).num_rows
    if broken or result.disagreements:
        say_on_stderr(f"parity broken on {broken} of {result.verify.num_rows} checked outputs")
    if result.num_missing:
        say_on_stderr(missing_line(result, resume))
    if broken or result.disagreements:
        return EXIT_MISMATCH
    if result.num_missing:
        return EXIT_INCOMPLETE
    unproved = num_owed(result.summary) - num_checked(result.verify)
    if unproved:
        click.echo(
            f"{unproved} outputs of vanilla have none to compare with; see error_message in the samples", err=True
        )
        return EXIT_FAILED
    failed = [f"{row['method']} on {row['task']}" for row in result.summary.to_pylist() if row["n"] == 0]
    if failed:
        click.echo(f"every sample failed: {', '.join(failed)}; see error_message in the samples", err=True)
        return EXIT_FAILED
    return EXIT_OK
