"""An evaluation on Ray: actors evaluate and commit shards; the driver commits those that were done sample by sample."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ray.exceptions import RayError

from adadecode.errors import AdaDecodeError
from adadecode.evaluation.rows import SampleRow, commit_rows, lost_rows
from adadecode.records import Shard, ShardOutcome, WorkerState
from adadecode.runs.plan import longest_first
from adadecode.runs.run import PreparedRun
from ray_jobs.actors import EvalActor, EvalTask, LoneSample, ShardWork
from ray_jobs.cluster import actor_resources, num_places, with_absolute_paths
from ray_jobs.events import Item
from ray_jobs.pool import Crew, drive
from ray_jobs.scheduler import FIRST_DEADLINE_S, ActorState, Limits, Phase, Scheduler

WAITING_S = 30.0


class Display(Protocol):
    """Who is told how the run goes."""

    def on_shard(self, outcome: ShardOutcome) -> None: ...

    def update(self, workers: list[WorkerState]) -> None: ...

    def on_lost_worker(self, line: str) -> None: ...

    def say(self, line: str) -> None: ...


def run_on_ray(
    prepared: PreparedRun,
    display: Display,
    is_stopping: Callable[[], bool] = lambda: False,
    limits: Limits | None = None,
    actor_class: Any = EvalActor,
) -> None:
    """Evaluates every shard not yet committed on the actors of the run.

    An actor that dies or hangs is replaced and its shard given to another; a shard that keeps ending its actors is done
    sample by sample, and a sample that does becomes error rows. Once `is_stopping`, only what is in flight is finished.
    Raises what a worker refused to do (a user's mistake), and AdaDecodeError when no actor can be had.
    """
    if not prepared.todo:
        return
    config, folder = prepared.config, prepared.folder
    resources, threads = actor_resources(config)
    task = EvalTask(with_absolute_paths(config), prepared.tasks, folder.location, folder.fingerprint, threads)
    crew = Crew(actor_class, task, threads, resources)
    scheduler = Scheduler(
        (shard_item(shard) for shard in longest_first(prepared.todo)),
        limits or Limits(first_deadline_s=max(FIRST_DEADLINE_S, config.deadline_s), least_deadline_s=config.deadline_s),
        split_shard,
    )
    lone = LoneSamples(prepared)
    num_todo = sum(len(shard.examples) for shard in prepared.todo)

    waiting = Waiting(resources, display.say)

    def num_wanted() -> int:
        """One even where no node has room: an actor that waits is what an autoscaler sees."""
        return min(max(1, num_places(resources)) if config.workers == "auto" else config.workers, num_todo)

    def on_done(item: Item, result: ShardOutcome | LoneSample) -> None:
        outcome = lone.add(item.work, result) if isinstance(result, LoneSample) else result
        if outcome is not None:
            display.on_shard(outcome)

    def on_give_up(item: Item, reason: str) -> None:
        display.say(f"{item.name} is given up: {reason}")
        outcome = lone.lose(item.work, reason)
        if outcome is not None:
            display.on_shard(outcome)

    def on_wait() -> None:
        prepared.lease.check()
        workers = worker_states(scheduler, crew)
        display.update(workers)
        waiting.look_at(workers)

    try:
        drive(
            crew,
            scheduler,
            num_wanted=num_wanted,
            on_done=on_done,
            on_give_up=on_give_up,
            is_stopping=is_stopping,
            on_wait=on_wait,
            on_lost=display.on_lost_worker,
        )
    except RayError as error:
        reason = " ".join(str(error).split())[:200]
        raise AdaDecodeError(
            f"the Ray cluster is gone ({reason}); what is committed stays, and the same command continues"
        ) from error
    finally:
        crew.dismiss_all()


class Waiting:
    """Says now and then that no node has room for an actor, while none is at work."""

    def __init__(self, resources: dict[str, float], say: Callable[[str], None]) -> None:
        self._needs = ", ".join(f"{amount:g} {name.removeprefix('num_')}" for name, amount in resources.items())
        self._say, self._due_s = say, WAITING_S

    def look_at(self, workers: Sequence[WorkerState]) -> None:
        for_s = min((worker.for_s for worker in workers), default=0.0)
        if any(worker.phase != "starting" for worker in workers) or for_s < WAITING_S:
            self._due_s = WAITING_S
        elif for_s >= self._due_s:
            self._due_s = for_s + 2 * WAITING_S
            self._say(f"waiting for a node with {self._needs} free, {for_s:.0f} s by now")


def shard_item(shard: Shard) -> Item:
    return Item(f"shard {shard.shard_idx} of task {shard.task}", ShardWork(shard), len(shard.examples))


def split_shard(item: Item) -> tuple[Item, ...]:
    """The samples of a shard as items of their own, none when `item` is one."""
    work: ShardWork = item.work
    if work.sample_idx is not None:
        return ()
    return tuple(
        Item(f"sample {example.sample_id} of {item.name}", ShardWork(work.shard, sample_idx))
        for sample_idx, example in enumerate(work.shard.examples)
    )


def worker_states(scheduler: Scheduler, crew: Crew) -> list[WorkerState]:
    """What each actor of the run does now."""
    now = time.monotonic()
    states = []
    for actor in scheduler.actors.values():
        place = crew.places.get(actor.name)
        doing = actor.items[0].name if actor.items else ""
        states.append(WorkerState(actor.name, place.host if place else "", phase_of(actor), doing, now - actor.since))
    return states


def phase_of(actor: ActorState) -> Literal["starting", "loading", "idle", "working"]:
    match actor.phase:
        case Phase.STARTING:
            return "starting"
        case Phase.LOADING:
            return "loading"
        case Phase.READY:
            return "working" if actor.items else "idle"


@dataclass
class LoneSamples:
    """The rows of shards that are done sample by sample, until each shard is whole and committed."""

    prepared: PreparedRun
    _rows: dict[int, dict[int, list[SampleRow]]] = field(default_factory=dict)
    _facts: dict[int, dict[str, Any]] = field(default_factory=dict)

    def add(self, work: ShardWork, result: LoneSample) -> ShardOutcome | None:
        """Keeps a sample's rows; returns the outcome of its shard when that made it whole."""
        self._facts[work.shard.shard_idx] = result.facts
        return self._keep(work, result.rows)

    def lose(self, work: ShardWork, reason: str) -> ShardOutcome | None:
        """The same for a sample that ended every worker: its rows say so."""
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
        return commit_rows(self.prepared.folder, shard, all_rows, self._facts.pop(shard.shard_idx, None))
