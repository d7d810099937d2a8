"""What a run on Ray costs its driver, by the number of actors; decoding is replaced by sleeping, nothing is committed.

A real `ray.cluster_utils.Cluster` of some nodes on this machine, the run's own driver, scheduler, pool and lease; the
actors are this script's. Prints one JSON object per number of actors. All processes share this machine's processors, so
what the driver could do alone follows from its CPU time per shard, not from the seconds.

    python tests/efficiency/driver_scaling.py --actors 16 --actors 64
"""

import json
import logging
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import psutil
import ray
from ray.cluster_utils import Cluster

from adadecode.evaluation.observer import Quiet
from adadecode.records import ShardOutcome, WorkerState
from adadecode.runs.run import open_run
from adadecode.settings import EvalConfig, build_settings
from ray_jobs.evaluation import run_on_ray
from ray_jobs.pool import Done, PooledActor

MAX_DRIVER_MS = 10.0  # per shard
SHARD_SIZE = 4


class Sleeper(PooledActor):
    """Sleeps in the place of decoding; `go` is the file whose presence lets all begin, so that no start-up is measured."""

    go = Path()
    seconds = 0.0  # per shard

    def __init__(self, worker_id: str, task: Any) -> None:
        pass

    def load(self) -> None:
        while not self.go.exists():
            time.sleep(0.05)

    def work(self, work: Any) -> Done:
        time.sleep(self.seconds)
        return Done(ShardOutcome(len(work.shard.examples), 0, 0, 0.0, 0, 0), self.seconds)


class Starter(Quiet):
    """Lets the actors begin once all are there, and notes when they began and ended."""

    def __init__(self, num_actors: int, go: Path) -> None:
        self._num_actors, self._go = num_actors, go
        self.num_samples = 0
        self.began = self.ended = (0.0, 0.0)
        self.pss: list[int] = []

    def on_workers(self, states: Sequence[WorkerState]) -> None:
        if not self._go.exists() and sum(state.phase == "loading" for state in states) == self._num_actors:
            self.pss = [process.memory_full_info().pss for process in actors_of_this_machine()]
            self.began = (time.monotonic(), time.process_time())
            self._go.touch()

    def on_shard(self, outcome: ShardOutcome) -> None:
        self.num_samples += outcome.num_samples
        self.ended = (time.monotonic(), time.process_time())


def actors_of_this_machine() -> list[psutil.Process]:
    """The actors among the processes that this one started."""
    found = psutil.Process().children(recursive=True)
    return [process for process in found if "Sleeper" in " ".join(process.cmdline())]


def measure(address: str, num_actors: int, shards_per_actor: int, seconds: float) -> dict[str, Any]:
    """One run on the cluster at `address`."""
    with TemporaryDirectory() as folder:
        prompts, go = Path(folder, "prompts.jsonl"), Path(folder, "go")
        num_samples = SHARD_SIZE * num_actors * shards_per_actor
        prompts.write_text("\n".join(json.dumps({"prompt": f"{idx} " + "w " * 64}) for idx in range(num_samples)))
        flags = {"task": "jsonl", "data_file": str(prompts), "shard_size": SHARD_SIZE, "workers": num_actors}
        config = build_settings(EvalConfig, None, flags | {"threads": 1, "address": address})
        actor_class = ray.remote(type("TimedSleeper", (Sleeper,), {"go": go, "seconds": seconds}))
        watch, asked_at = Starter(num_actors, go), time.monotonic()
        with open_run(config, Path(folder, "run")) as prepared:
            run_on_ray(prepared, watch, actor_class=actor_class)
    assert watch.num_samples == num_samples, watch.num_samples
    num_shards = num_actors * shards_per_actor
    wall_s, cpu_s = (end - begin for begin, end in zip(watch.began, watch.ended, strict=True))
    return {
        "kind": "decoding replaced by sleeping",
        "num_actors": num_actors,
        "s_per_shard": seconds,
        "all_actors_started_s": round(watch.began[0] - asked_at, 1),
        "samples_per_s": round(num_samples / wall_s, 1),
        "samples_per_s_if_nothing_cost_anything": round(num_actors * SHARD_SIZE / seconds, 1) if seconds else None,
        "driver_cpu_ms_per_shard": round(1000 * cpu_s / num_shards, 2),
        "driver_cpu_share": round(cpu_s / wall_s, 3),
        "driver_rss_mb": round(psutil.Process().memory_info().rss / 2**20),
        "actor_pss_mb": round(sum(watch.pss) / len(watch.pss) / 2**20),
    }


@click.command()
@click.option("--actors", type=int, multiple=True, default=(8, 32), show_default=True)
@click.option("--nodes", default=4, show_default=True)
@click.option("--shards-per-actor", default=20, show_default=True)
@click.option("--seconds", type=float, multiple=True, default=(1.0, 0.0), show_default=True, help="A shard sleeps.")
def main(actors: tuple[int, ...], nodes: int, shards_per_actor: int, seconds: tuple[float, ...]) -> None:
    """Measures a run on each number of actors, spread over the nodes of one cluster."""
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_enable_worker_prestart": "0"}
    with ExitStack() as stack:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        stack.callback(cluster.shutdown)
        for _ in range(nodes):
            cluster.add_node(num_cpus=-(-max(actors) // nodes), object_store_memory=80 * 2**20)
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        stack.callback(ray.shutdown)
        for num_actors in actors:
            for of_shard in seconds:
                found = measure(str(cluster.address), num_actors, shards_per_actor, of_shard)
                click.echo(json.dumps({**found, "num_nodes": nodes}))
                if found["driver_cpu_ms_per_shard"] > MAX_DRIVER_MS:
                    raise SystemExit(f"beyond {MAX_DRIVER_MS} ms of the driver per shard")


if __name__ == "__main__":
    main()
