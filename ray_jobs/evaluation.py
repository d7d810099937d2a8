"""An evaluation on Ray: actors evaluate and commit shards; the driver commits those that were done sample by sample."""

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from adadecode.evaluation.observer import QUIET, Observer
from adadecode.evaluation.rows import SampleRow, commit_rows, lost_rows
from adadecode.records import Say, Shard, ShardOutcome, WorkerState
from adadecode.runs.kernels import kernels_lines
from adadecode.runs.plan import longest_first
from adadecode.runs.run import PreparedRun
from adadecode.runs.storage import absolute
from ray_jobs.actors import EvalActor, EvalTask, ShardWork, SplitSample
from ray_jobs.cluster import actor_resources, num_asked, num_places, with_absolute_paths
from ray_jobs.driver import Driver
from ray_jobs.events import Item
from ray_jobs.labels import selected, selector_of
from ray_jobs.limits import FIRST_DEADLINE_S, FIRST_SAMPLE_S, Limits
from ray_jobs.pool import Pool
from ray_jobs.scheduler import Scheduler
from ray_jobs.state import ActorState, Phase
from ray_jobs.watch import ClusterWatch, watched_cluster

WAITING_S = 30.0


def run_on_ray(
    prepared: PreparedRun,
    observer: Observer = QUIET,
    is_stopping: Callable[[], bool] = lambda: False,
    limits: Limits | None = None,
    actor_class: Any = EvalActor,
) -> None:
    """Evaluates every shard not yet committed on the actors of the run; tells `observer` how it goes.

    An actor that dies, hangs or raises is replaced and its shard assigned to another; a shard that ends its actors at
    several places is split and done sample by sample, and a sample that does becomes error rows. Once `is_stopping`, only
    what is in flight is finished. Raises what every worker refuses when it loads (a user's mistake) or raises at work,
    RunFolderError for a full disk, and AdaDecodeError when no actor can be had.
    """
    if not prepared.todo:
        return
    with watched_cluster(prepared.config.address) as cluster:
        _drive(prepared, observer, is_stopping, limits, actor_class, cluster)


def _drive(
    prepared: PreparedRun,
    observer: Observer,
    is_stopping: Callable[[], bool],
    limits: Limits | None,
    actor_class: Any,
    cluster: ClusterWatch,
) -> None:
    """`run_on_ray` on a cluster that is watched."""
    config, folder = prepared.config, prepared.folder
    resources, threads = actor_resources(config, cluster.nodes())
    location = absolute(folder.location)  # an actor runs in a folder of its own
    task = EvalTask(with_absolute_paths(config), prepared.tasks, location, folder.fingerprint, threads)
    first, *others = longest_first(prepared.todo)
    scheduler = Scheduler(
        (shard_item(first, config.profile is not None), *map(shard_item, others)),
        limits or limits_of(prepared),
        split_shard,
    )
    pool = Pool(actor_class, task, threads, resources, label_selector=selector_of(config))
    EvaluationDriver(pool, scheduler, cluster, prepared, observer, is_stopping).drive()


def limits_of(prepared: PreparedRun) -> Limits:
    """How patient the run is: as its settings say, and with the first shards the longer the more samples they have."""
    config = prepared.config
    largest = max(len(shard.examples) for shard in prepared.todo)
    return Limits(
        first_deadline_s=max(FIRST_DEADLINE_S, largest * FIRST_SAMPLE_S, config.deadline_s),
        least_deadline_s=config.deadline_s,
        grace_s=config.grace_s,
    )


class EvaluationDriver(Driver):
    """Tells an observer of shards, of workers and of those that are lost; commits the shards that were split."""

    def __init__(
        self,
        pool: Pool,
        scheduler: Scheduler,
        cluster: ClusterWatch,
        prepared: PreparedRun,
        observer: Observer,
        stop: Callable[[], bool],
    ) -> None:
        super().__init__(pool, scheduler, cluster)
        self._prepared, self._observer, self._stop = prepared, observer, stop
        self._split = SplitShards(prepared)
        self._waiting = Waiting(pool.resources, observer.say, prepared.config.label_selector)
        self._is_engine_told = False
        self._num_samples = sum(len(shard.examples) for shard in prepared.todo)
        self._num_left = len(prepared.todo)  # shards without a commit

    def num_wanted(self) -> int:
        """One even where no node has room: an actor that waits is what an autoscaler sees."""
        workers = self._prepared.config.workers
        if workers == "auto":
            nodes = self._cluster.nodes()
            places = num_places(self._pool.resources, selected(self._prepared.config, nodes))
            workers = max(1, places + num_asked(places, self._num_left, nodes))
        return min(workers, self._num_samples)

    def on_done(self, item: Item, result: ShardOutcome | SplitSample) -> None:
        self._on_outcome(self._split.add(item.work, result) if isinstance(result, SplitSample) else result)

    def on_give_up(self, item: Item, reason: str) -> None:
        self._observer.say(f"{item.name} is given up: {reason}")
        self._on_outcome(self._split.add_lost(item.work, reason))

    def _on_outcome(self, outcome: ShardOutcome | None) -> None:
        if outcome is not None:  # its shard is committed
            self._num_left -= 1
            self._observer.on_shard(outcome)

    def is_stopping(self) -> bool:
        return self._stop()

    def on_wait(self) -> None:
        _import_statistics()
        self._prepared.lease.check()
        workers = worker_states(self._scheduler, self._pool)
        self._observer.on_workers(workers)
        self._waiting.look_at(workers)
        if not self._is_engine_told and any(worker.phase in ("idle", "working") for worker in workers):
            self._is_engine_told = True  # the first to have loaded has settled the kernels
            for line in kernels_lines(self._prepared.folder.storage):
                self._observer.say(line)

    def on_lost_actor(self, line: str) -> None:
        self._observer.on_lost_worker(line)


@cache
def _import_statistics() -> None:
    """Takes a second, which the end of the run would cost, while actors start."""
    importlib.import_module("adadecode.runs.result")


class Waiting:
    """Says now and then that no node has room for an actor, while every actor waits for one."""

    def __init__(self, resources: dict[str, float], say: Say, label_selector: str | None = None) -> None:
        needs = ", ".join(f"{amount:g} {name.removeprefix('num_')}" for name, amount in resources.items())
        self._needs = f"{needs} free" if label_selector is None else f"{label_selector} and {needs} free"
        self._say, self._due_s = say, WAITING_S

    def look_at(self, workers: Sequence[WorkerState]) -> None:
        """Says so when it is due; call it often."""
        for_s = min((worker.for_s for worker in workers), default=0.0)
        if any(worker.phase != "starting" for worker in workers) or for_s < WAITING_S:
            self._due_s = WAITING_S
        elif for_s >= self._due_s:
            self._due_s = for_s + 2 * WAITING_S
            self._say(f"waiting for a node with {self._needs}, {for_s:.0f} s by now")


def shard_item(shard: Shard, is_profiled: bool = False) -> Item:
    """A whole shard as work; its size is its number of samples."""
    work = ShardWork(shard, is_profiled=is_profiled)
    return Item(f"shard {shard.shard_idx} of task {shard.task}", work, len(shard.examples))


def split_shard(item: Item) -> tuple[Item, ...]:
    """Each sample of the shard `item` as an item, of size 1; none when `item` is a sample."""
    work: ShardWork = item.work
    if work.sample_idx is not None:
        return ()
    return tuple(
        Item(f"sample {example.sample_id} of {item.name}", ShardWork(work.shard, sample_idx))
        for sample_idx, example in enumerate(work.shard.examples)
    )


def worker_states(scheduler: Scheduler, pool: Pool) -> list[WorkerState]:
    """What each actor of the run does now."""
    now = time.monotonic()
    states = []
    for actor in scheduler.actors.values():
        place = pool.places.get(actor.name)
        doing = actor.items[0].name if actor.items else ""
        states.append(WorkerState(actor.name, place.host if place else "", phase_of(actor), doing, now - actor.since))
    return states


def phase_of(actor: ActorState) -> Literal["starting", "loading", "idle", "working"]:
    """The phase of WorkerState: a ready actor is idle or working."""
    match actor.phase:
        case Phase.STARTING:
            return "starting"
        case Phase.LOADING:
            return "loading"
        case Phase.READY:
            return "working" if actor.items else "idle"


@dataclass
class SplitShards:
    """The rows of shards that are done sample by sample, until each shard is whole and committed."""

    prepared: PreparedRun
    _rows: dict[int, dict[int, list[SampleRow]]] = field(default_factory=dict)  # by shard and sample index
    _facts: dict[int, list[dict[str, Any]]] = field(default_factory=dict)  # of the workers, each once, by shard index

    def add(self, work: ShardWork, result: SplitSample) -> ShardOutcome | None:
        """Keeps the rows of a sample; returns the outcome of its shard when that made it whole."""
        facts = self._facts.setdefault(work.shard.shard_idx, [])
        if result.facts not in facts:
            facts.append(result.facts)
        return self._keep(work, result.rows)

    def add_lost(self, work: ShardWork, reason: str) -> ShardOutcome | None:
        """Keeps error rows for a sample that ended every worker; returns the outcome of its shard if it is whole now."""
        assert work.sample_idx is not None, work
        return self._keep(work, lost_rows(self.prepared.config, work.shard, work.sample_idx, reason))

    def _keep(self, work: ShardWork, rows: list[SampleRow]) -> ShardOutcome | None:
        shard = work.shard
        of_shard = self._rows.setdefault(shard.shard_idx, {})
        assert work.sample_idx is not None, work
        of_shard[work.sample_idx] = rows
        if len(of_shard) < len(shard.examples):
            return None
        all_rows = [row for sample_rows in self._rows.pop(shard.shard_idx).values() for row in sample_rows]
        *others, last = self._facts.pop(shard.shard_idx, [None])
        facts = {**last, "others": others} if last and others else last
        return commit_rows(self.prepared.folder, shard, all_rows, facts)
