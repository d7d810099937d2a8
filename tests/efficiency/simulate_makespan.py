"""A simulation: the real scheduler and real Ray actors, whose decoding is replaced by sleeping.

Prints one JSON object per number of actors: the makespan over that of longest-processing-time-first with known times, and
the driver's own CPU time per sample. Times are recorded per-token times of a real run (`--rates`, a table of samples) over
heavy-tailed output lengths, which correlate with the prompt length that the driver orders by only in part.

    python tests/efficiency/simulate_makespan.py --actors 16 --actors 64
"""

import heapq
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import ray

from ray_jobs.driver import Driver
from ray_jobs.events import Item
from ray_jobs.pool import Done, Pool, PooledActor
from ray_jobs.scheduler import Limits, Scheduler
from ray_jobs.watch import ClusterWatch

MAX_OVER_LPT, MAX_DRIVER_MS = 1.05, 2.0
TPOT_S, TTFT_S = 0.0016, 0.030  # GSM8K, embedded model, one worker of two threads: results/reference/gsm8k-bf16


@ray.remote
class Sleeper(PooledActor):
    """An actor that sleeps for as long as a shard's decoding took."""

    def __init__(self, worker_id: str, go: str) -> None:
        self._go = Path(go)

    def load(self) -> None:
        """Waits until every actor is there, so that start-up is not measured."""
        while not self._go.exists():
            time.sleep(0.05)

    def work(self, seconds: float) -> Done:
        time.sleep(seconds)
        return Done(None, seconds)


def sample_seconds(num_samples: int, scale: float, correlation: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of decoding and prompt lengths: lognormal output lengths (sigma 1, median 120 tokens, at most 4096)."""
    rng = np.random.default_rng(seed)
    of_prompt, own = rng.standard_normal((2, num_samples))
    of_output = correlation * of_prompt + np.sqrt(1 - correlation**2) * own
    lengths = np.minimum(4096, 120 * np.exp(of_output)).round()
    return scale * (TTFT_S + TPOT_S * lengths), 80 * np.exp(0.5 * of_prompt)


def lpt_makespan(times: Sequence[float], num_actors: int) -> float:
    """The makespan of giving the longest item left to the first actor that is free, all times known beforehand."""
    free_at = [0.0] * num_actors
    for seconds in sorted(times, reverse=True):
        heapq.heapreplace(free_at, free_at[0] + seconds)
    return max(free_at)


class SimulationDriver(Driver):
    """Lets all actors begin once the last is there; notes what is done, and when it began and ended."""

    def __init__(self, pool: Pool, scheduler: Scheduler, num_actors: int, go: Path) -> None:
        super().__init__(pool, scheduler, ClusterWatch(can_grow=True, patience_s=math.inf))
        self._num_actors, self._go = num_actors, go
        self.done: list[str] = []
        self.began_s = self.began_cpu_s = self.ended_s = self.ended_cpu_s = 0.0

    def num_wanted(self) -> int:
        return self._num_actors

    def on_done(self, item: Item, result: None) -> None:
        self.done.append(item.name)
        self.ended_s, self.ended_cpu_s = time.monotonic(), time.process_time()

    def on_give_up(self, item: Item, reason: str) -> None:
        pass

    def on_wait(self) -> None:
        if not self._go.exists() and len(self._pool.places) == self._num_actors:
            self.began_s, self.began_cpu_s = time.monotonic(), time.process_time()
            self._go.touch()


def simulate(num_actors: int, num_samples: int, shard_size: int, scale: float, correlation: float, seed: int) -> dict:
    seconds, prompt_lens = sample_seconds(num_samples, scale, correlation, seed)
    shards = [slice(start, start + shard_size) for start in range(0, num_samples, shard_size)]
    shards.sort(key=lambda shard: -prompt_lens[shard].sum())
    items = [Item(f"shard {shard.start}", float(seconds[shard].sum()), shard_size) for shard in shards]
    with tempfile.TemporaryDirectory() as folder:
        go = Path(folder, "go")
        pool = Pool(Sleeper, str(go), 1, {"num_cpus": 1})
        driver = SimulationDriver(pool, Scheduler(items, Limits()), num_actors, go)
        driver.drive()
    makespan_s, cpu_s = driver.ended_s - driver.began_s, driver.ended_cpu_s - driver.began_cpu_s
    assert len(driver.done) == len(set(driver.done)) == len(items), (len(driver.done), len(items))
    times = [item.work for item in items]
    return {
        "kind": "simulation: decoding replaced by sleeping",
        "num_actors": num_actors,
        "num_samples": num_samples,
        "shard_size": shard_size,
        "longest_sample_over_mean": float(seconds.max() / seconds.mean()),
        "makespan_s": makespan_s,
        "lpt_makespan_s": lpt_makespan(times, num_actors),
        "makespan_over_lpt": makespan_s / lpt_makespan(times, num_actors),
        "makespan_over_lpt_of_samples": makespan_s / lpt_makespan(list(seconds), num_actors),
        "busy_share": sum(times) / (num_actors * makespan_s),
        "driver_cpu_ms_per_sample": 1000 * cpu_s / num_samples,
    }


@click.command()
@click.option("--actors", type=int, multiple=True, default=(16, 64), show_default=True)
@click.option("--samples-per-actor", default=200, show_default=True)
@click.option("--shard-size", default=4, show_default=True)
@click.option("--scale", default=1.0, show_default=True, help="Of all times.")
@click.option("--correlation", default=0.5, show_default=True, help="Of log output length with log prompt length.")
@click.option("--seed", default=0, show_default=True)
def main(
    actors: tuple[int, ...], samples_per_actor: int, shard_size: int, scale: float, correlation: float, seed: int
) -> None:
    """Simulates a run on each number of actors, all on this machine."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    for num_actors in actors:
        ray.init(
            address="local",
            num_cpus=num_actors,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        try:
            found = simulate(num_actors, num_actors * samples_per_actor, shard_size, scale, correlation, seed)
        finally:
            ray.shutdown()
        click.echo(json.dumps(found))
        if found["makespan_over_lpt"] > MAX_OVER_LPT or found["driver_cpu_ms_per_sample"] > MAX_DRIVER_MS:
            raise SystemExit(f"beyond {MAX_OVER_LPT} x the bound, or {MAX_DRIVER_MS} ms of the driver per sample")


if __name__ == "__main__":
    main()
