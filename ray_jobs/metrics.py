"""A run's figures for a dashboard, through Ray: every node exports what its processes report, for Prometheus to scrape."""

import time
from collections.abc import Callable, Sequence
from functools import partial

from ray.util.metrics import Counter, Gauge

from adadecode.evaluation.observer import Quiet
from adadecode.evaluation.progress import NOTHING, RunProgress
from adadecode.records import WorkerState

EVERY_S = 1.0


def _gauge(run_id: str, name: str, description: str) -> Gauge:
    return Gauge(f"adadecode_{name}", description, ("run",)).set_default_tags({"run": run_id})


def _counter(run_id: str, name: str, description: str) -> Counter:
    return Counter(f"adadecode_{name}", description, ("run",)).set_default_tags({"run": run_id})


class RunMetrics:
    """The metrics of one run, as its driver knows them; all have the tag `run`. Needs a Ray that is connected.

    Prometheus sees `ray_adadecode_NAME`, with `_total` behind the counters, which count this session's work alone.
    """

    def __init__(self, run_id: str) -> None:
        gauge, counter = partial(_gauge, run_id), partial(_counter, run_id)
        self._planned = gauge("samples_planned", "Samples of the run")
        self._done = gauge("samples_done", "Samples that are committed, those of earlier sessions too")
        self._errors = gauge("error_samples", "Committed samples with an error row")
        self._tokens = counter("output_tokens", "Output tokens of all methods")
        self._tokens_per_s = gauge("tokens_per_second", "Output tokens of all methods over this session's wall time")
        self._exact = gauge("parity_exact", "Committed outputs that equal vanilla's, of the methods that owe it")
        self._owed = gauge("parity_owed", "Committed outputs that must equal vanilla's")
        self._workers = gauge("workers", "Workers, whatever they do")
        self._working = gauge("workers_working", "Workers that evaluate a shard")
        self._restarts = counter("worker_restarts", "Workers that died or hung and were replaced")
        self._lease = gauge("lease_held", "1 while this driver is the run's only one, 0 once another has taken it over")
        self._reported = NOTHING

    def update(self, progress: RunProgress, workers: Sequence[WorkerState], is_ours: bool = True) -> None:
        """Reports how the run stands; `is_ours`: this driver has its lease."""
        total, session = progress.total, progress.session
        self._planned.set(progress.num_planned)
        self._done.set(total.num_samples)
        self._errors.set(total.num_error_samples)
        self._exact.set(total.num_exact)
        self._owed.set(total.num_owed)
        self._tokens_per_s.set(progress.tokens_per_s or 0.0)
        self._lease.set(is_ours)
        self._workers.set(len(workers))
        self._working.set(sum(worker.phase == "working" for worker in workers))
        num_new_tokens = session.num_output_tokens - self._reported.num_output_tokens
        if num_new_tokens:  # Ray refuses an increment of 0
            self._tokens.inc(num_new_tokens)
        self._reported = session

    def worker_restarted(self) -> None:
        """Counts a worker that was replaced."""
        self._restarts.inc()


class WorkerMetrics:
    """The metrics of one run, as each of its workers knows them; they add up."""

    def __init__(self, run_id: str) -> None:
        self._drafted = _counter(run_id, "drafted_tokens", "Tokens that were drafted, of all methods")
        self._accepted = _counter(run_id, "accepted_tokens", "Drafted tokens that were kept")

    def count_drafts(self, num_drafted: int, num_accepted: int) -> None:
        """Counts the drafts of a shard."""
        for counter, num in ((self._drafted, num_drafted), (self._accepted, num_accepted)):
            if num:  # Ray refuses an increment of 0
                counter.inc(num)


class Metered(Quiet):
    """Reports a run to Ray's metrics, about once a second."""

    def __init__(self, progress: RunProgress, run_id: str, is_ours: Callable[[], bool]) -> None:
        """`is_ours` says whether this driver has the run's lease."""
        self._progress, self._metrics, self._due_at = progress, RunMetrics(run_id), 0.0
        self._is_ours = is_ours

    def on_workers(self, states: Sequence[WorkerState]) -> None:
        if time.monotonic() >= self._due_at:
            self._due_at = time.monotonic() + EVERY_S
            self._metrics.update(self._progress, states, self._is_ours())

    def on_lost_worker(self, line: str) -> None:
        self._metrics.worker_restarted()

    def on_end(self) -> None:
        """Reports how the run ended: what was reported last stays for about 20 s, for Prometheus to scrape once more."""
        self._metrics.update(self._progress, (), self._is_ours())
