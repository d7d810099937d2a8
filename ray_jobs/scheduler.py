"""The driver's loop: shards to idle actors, a dead actor's shard to another one.

Own loop over `ray.wait`, not `ray.util.ActorPool`, which loses the work of a node that dies.
"""

import logging
import os
import tempfile
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from adadecode.config import EvalConfig
from adadecode.errors import AdaDecodeError, ResourcesError
from adadecode.evaluation.run import PreparedRun
from adadecode.records import Shard
from ray_jobs.actors import ActorTask, EvalActor

MAX_ATTEMPTS = 3  # deaths of actors a shard may cause, or loads that may fail, before the run gives up


def connect(address: str | None) -> None:
    """Joins the cluster at `address` (RAY_ADDRESS inside a job), or starts one on this machine, dashboard off."""
    if not ray.is_initialized():
        if address is None and "RAY_ADDRESS" not in os.environ:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)


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
    threads = config.threads or num_cpus // config.workers
    if threads * config.workers > num_cpus:
        raise ResourcesError(
            f"--threads {threads} for --workers {config.workers}: {holds}; "
            f"ask for 1..{num_cpus // config.workers} threads"
        )
    return {"num_cpus": threads}, threads


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
    task = ActorTask(with_absolute_paths(config), prepared.tasks, prepared.folder.path.resolve(), threads)
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

    def dismiss(self) -> None:
        """Ends every actor that still works."""
        for actor, _ in self.busy.values():
            ray.kill(actor)


def _drive(crew: _Crew, pending: deque[Shard], on_shard: Callable[[Shard], None]) -> None:
    deaths: Counter[int | None] = Counter()
    while crew.busy:
        (done,), _ = ray.wait(list(crew.busy), num_returns=1)
        actor, shard = crew.busy.pop(done)
        try:
            ray.get(done)
        except RayTaskError as error:
            raise _as_told(error, shard) from error
        except RayActorError as error:
            deaths[shard.shard_idx if shard else None] += 1
            if shard is not None:
                pending.appendleft(shard)
            if deaths[shard.shard_idx if shard else None] >= MAX_ATTEMPTS:
                raise AdaDecodeError(
                    f"{_doing(shard)} ended its worker {MAX_ATTEMPTS} times; what is committed stays, and the same "
                    f"command continues ({' '.join(str(error).split())[:200]})"
                ) from error
            crew.hire()
            continue
        if shard is not None:
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
