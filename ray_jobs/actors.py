"""The actor that owns a GPU (or a share of the CPU), loads the model once and evaluates shards."""

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray

from adadecode.errors import DeviceLostError, RunFolderError
from adadecode.evaluation.rows import SampleRow
from adadecode.records import Shard
from adadecode.settings import EvalConfig
from adadecode.stopwatch import lap, stopwatch
from ray_jobs.pool import Done, PooledActor

log = logging.getLogger("adadecode.actors")


@dataclass(frozen=True)
class EvalTask:
    """What an actor needs to know of its run; sent once."""

    config: EvalConfig
    tasks: tuple[str, ...]
    location: str
    fingerprint: str
    threads: int


@dataclass(frozen=True)
class ShardWork:
    """A shard to evaluate and commit, or, with `sample_idx`, one sample of it whose rows are returned instead.

    The worker that commits a shard that `is_profiled` writes a trace of itself then.
    """

    shard: Shard
    sample_idx: int | None = None
    is_profiled: bool = False


class SplitSample(NamedTuple):
    """One sample of a shard that was split: its rows, and the worker's facts for the commit of the shard."""

    rows: list[SampleRow]
    facts: dict[str, Any]


class Evaluator(PooledActor):
    """Evaluates shards of one run, one at a time; rows go from here to the run folder, not through the driver."""

    def __init__(self, worker_id: str, task: EvalTask) -> None:
        self._worker_id, self._task = worker_id, task

    def load(self) -> None:
        """Loads the model and warms it up. Separate from `__init__`, so that errors arrive whole."""
        with stopwatch() as watch:
            watch.seconds["process"] = self.process_s
            self._load()

    def _load(self) -> None:
        with lap("imports"):
            from adadecode.evaluation.run_worker import load_run_worker
            from adadecode.evaluation.worker_log import configure_worker_log
            from adadecode.runs.folder import RunFolder
            from ray_jobs.metrics import WorkerMetrics

        task = self._task
        self._folder = RunFolder(task.location)
        self._metrics = WorkerMetrics(self._folder.run_id)
        configure_worker_log(self._folder.run_id, self._worker_id)
        if self._folder.fingerprint != task.fingerprint:
            raise RunFolderError(f"{task.location!r} was taken over by another run: choose another --out")
        with lost_device_ends_the_process():
            self._worker = load_run_worker(task.config, task.tasks, self._worker_id, task.threads, self._folder.storage)

    def work(self, work: ShardWork) -> Done:
        """Evaluates a shard and commits it, unless that was done, or a sample; returns a ShardOutcome or SplitSample."""
        from adadecode.evaluation.shard import do_shard, evaluate_sample_alone

        with lost_device_ends_the_process():
            if work.sample_idx is None:
                done = do_shard(self._worker, work.shard, self._folder, work.is_profiled)
                self._metrics.count_drafts(done.num_drafted, done.num_accepted)
                return Done(done.outcome, done.full_s)
            rows, facts, full_s = evaluate_sample_alone(self._worker, work.shard, work.sample_idx)
            return Done(SplitSample(rows, facts), full_s)


@contextmanager
def lost_device_ends_the_process() -> Generator[None]:
    """Exits instead of raising: retries must not return to a process whose device is broken."""
    try:
        yield
    except DeviceLostError:
        log.exception("the device is broken: this process ends")
        os._exit(1)


EvalActor = ray.remote(Evaluator)
