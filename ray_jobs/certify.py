"""A certification on Ray: actors without a GPU ask the servers, each with its share of the prompts that may be in flight.

API keys and passwords go to an actor in a call. Ray keeps what actors are made from, and shows their environments to
whoever may look at the cluster, so they are in neither.
"""

import contextlib
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ray

from adadecode.certify.asking import LONGEST_PAUSE_S
from adadecode.certify.progress import Watch
from adadecode.certify.prompt import do_prompt, lost_prompt_rows
from adadecode.certify.run import Prepared
from adadecode.certify.sides import Access, connected, without_secrets
from adadecode.errors import ResourcesError, RunFolderError, UsageError
from adadecode.evaluation.rows import commit_rows
from adadecode.evaluation.stop import StopRequest
from adadecode.records import Say, Shard, ShardOutcome
from adadecode.runs.folder import RunFolder
from adadecode.settings import CertifyConfig
from ray_jobs.cluster import connect
from ray_jobs.driver import Driver
from ray_jobs.evaluation import Waiting, worker_states
from ray_jobs.events import Item
from ray_jobs.limits import Limits
from ray_jobs.pool import Done, Pool, PooledActor
from ray_jobs.scheduler import Scheduler
from ray_jobs.watch import ClusterWatch, watched_cluster

CPUS_PER_WORKER = 0.1  # it waits for servers
ROUNDING = 1e-9
PROMPTS_PER_REQUEST = 4  # of an item, for each request that a worker has in flight
STARTUP_S = 60.0  # added to the longest that its requests may take


@dataclass(frozen=True)
class AskTask:
    """What an actor needs to know of its certification; sent once, and kept by Ray, so it holds no secret."""

    config: CertifyConfig
    location: str
    fingerprint: str
    num_requests: int  # in flight at once


@ray.remote
class AskActor(PooledActor):
    """Asks both servers for prompts, several at once; rows go from here to the run folder, not through the driver."""

    def __init__(self, worker_id: str, task: AskTask) -> None:
        self._worker_id, self._task = worker_id, task

    def load(self, access: Mapping[str, Access]) -> None:
        """Finds the folder and both servers. Separate from `__init__`, so that errors arrive whole and secrets stay here.

        Raises UsageError where a server cannot be asked from here.
        """
        task = self._task
        self._folder = RunFolder(task.location)
        if self._folder.fingerprint != task.fingerprint:
            raise RunFolderError(f"{task.location!r} was taken over by another run: choose another --out")
        self._opened = contextlib.ExitStack()  # until the process ends
        sides = connected(task.config, access, self._worker_id, task.num_requests)
        try:
            self._servers = self._opened.enter_context(sides)
        except UsageError as error:
            raise UsageError(f"from {self._worker_id} on {socket.gethostname()}: {error}") from None
        self._threads = ThreadPoolExecutor(task.num_requests)

    def work(self, shards: Sequence[Shard]) -> Done:
        """Does the prompts of `shards` that have no commit; returns what each of all came to."""
        return Done(list(self._threads.map(lambda shard: do_prompt(self._servers, self._folder, shard), shards)))


def ask_on_ray(prepared: Prepared, say: Say, stop: StopRequest) -> str | None:
    """Has actors do every prompt that has no commit; returns why it ended early, None where it did not.

    The cluster is joined or started, unless this process is connected to one.

    A prompt is one actor's, in all passes of both sides, so that its times are of one clock. One whose actor died is asked
    again by another, all of it. Begins no more once `stop`. Raises UsageError where no actor can ask the servers,
    ResourcesError for more actors than the cluster holds, and ClusterLostError.
    """
    config = prepared.servers.config
    if not prepared.todo or stop.is_made:
        return None
    connect(config.address)
    stop.install()  # Ray has set handlers of its own
    watch = Watch(len(prepared.shards), prepared.committed, config.max_errors, say)
    with watched_cluster(config.address) as cluster:
        try:
            _drive(prepared, watch, say, stop, cluster)
        finally:
            watch.say_last()
    return watch.failure()


def _drive(prepared: Prepared, watch: Watch, say: Say, stop: Callable[[], bool], cluster: ClusterWatch) -> None:
    """`ask_on_ray` on a cluster that is watched."""
    config, folder = prepared.servers.config, prepared.folder
    assert config.workers is not None, config
    resources = worker_resources(config.workers, cluster.nodes())
    num_requests = config.concurrency // config.workers
    task = AskTask(without_secrets(prepared.servers), folder.location, folder.fingerprint, num_requests)
    pool = Pool(AskActor, task, 1, resources, load_with=[prepared.access])
    scheduler = Scheduler(prompt_items(prepared.todo, config.workers, num_requests), limits_of(config), split_prompts)
    AskDriver(pool, scheduler, cluster, prepared, watch, say, stop).drive()


def worker_resources(num_workers: int, nodes: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Ray's resource options of one actor; raises ResourcesError where `nodes` cannot hold `num_workers` of them."""
    most = sum(int(node["Resources"].get("CPU", 0) / CPUS_PER_WORKER + ROUNDING) for node in nodes)
    if num_workers > most:
        raise ResourcesError(
            f"--workers {num_workers}: each takes {CPUS_PER_WORKER:g} of a CPU, and the cluster has room for {most}; ask "
            "for fewer, or add nodes"
        )
    return {"num_cpus": CPUS_PER_WORKER, "num_gpus": 0}


def limits_of(config: CertifyConfig) -> Limits:
    """How patient the run is: a worker that is alive takes no longer than all its requests at their deadlines.

    No prompt is ever two workers' at once: servers are measured.
    """
    longest_s = 2 * config.passes * (1 + config.retries) * (config.deadline_s + LONGEST_PAUSE_S)
    return Limits(first_deadline_s=PROMPTS_PER_REQUEST * longest_s + STARTUP_S, exclusive=True, grace_s=config.grace_s)


def prompt_items(todo: Sequence[Shard], num_workers: int, num_requests: int) -> list[Item]:
    """The prompts in groups of at most PROMPTS_PER_REQUEST for each request in flight; each worker has one where it can."""
    most = min(PROMPTS_PER_REQUEST * num_requests, max(1, len(todo) // num_workers))
    groups = [todo[start : start + most] for start in range(0, len(todo), most)]
    return [Item(f"prompts {group[0].shard_idx} to {group[-1].shard_idx}", group, len(group)) for group in groups]


def split_prompts(item: Item) -> tuple[Item, ...]:
    """Each prompt of a group as an item; none when `item` is a prompt."""
    if item.size == 1:
        return ()
    return tuple(Item(f"prompt {shard.shard_idx}", [shard]) for shard in item.work)


class AskDriver(Driver):
    """Counts the prompts that are done; one that ended its workers is committed as error rows."""

    def __init__(
        self,
        pool: Pool,
        scheduler: Scheduler,
        cluster: ClusterWatch,
        prepared: Prepared,
        watch: Watch,
        say: Say,
        stop: Callable[[], bool],
    ) -> None:
        super().__init__(pool, scheduler, cluster)
        self._prepared, self._progress, self._say, self._stop = prepared, watch, say, stop
        self._waiting = Waiting(pool.resources, say)

    def num_wanted(self) -> int:
        config = self._prepared.servers.config
        assert config.workers is not None, config
        return config.workers

    def is_stopping(self) -> bool:
        return self._stop() or self._progress.has_failed

    def on_wait(self) -> None:
        self._prepared.lease.check()
        self._waiting.look_at(worker_states(self._scheduler, self._pool))

    def on_lost_actor(self, line: str) -> None:
        self._say(line)

    def on_done(self, item: Item, result: list[ShardOutcome]) -> None:
        for outcome in result:
            self._progress.add(outcome)

    def on_give_up(self, item: Item, reason: str) -> None:
        self._say(f"{item.name} is given up: {reason}")
        for shard in item.work:
            rows = lost_prompt_rows(shard, self._prepared.servers.config.passes, reason)
            self._progress.add(commit_rows(self._prepared.folder, shard, rows, None))
