"""The driver's loop: shards, or whatever the work is cut into, to idle actors; a dead actor's to another one.

Own loop over `ray.wait`, not `ray.util.ActorPool`, which loses the work of a node that dies.
"""

import logging
import os
import socket
import tempfile
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from adadecode.config import EvalConfig, TrainConfig
from adadecode.errors import AdaDecodeError, ResourcesError, UsageError
from adadecode.evaluation.run import PreparedRun
from adadecode.evaluation.storage import absolute
from adadecode.records import Shard
from ray_jobs.actors import ActorTask, EvalActor

PROBE_S = 5.0
WAIT_S = 1.0
MAX_ATTEMPTS = 3  # deaths of actors a shard may cause, or loads that may fail, before the run gives up
LOADING = "loading the model"

Item = TypeVar("Item")


def connect(address: str | None) -> None:
    """Joins the cluster at `address` (RAY_ADDRESS inside a job), or starts one on this machine, dashboard off."""
    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None and "RAY_ADDRESS" not in os.environ:
        ray.init(address="local", include_dashboard=False, **quiet)  # never a head somebody else left behind
        return
    try:
        _probe(address)
        ray.init(address=address, **quiet)
    except (RayError, RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"--address {address!r}: no Ray cluster answers there; give HOST:PORT of a running head, or leave it out to "
            f"start one on this machine ({reason})"
        ) from error


def _probe(address: str | None) -> None:
    """Raises OSError when nothing listens at HOST:PORT: Ray itself would wait for minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and "/" not in host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=PROBE_S).close()


def actor_resources(config: EvalConfig | TrainConfig) -> tuple[dict[str, float], int]:
    """Ray's resource options of one actor and the threads it computes with: one GPU each, or an equal share of CPUs.

    Raises ResourcesError when the cluster cannot hold the workers asked for.
    """
    cluster, workers = ray.cluster_resources(), config.workers or 1
    num_cpus, num_gpus = int(cluster.get("CPU", 0)), int(cluster.get("GPU", 0))
    holds = f"the cluster has {num_cpus} CPUs and {num_gpus} GPUs"
    if config.device == "cuda":
        if workers > num_gpus:
            raise ResourcesError(f"--workers {workers}: {holds}, one GPU each; ask for 1..{num_gpus} workers")
        return {"num_gpus": 1, "num_cpus": 1}, config.threads or max(1, num_cpus // workers)
    if workers > num_cpus:
        raise ResourcesError(f"--workers {workers}: {holds}; ask for 1..{num_cpus} workers on the CPU")
    most = most_threads(workers, [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]])
    threads = config.threads or most
    if threads > most:
        raise ResourcesError(f"--threads {threads} for --workers {workers}: {holds}; ask for 1..{most} threads")
    return {"num_cpus": threads}, threads


def most_threads(workers: int, cpus_per_node: list[int]) -> int:
    """The most threads each of `workers` can have when every worker lives on one node."""
    return max(t for t in range(1, max(cpus_per_node) + 1) if sum(cpus // t for cpus in cpus_per_node) >= workers)


ConfigT = TypeVar("ConfigT", EvalConfig, TrainConfig)


def with_absolute_paths(config: ConfigT) -> ConfigT:
    """`config` with the local folders of model and heads absolute: an actor runs in a folder of its own."""
    names = {"model", "heads"} & set(type(config).model_fields)
    local = {name: path for name in names if (path := getattr(config, name)) and Path(path).is_dir()}
    return config.model_copy(update={name: str(Path(path).resolve()) for name, path in local.items()})


def run_on_ray(prepared: PreparedRun, on_shard: Callable[[Shard], None]) -> None:
    """Evaluates every shard not yet committed on the actors of the run; calls `on_shard` after each.

    An actor that dies is replaced and its shard given to the next idle one. Raises what a worker refused to do (a
    user's mistake) and AdaDecodeError when a shard keeps killing its actors.
    """
    if not prepared.todo:
        return
    config = prepared.config
    resources, threads = actor_resources(config)
    folder = prepared.folder
    task = ActorTask(
        with_absolute_paths(config), prepared.tasks, absolute(folder.location), folder.fingerprint, threads
    )
    crew = Crew(EvalActor, task, threads, resources)
    try:
        for _ in range(min(config.workers, len(prepared.todo))):
            crew.hire()
        drive(crew, deque(prepared.todo), lambda shard, _: on_shard(shard), _name)
    finally:
        crew.dismiss()


class Crew:
    """The actors of a run and what each is doing: loading (None) or an item of work.

    An actor is made from its worker id and the crew's task, then told to `load` and, item by item, to `work`.
    """

    def __init__(self, actor_class: Any, task: Any, threads: int, resources: dict[str, float]) -> None:
        environment = {"env_vars": {"OMP_NUM_THREADS": str(threads)}}
        self._actor_class = actor_class.options(runtime_env=environment, **resources)
        self._task = task
        self._num_hired = 0
        self.busy: dict[ray.ObjectRef, tuple[Any, Any]] = {}

    def hire(self) -> None:
        """Starts one more actor, loading."""
        actor = self._actor_class.remote(f"worker-{self._num_hired}", self._task)
        self._num_hired += 1
        self.busy[actor.load.remote()] = (actor, None)

    def give(self, actor: Any, item: Any) -> None:
        self.busy[actor.work.remote(item)] = (actor, item)

    def works(self) -> bool:
        """Whether any actor has an item; those that only load are not waited for."""
        return any(item is not None for _, item in self.busy.values())

    def dismiss(self) -> None:
        """Ends every actor that is still busy."""
        for actor, _ in self.busy.values():
            ray.kill(actor)


class Pending(Protocol[Item]):
    """Work not yet given to anyone, false when there is none: a deque, or what makes its items when asked for them."""

    def popleft(self) -> Item: ...

    def appendleft(self, item: Item, /) -> None: ...


def drive(
    crew: Crew,
    pending: Pending[Item],
    on_done: Callable[[Item, Any], None],
    name: Callable[[Item], str],
    on_wait: Callable[[], None] = lambda: None,
) -> None:
    """Has `crew` do all that is `pending`; `on_done` gets each item with what the actor returned for it.

    Errors and counts of deaths go by the `name` of an item. `on_wait` is called now and then while nothing is done.
    """
    deaths: Counter[str] = Counter()  # by what was being done; while loading, since the last actor that loaded
    while pending or crew.works():
        ready, _ = ray.wait(list(crew.busy), num_returns=1, timeout=WAIT_S)
        if not ready:
            on_wait()
            continue
        done = ready[0]
        actor, item = crew.busy.pop(done)
        doing = LOADING if item is None else name(item)
        try:
            result = ray.get(done)
        except RayTaskError as error:
            ray.kill(actor)
            raise _as_told(error, doing) from error
        except RayError as error:  # the actor, its node or its environment is gone
            ray.kill(actor)
            deaths[doing] += 1
            if item is not None:
                pending.appendleft(item)
            if deaths[doing] >= MAX_ATTEMPTS:
                raise AdaDecodeError(
                    f"{doing} ended its worker {MAX_ATTEMPTS} times; what is committed stays, and the same "
                    f"command continues ({' '.join(str(error).split())[:200]})"
                ) from error
            if pending:
                crew.hire()
            continue
        if item is None:
            deaths[LOADING] = 0
        else:
            on_done(item, result)
        if pending:
            crew.give(actor, pending.popleft())
        else:
            ray.kill(actor)


def _name(shard: Shard) -> str:
    return f"shard {shard.shard_idx} of task {shard.task}"


def _as_told(error: RayTaskError, doing: str) -> Exception:
    """The worker's own one-line error when it made one, else a line that names what it was doing."""
    cause = error.cause
    if isinstance(cause, AdaDecodeError):
        return cause
    last_line = str(error).strip().splitlines()[-1]
    return AdaDecodeError(f"{doing} failed: {last_line}; Ray's logs are under {tempfile.gettempdir()}/ray")
