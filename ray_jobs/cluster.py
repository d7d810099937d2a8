"""The cluster a run is done on: joining or starting it, and what an actor may take of it."""

import atexit
import contextlib
import json
import logging
import os
import secrets
import socket
import threading
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray
from pydantic import BaseModel
from ray import _raylet
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.exceptions import AuthenticationError, RayError

from adadecode.errors import ResourcesError, UsageError
from adadecode.files import is_there
from adadecode.printable import on_one_line
from adadecode.settings import ORIGINAL_HEADS, EvalConfig, TrainConfig
from ray_jobs.labels import selected

PROBE_S, ALIVE_S = 5.0, 20.0
LEAVE_S = 20.0
RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"  # after which Ray ends a process whose head is gone
LONG_S = 1_000_000
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"  # that the process above a job's driver gives it once the job is stopped
TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
NODE_GROUP = "ray.io/node-group"  # a label of every node of a cluster that Ray's autoscaler or KubeRay manages
LEAST_ASKED = 4
_DEMOS = ("demo", "demo-draft")
# Settings that may name a local folder, and what they say that is none, whatever lies there.
NO_PATHS = {"model": _DEMOS, "draft_model": _DEMOS, "medusa_heads": ("demo",), "heads": (ORIGINAL_HEADS,)}
MISMATCH = "Version mismatch"  # how the error begins that Ray raises of other versions in a cluster
TOKEN_REMEDY = "set RAY_AUTH_MODE=token and, in RAY_AUTH_TOKEN, the token of that cluster"


def connect(address: str | None) -> None:
    """Joins the cluster at `address` (RAY_ADDRESS inside a job), or starts one on this machine, dashboard off."""
    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with outliving_the_head():
        if is_ours(address):
            with a_token_of_its_own():
                ray.init(address="local", include_dashboard=False, **quiet)  # never a head somebody else left behind
            return
        try:
            _probe(address or os.environ["RAY_ADDRESS"])
            keep_stop_wait_from_actors()
            ray.init(address=address, **quiet)
        except AuthenticationError as error:
            raise UsageError(
                f"--address {address!r}: the Ray cluster there asks for a token; {TOKEN_REMEDY} ({on_one_line(error)})"
            ) from error
        except (RayError, RuntimeError, ValueError, OSError) as error:
            if str(error).startswith(MISMATCH):
                raise UsageError(f"--address {address!r}: {mixed_versions(str(error))}") from error
            raise UsageError(
                f"--address {address!r}: no Ray cluster answers there; give HOST:PORT of a running head, or leave it out "
                f"to start one on this machine ({on_one_line(error)})"
            ) from error


def keep_stop_wait_from_actors() -> None:
    """Takes STOP_WAIT out of what the actors of this job get: for one with a variable of its own Ray starts a process anew.

    That is seconds for each, where it keeps some ready for those without.
    """
    config = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}"))
    if (config.get("runtime_env", {}).get("env_vars") or {}).pop(STOP_WAIT, None) is not None:
        os.environ[RAY_JOB_CONFIG_JSON_ENV_VAR] = json.dumps(config)


def mixed_versions(said: str) -> str:
    """What Ray `said` of a cluster with other versions than this process's, in one clause with the remedy."""
    found: dict[str, list[str]] = {}
    for line in said.splitlines():
        name, _, version = line.strip().partition(": ")
        if name in ("Ray", "Python"):
            found.setdefault(name, []).append(version)
    differing = [f"{name} {both[0]} there and {both[-1]} here" for name, both in found.items() if len(set(both)) > 1]
    return f"the cluster has {' and '.join(differing)}: install the same versions on every node and on this machine"


def disconnect() -> None:
    """Leaves the cluster, and ends the one that `connect` started; does not wait for ever for one that is gone."""
    leaving = threading.Thread(target=ray.shutdown, name="leave-ray", daemon=True)
    leaving.start()
    leaving.join(LEAVE_S)
    if leaving.is_alive():  # the end of this process would wait for the same head
        atexit.unregister(ray.shutdown)


def is_ours(address: str | None) -> bool:
    """Whether `connect` starts a cluster on this machine, which nobody can join."""
    return address is None and "RAY_ADDRESS" not in os.environ


@contextlib.contextmanager
def outliving_the_head() -> Generator[None]:
    """Has a connection made meanwhile outlive a lost head: Ray would end this process after a minute, tables unwritten."""
    is_given = RECONNECT in os.environ
    os.environ.setdefault(RECONNECT, str(LONG_S))
    try:
        yield
    finally:
        if not is_given:
            del os.environ[RECONNECT]


@contextlib.contextmanager
def a_token_of_its_own() -> Generator[None]:
    """Has a cluster that is started meanwhile ask for a token that is in no file, unless the user has set one.

    Ray up to 2.60.0 writes its own to a file that every user of the machine can read, and with it run code as this one.
    """
    if any(name in os.environ for name in TOKEN_VARIABLES):
        yield
        return
    os.environ[TOKEN_VARIABLES[0]] = secrets.token_hex(32)
    try:
        yield
    finally:
        del os.environ[TOKEN_VARIABLES[0]]


def _probe(address: str) -> None:
    """Raises at once what Ray would try for long: OSError when nothing listens at HOST:PORT, else AuthenticationError."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        return
    socket.create_connection((host, int(port)), timeout=PROBE_S).close()
    internals: Any = _raylet  # no public call tells a token that is refused from a head that is silent
    needs_token = internals.get_authentication_mode() == internals.AuthenticationMode.TOKEN
    if not needs_token or internals.AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
        internals.GcsClient(address=address).check_alive([], timeout=ALIVE_S)


def actor_resources(config: EvalConfig | TrainConfig, nodes: Sequence[dict[str, Any]]) -> tuple[dict[str, float], int]:
    """Ray's resource options of one actor and the threads it computes with: its GPUs, or an equal share of CPUs.

    `nodes` are those alive, of which only those count that the selector takes. What Ray gives an actor is of one node, so
    that its GPUs are in one machine. With `--workers auto` on the CPU an actor takes what the smallest node has. Raises
    ResourcesError when the cluster cannot hold the workers asked for.
    """
    if config.label_selector is not None and is_ours(config.address):
        raise ResourcesError(
            f"--label-selector {config.label_selector}: the cluster that is started on this machine has one node; drop "
            "it, or give the --address of another"
        )
    nodes = selected(config, nodes)
    cpus_per_node = [int(node["Resources"].get("CPU", 0)) for node in nodes]
    num_cpus, num_gpus = sum(cpus_per_node), sum(int(node["Resources"].get("GPU", 0)) for node in nodes)
    there = "the cluster has" if config.label_selector is None else f"nodes with {config.label_selector} have"
    holds = f"{there} {num_cpus} CPUs and {num_gpus} GPUs"
    if config.device == "cuda":
        return _on_gpus(config, nodes, holds, num_cpus)
    if config.workers == "auto":
        threads = config.threads or min((cpus for cpus in cpus_per_node if cpus), default=1)
        return {"num_cpus": threads}, threads
    workers = config.workers or 1
    if workers > num_cpus:
        raise ResourcesError(
            f"--workers {workers}: {holds}; ask for 1..{num_cpus} workers on the CPU, or {_remedy(config)}"
        )
    most = most_threads(workers, cpus_per_node)
    threads = config.threads or most
    if threads > most:
        raise ResourcesError(f"--threads {threads} for --workers {workers}: {holds}; ask for 1..{most} threads")
    return {"num_cpus": threads}, threads


def _on_gpus(
    config: EvalConfig | TrainConfig, nodes: Sequence[dict[str, Any]], holds: str, num_cpus: int
) -> tuple[dict[str, float], int]:
    """`actor_resources` with `--device cuda`, on a cluster that `holds` what this says and `num_cpus`."""
    each, workers = config.gpus_per_worker, config.workers or 1
    resources: dict[str, float] = {"num_gpus": each, "num_cpus": 1}
    places, most = (
        num_places(resources, nodes),
        max((int(node["Resources"].get("GPU", 0)) for node in nodes), default=0),
    )
    if workers == "auto":
        if not most and is_ours(config.address):
            raise ResourcesError(f"--device cuda --workers auto: {holds}, and no node can join it; use --device cpu")
        if most and not places and not is_autoscaled(nodes):
            raise ResourcesError(f"--gpus-per-worker {each}: no node has as many; give 1..{most}, or add such nodes")
        return resources, config.threads or max(1, num_cpus // max(1, places))
    if workers > places:
        with_each = (
            "one GPU each" if each == 1 else f"--gpus-per-worker {each} of one node, of which none has over {most}"
        )
        allowed = f"ask for 1..{places} workers, or" if places else "give fewer, or"
        raise ResourcesError(f"--workers {workers}: {holds}, {with_each}; {allowed} {_remedy(config)}")
    return resources, config.threads or max(1, num_cpus // workers)


def _remedy(config: EvalConfig | TrainConfig) -> str:
    return "--workers auto takes what there is and what joins" if isinstance(config, EvalConfig) else "add nodes"


def num_places(resources: dict[str, float], nodes: Sequence[dict[str, Any]]) -> int:
    """How many actors of `resources` (Ray's options) `nodes` can hold at once."""
    needed = {name.removeprefix("num_").removesuffix("s").upper(): amount for name, amount in resources.items()}
    return sum(min(int(node["Resources"].get(name, 0) // amount) for name, amount in needed.items()) for node in nodes)


def num_asked(num_places: int, num_left: int, nodes: Sequence[dict[str, Any]]) -> int:
    """How many actors to have beside the `num_places` that `nodes` hold, for an autoscaler to start nodes for.

    None where no autoscaler is; else no more than shards are left, and about as many again as there are. It sees actors
    that wait for a node, and they are gone with their driver: nobody pays for a node that a dead one has asked for.
    """
    return max(0, min(num_left - num_places, max(LEAST_ASKED, num_places))) if is_autoscaled(nodes) else 0


def is_autoscaled(nodes: Sequence[dict[str, Any]]) -> bool:
    """Whether nodes of other kinds may be started where these `nodes` are."""
    return any(NODE_GROUP in node.get("Labels", {}) for node in nodes)


def most_threads(workers: int, cpus_per_node: list[int]) -> int:
    """The most threads each of `workers` can have when every worker lives on one node."""
    return max(t for t in range(1, max(cpus_per_node) + 1) if sum(cpus // t for cpus in cpus_per_node) >= workers)


ConfigT = TypeVar("ConfigT", EvalConfig, TrainConfig)


def with_absolute_paths(config: ConfigT) -> ConfigT:
    """`config` with the local paths of models and heads absolute: an actor runs in a folder of its own."""
    config = config.model_copy(update=_absolute_paths(config))
    if isinstance(config, EvalConfig):
        return config.model_copy(update={"decode": config.decode.model_copy(update=_absolute_paths(config.decode))})
    return config


def _absolute_paths(settings: BaseModel) -> dict[str, str]:
    """Those of `settings` that are local paths of models or heads, absolute."""
    names = NO_PATHS.keys() & type(settings).model_fields
    given = {name: path for name in names if (path := getattr(settings, name)) and path not in NO_PATHS[name]}
    return {name: str(Path(path).resolve()) for name, path in given.items() if is_there(path)}
