"""The driver's loop: shards to idle actors, a dead actor's shard to another one.

Own loop over `ray.wait`, not `ray.util.ActorPool`, which loses the work of a node that dies.
"""

import logging
import os
import socket
import tempfile
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from adadecode.config import EvalConfig
from adadecode.errors import AdaDecodeError, ResourcesError, UsageError
from adadecode.evaluation.run import PreparedRun
from adadecode.records import Shard
from ray_jobs.actors import ActorTask, EvalActor

PROBE_S = 5.0
MAX_ATTEMPTS = 3  # deaths of actors a shard may cause, or loads that may fail, before the run gives up


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


def actor_resources(config: EvalConfig) -> tuple[dict[str, float], int]:
    """Ray's resource options of one actor and the threads it computes with: one GPU each, or an equal share of CPUs.

    Raises ResourcesError when the cluster cannot hold the workers asked for.
    """
    cluster = ray.cluster_resources()
    num_cpus, num_gpus = int(cluster.get("CPU", 0)), int(cluster.get("GPU", 0))
    holds = f"the cluster has {num_cpus} CPUs and {num_gpus} GPUs"
    if config.device == "cuda":
        if config.workers > num_gpus:
            raise ResourcesError(f"--workers {config.workers}: {holds}, one GPU each; ask for 1..{num_gpus} workers")
        return {"num_gpus": 1, "num_cpus": 1}, config.threads or max(1, num_cpus // config.workers)
    if config.workers > num_cpus:
        raise ResourcesError(f"--workers {config.workers}: {holds}; ask for 1..{num_cpus} workers on the CPU")
    most = most_threads(config.workers, [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]])
    threads = config.threads or most
    if threads > most:
        raise ResourcesError(f"--threads {threads} for --workers {config.workers}: {holds}; ask for 1..{most} threads")
    return {"num_cpus": threads}, threads


def most_threads(workers: int, cpus_per_node: list[int]) -> int:
    """The most threads each of `workers` can have when every worker lives on one node."""
    return max(t for t in range(1, max(cpus_per_node) + 1) if sum(cpus // t for cpus in cpus_per_node) >= workers)


def with_absolute_paths(config: EvalConfig) -> EvalConfig:
    """`config` with the local folders of model and heads absolute: an actor runs in a folder of its own."""
    local = {name: path for name in ("model", "heads") if (path := getattr(config, name)) and Path(path).is_dir()}
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
    task = ActorTask(with_absolute_paths(config), prepared.tasks, folder.path.resolve(), folder.fingerprint, threads)
    crew = _Crew(task, resources)
    try:
        for _ in range(min(config.workers, len(prepared.todo))):
            crew.hire()
        _drive(crew, deque(prepared.todo), on_shard)
    finally:
        crew.dismiss()


class _Crew:
    """The actors of a run and what each is doing: loading (None) or a shard."""

    def __init__(self, task: ActorTask, resources: dict[str, float]) -> None:
        environment = {"env_vars": {"OMP_NUM_THREADS": str(task.threads)}}
        self._actor_class: Any = EvalActor.options(runtime_env=environment, **resources)  # pyright: ignore
        self._task = task
        self._num_hired = 0
        self.busy: dict[ray.ObjectRef, tuple[Any, Shard | None]] = {}

    def hire(self) -> None:
        """Starts one more actor, loading."""
        actor = self._actor_class.remote(f"worker-{self._num_hired}", self._task)
        self._num_hired += 1
        self.busy[actor.load.remote()] = (actor, None)

    def give(self, actor: Any, shard: Shard) -> None:
        self.busy[actor.evaluate.remote(shard)] = (actor, shard)

    def works(self) -> bool:
        """Whether any actor has a shard; those that only load are not waited for."""
        return any(shard is not None for _, shard in self.busy.values())

    def dismiss(self) -> None:
        """Ends every actor that is still busy."""
        for actor, _ in self.busy.values():
            ray.kill(actor)


def _drive(crew: _Crew, pending: deque[Shard], on_shard: Callable[[Shard], None]) -> None:
    deaths: Counter[int | None] = Counter()  # by shard; None: while loading, since the last actor that loaded
    while pending or crew.works():
        (done,), _ = ray.wait(list(crew.busy), num_returns=1)
        actor, shard = crew.busy.pop(done)
        try:
            ray.get(done)
        except RayTaskError as error:
            ray.kill(actor)
            raise _as_told(error, shard) from error
        except RayError as error:  # the actor, its node or its environment is gone
            ray.kill(actor)
            deaths[shard.shard_idx if shard else None] += 1
            if shard is not None:
                pending.appendleft(shard)
            if deaths[shard.shard_idx if shard else None] >= MAX_ATTEMPTS:
                raise AdaDecodeError(
                    f"{_doing(shard)} ended its worker {MAX_ATTEMPTS} times; what is committed stays, and the same "
                    f"command continues ({' '.join(str(error).split())[:200]})"
                ) from error
            if pending:
                crew.hire()
            continue
        if shard is None:
            deaths[None] = 0
        else:
            on_shard(shard)
        if pending:
            crew.give(actor, pending.popleft())
        else:
            ray.kill(actor)


def _doing(shard: Shard | None) -> str:
    return "loading the model" if shard is None else f"shard {shard.shard_idx} of task {shard.task}"


def _as_told(error: RayTaskError, shard: Shard | None) -> Exception:
    """The worker's own one-line error when it made one, else a line that names what it was doing."""
    cause = error.cause
    if isinstance(cause, AdaDecodeError):
        return cause
    last_line = str(error).strip().splitlines()[-1]
    return AdaDecodeError(f"{_doing(shard)} failed: {last_line}; Ray's logs are under {tempfile.gettempdir()}/ray")
