"""A simulation: the real scheduler and real Ray actors, whose decoding is replaced by sleeping.

Prints one JSON object per number of actors: the makespan over that of longest-processing-time-first with known times, and
the driver's own CPU time per sample. Times are recorded per-token times of a real run (`--rates`, a table of samples) over
heavy-tailed output lengths, which correlate with the prompt length that the driver orders by only in part.

    python tests/efficiency/simulate_makespan.py --actors 16 --actors 64
"""

import heapq
import json
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import ray

from ray_jobs.events import Item
from ray_jobs.pool import Crew, Done, Process, drive
from ray_jobs.scheduler import Limits, Scheduler

MAX_OVER_LPT, MAX_DRIVER_MS = 1.05, 2.0
TPOT_S, TTFT_S = 0.0016, 0.030  # GSM8K, embedded model, one worker of two threads: results/reference/gsm8k-bf16


@ray.remote
class Sleeper(Process):
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


def simulate(num_actors: int, num_samples: int, shard_size: int, scale: float, correlation: float, seed: int) -> dict:
    seconds, prompt_lens = sample_seconds(num_samples, scale, correlation, seed)
    shards = [slice(start, start + shard_size) for start in range(0, num_samples, shard_size)]
    shards.sort(key=lambda shard: -prompt_lens[shard].sum())
    items = [Item(f"shard {shard.start}", float(seconds[shard].sum()), shard_size) for shard in shards]
    with tempfile.TemporaryDirectory() as folder:
        go = Path(folder, "go")
        crew = Crew(Sleeper, str(go), 1, {"num_cpus": 1})
        done: list[str] = []
        began: list[tuple[float, float]] = []

        def on_wait() -> None:
            if not began and len(crew.places) == num_actors:
                began.append((time.monotonic(), time.process_time()))
                go.touch()

        try:
            drive(
                crew,
                Scheduler(items, Limits()),
                num_wanted=lambda: num_actors,
                on_done=lambda item, _: done.append(item.name),
                on_give_up=lambda item, reason: None,
                on_wait=on_wait,
            )
            makespan_s, cpu_s = time.monotonic() - began[0][0], time.process_time() - began[0][1]
        finally:
            crew.dismiss_all()
    assert len(done) == len(set(done)) == len(items), (len(done), len(items))
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
