"""The cluster a run is done on: joining or starting it, and what an actor may take of it."""

import logging
import os
import socket
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from adadecode.errors import ResourcesError, UsageError
from adadecode.settings import EvalConfig, TrainConfig

PROBE_S = 5.0


def connect(address: str | None) -> None:
    """Joins the cluster at `address` (RAY_ADDRESS inside a job), or starts one on this machine, dashboard off."""
    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if _is_ours(address):
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


def _is_ours(address: str | None) -> bool:
    """Whether `connect` starts a cluster on this machine, which nobody can join."""
    return address is None and "RAY_ADDRESS" not in os.environ


def _probe(address: str | None) -> None:
    """Raises OSError when nothing listens at HOST:PORT: Ray itself would wait for minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and "/" not in host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=PROBE_S).close()


def actor_resources(config: EvalConfig | TrainConfig) -> tuple[dict[str, float], int]:
    """Ray's resource options of one actor and the threads it computes with: one GPU each, or an equal share of CPUs.

    With `--workers auto` on the CPU an actor takes what the smallest node has. Raises ResourcesError when the cluster
    cannot hold the workers asked for.
    """
    cpus_per_node = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    num_cpus, num_gpus = sum(cpus_per_node), int(ray.cluster_resources().get("GPU", 0))
    holds = f"the cluster has {num_cpus} CPUs and {num_gpus} GPUs"
    if config.workers == "auto":
        if config.device == "cuda" and not num_gpus and _is_ours(config.address):
            raise ResourcesError(f"--device cuda --workers auto: {holds}, and no node can join it; use --device cpu")
        if config.device == "cuda":
            return {"num_gpus": 1, "num_cpus": 1}, config.threads or max(1, num_cpus // max(1, num_gpus))
        threads = config.threads or min((cpus for cpus in cpus_per_node if cpus), default=1)
        return {"num_cpus": threads}, threads
    workers = config.workers or 1
    remedy = "--workers auto takes what there is and what joins" if isinstance(config, EvalConfig) else "add nodes"
    if config.device == "cuda":
        if workers > num_gpus:
            raise ResourcesError(
                f"--workers {workers}: {holds}, one GPU each; ask for 1..{num_gpus} workers, or {remedy}"
            )
        return {"num_gpus": 1, "num_cpus": 1}, config.threads or max(1, num_cpus // workers)
    if workers > num_cpus:
        raise ResourcesError(f"--workers {workers}: {holds}; ask for 1..{num_cpus} workers on the CPU, or {remedy}")
    most = most_threads(workers, cpus_per_node)
    threads = config.threads or most
    if threads > most:
        raise ResourcesError(f"--threads {threads} for --workers {workers}: {holds}; ask for 1..{most} threads")
    return {"num_cpus": threads}, threads


def num_places(resources: dict[str, float]) -> int:
    """How many actors of `resources` (Ray's options) the nodes that are alive can hold at once."""
    needed = {name.removeprefix("num_").removesuffix("s").upper(): amount for name, amount in resources.items()}
    return sum(
        min(int(node["Resources"].get(name, 0) // amount) for name, amount in needed.items())
        for node in ray.nodes()
        if node["Alive"]
    )


def most_threads(workers: int, cpus_per_node: list[int]) -> int:
    """The most threads each of `workers` can have when every worker lives on one node."""
    return max(t for t in range(1, max(cpus_per_node) + 1) if sum(cpus // t for cpus in cpus_per_node) >= workers)


ConfigT = TypeVar("ConfigT", EvalConfig, TrainConfig)


def with_absolute_paths(config: ConfigT) -> ConfigT:
    """`config` with the local folders of model and heads absolute: an actor runs in a folder of its own."""
    names = {"model", "heads"} & set(type(config).model_fields)
    local = {name: path for name in names if (path := getattr(config, name)) and Path(path).is_dir()}
    return config.model_copy(update={name: str(Path(path).resolve()) for name, path in local.items()})
