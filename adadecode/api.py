"""What the command line does, as functions. Nothing here prints: what happens meanwhile an observer is told."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from adadecode.errors import AdaDecodeError, StoppedError, TooManyErrorsError
from adadecode.evaluation.observer import QUIET, Counting, Limiting, Observer, Together
from adadecode.evaluation.stop import NEVER, StopRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from adadecode.bench.result import BenchResult, BenchRow
    from adadecode.certify.result import CertifyResult
    from adadecode.doctor.finding import Finding
    from adadecode.evaluation.progress import RunProgress
    from adadecode.evaluation.recompute import Recomputed
    from adadecode.evaluation.shelf import ModelShelf
    from adadecode.model.head_files import HeadFacts
    from adadecode.records import Say
    from adadecode.runs.result import RunResult
    from adadecode.runs.run import PreparedRun
    from adadecode.runs.scores import RunScores
    from adadecode.scoring.sandbox import Sandbox
    from adadecode.settings import (
        BenchConfig,
        CertifyConfig,
        EvalConfig,
        TrainConfig,
        TuneConfig,
    )
    from adadecode.tuning.result import TuneResult


def silent(line: str) -> None:
    """Says nothing."""


def evaluate(
    settings: EvalConfig,
    out: str | Path | None = None,
    *,
    observer: Observer = QUIET,
    stop: StopRequest = NEVER,
    command: str | None = None,
    models: ModelShelf | None = None,
) -> RunResult:
    """Runs or finishes the evaluation of `settings` in the folder or URL `out`, on Ray or in this process.

    `out` is `results/<task>-<fingerprint>` when None. `stop`, a StopRequest that was entered, heeds Ctrl-C and SIGTERM:
    what is in flight is finished then. Whether it was stopped, failed or is done, the run's tables are written from what
    is committed; any other exception leaves that to the next call, which goes on from there. `command` is what run.json
    stores of how this start was typed, None where a program calls. A run in this process takes its models from the shelf
    `models`, where one is given, and leaves them there for the next run. Returns the closed run.
    Raises StoppedError when it was stopped before it began, UsageError, TooManyErrorsError and other AdaDecodeErrors.
    """
    stop.install()
    try:
        return _evaluate(settings, out, observer, stop, command, models)
    except KeyboardInterrupt as error:
        if not stop.is_made:
            raise
        raise StoppedError("stopped before the first shard") from error


def _evaluate(
    settings: EvalConfig,
    out: str | Path | None,
    observer: Observer,
    stop: StopRequest,
    command: str | None,
    models: ModelShelf | None,
) -> RunResult:
    from adadecode.evaluation.progress import ErrorLimit, RunProgress, total_outcome
    from adadecode.runs.run import close_run, open_run

    with open_run(settings, out, command) as prepared:
        for line in (*prepared.notes, prepared.heading()):
            observer.say(line)
        progress = RunProgress(prepared.plan.num_rows, total_outcome(prepared.committed.values()))
        limit = ErrorLimit.of(settings.max_errors, progress.num_planned)
        watch = Together(Counting(progress), observer, Limiting(progress, limit))
        try:
            limit.check(progress.num_errors)
            watch.on_start(progress)
            try:
                _execute(prepared, progress, watch, stop, models)
            finally:
                watch.on_end()
            if settings.profile is not None and prepared.todo:
                from adadecode.runs.profiles import profile_lines

                for line in profile_lines(prepared.folder.storage):
                    observer.say(line)
        except KeyboardInterrupt:
            if not stop.is_made:
                raise
        except AdaDecodeError as error:
            stop.end()
            reasons: list[str] = []
            with contextlib.suppress(AdaDecodeError):  # the first error is the one to tell
                result = close_run(prepared)
                reasons = result.errors
                observer.on_closed(result)
            if isinstance(error, TooManyErrorsError):
                raise TooManyErrorsError("; ".join([str(error), *reasons])) from error
            raise
        stop.end()
        result = close_run(prepared)
        observer.on_closed(result)
        return result


def _execute(
    prepared: PreparedRun, progress: RunProgress, observer: Observer, stop: StopRequest, models: ModelShelf | None
) -> None:
    if not prepared.todo or stop.is_made:
        return
    if prepared.config.local:
        from adadecode.evaluation.local import run_local

        run_local(prepared, observer, stop, models)
        return
    from ray_jobs.cluster import connect
    from ray_jobs.evaluation import run_on_ray
    from ray_jobs.metrics import Metered
    from ray_jobs.nodes import check_before_run

    connect(prepared.config.address)
    stop.install()  # Ray has set handlers of its own
    check_before_run(prepared, observer.say)
    metered = Metered(progress, prepared.folder.run_id, lambda: not prepared.lease.lost)
    try:
        run_on_ray(prepared, Together(observer, metered), stop)
    finally:
        metered.on_end()


def examine(settings: EvalConfig, out: str | Path | None = None) -> Iterator[Finding]:
    """What the evaluation of `settings` in the folder or URL `out` would meet, found before it is started, line by line.

    Loads the model and decodes a few tokens, in this process or on every node that can hold a worker; `out` is
    `results` when None. Raises UsageError for an `out` that is neither a folder nor a URL.
    """
    from adadecode.runs.storage import absolute

    location = absolute(out or "results")
    if not settings.local:
        from ray_jobs.doctor import examine_on_ray

        yield from examine_on_ray(settings, location)
        return
    from adadecode.doctor.checks import examine
    from adadecode.doctor.subject import Subject

    yield from examine(Subject(settings, location=location))


def certify(
    settings: CertifyConfig,
    out: str | Path | None = None,
    *,
    keys: Mapping[str, str] | None = None,
    say: Say = silent,
    stop: StopRequest = NEVER,
) -> CertifyResult:
    """Compares two servers on the same prompts, or finishes that, in the folder or URL `out`; returns what it comes to.

    With `settings.workers` on Ray, else in this process. `keys` has the API key of `baseline` and of `candidate`, where one
    is needed: it is stored nowhere. `say` gets lines of progress. Raises UsageError where a server cannot be asked, and
    other AdaDecodeErrors.
    """
    from adadecode.certify.run import certify

    if settings.workers is None:
        from adadecode.certify.local import ask_here as ask_all
    else:
        from ray_jobs.certify import ask_on_ray as ask_all
    stop.install()
    return certify(settings, out, keys or {}, say, stop, ask_all)


def score(run: str | Path, sandbox: Sandbox | None = None) -> RunScores:
    """Scores the outputs of the run at the folder or URL `run` and writes its scores.parquet; decodes nothing.

    What a model wrote is run only in a `sandbox` that is given: None runs nothing. Raises RunFolderError where there is
    no run with rows, and UsageError where nothing in it can be scored, or the system refuses the sandbox.
    """
    from adadecode.runs.scores import score_run

    if sandbox is not None:
        sandbox.check()
    return score_run(run, None if sandbox is None else sandbox.run)


def recompute(run: str | Path, num_rows: int, seed: int | None = None, *, say: Say = silent) -> Recomputed:
    """Decodes `num_rows` rows of the run at the folder or URL `run` again, drawn by `seed`, and compares what they gave.

    Its model is loaded, and nothing is written. Without `seed` nobody can know the draw before. `say` gets lines of
    progress. Raises UsageError where the model or the heads are others than those of the run, and RunFolderError where
    there is no run with rows.
    """
    from adadecode.evaluation.recompute import recompute

    return recompute(run, num_rows, seed, say)


def train_heads(settings: TrainConfig, out: str | Path, *, say: Say = silent) -> HeadFacts:
    """Trains exit heads into the folder `out`, or goes on where a training was interrupted; returns their facts.

    With `settings.workers` on Ray, else in this process. `say` gets lines of progress. Raises UsageError and other
    AdaDecodeErrors.
    """
    if settings.workers is None:
        from adadecode.training.train import train_from_config

        return train_from_config(settings, Path(out), say)
    from ray_jobs.cluster import connect
    from ray_jobs.training import train_on_ray

    connect(settings.address)
    return train_on_ray(settings, Path(out), say)


def tune(settings: TuneConfig, out: str | Path, *, say: Say = silent) -> TuneResult:
    """Finds the fastest policy on this machine and writes it to `out`/policy.yaml; returns what was measured of it.

    `say` gets lines of progress. Raises UsageError and other AdaDecodeErrors.
    """
    from adadecode.tuning.tune import tune_from_config

    return tune_from_config(settings, Path(out), say)


def run_bench(settings: BenchConfig, *, say: Say = silent) -> tuple[BenchResult, list[BenchRow]]:
    """Measures the speed of every method and of the parts of a round; returns what was found and a row per generation.

    `say` gets lines of progress. Raises UsageError and RowsDependentError.
    """
    from adadecode.bench.bench import run_bench

    return run_bench(settings, say)
