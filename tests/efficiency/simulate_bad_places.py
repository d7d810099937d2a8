"""A simulation: the real scheduler in simulated time, on a cluster of which some places load a model and die at work.

Prints one JSON object per setting: samples given up, which must be none, deaths, and the makespan over that of the same run
on the good places alone.

    python tests/efficiency/simulate_bad_places.py
"""

import json
import random
from typing import Any, NamedTuple

import click

from tests.simulated_cluster import Cluster, shards

NUM_SAMPLES = 4  # in a shard


class Setting(NamedTuple):
    """A cluster and its work; times in seconds."""

    actors: int
    shards: int
    shard_s: float
    load_s: float = 30.0
    num_bad: int = 1
    bad_from_s: float = 0.0


SETTINGS = (
    Setting(2, 50, 60),
    Setting(4, 100, 60),
    Setting(8, 400, 300),
    Setting(16, 400, 120),
    Setting(8, 400, 20, load_s=60),
    Setting(8, 400, 60, load_s=60),
    Setting(8, 400, 120, num_bad=3),
    Setting(8, 400, 120, num_bad=2, bad_from_s=2000),
)


def simulate(setting: Setting, seed: int) -> dict[str, Any]:
    """One run of `setting`."""
    items = shards(setting.shards, NUM_SAMPLES, setting.shard_s, random.Random(seed))
    bad = frozenset(random.Random(seed).sample(range(setting.actors), setting.num_bad))
    found = Cluster(items, setting.actors, bad, setting.bad_from_s, setting.load_s, seed).run()
    alone = Cluster(items, setting.actors - setting.num_bad, load_s=setting.load_s, seed=seed).run()
    assert found.failure is None, found.failure
    return {
        "kind": "simulation: simulated time",
        **setting._asdict(),
        "seed": seed,
        "deaths": found.deaths.total(),
        "samples": setting.shards * NUM_SAMPLES,
        "samples_given_up": found.given_up.total(),
        "makespan_s": round(found.now),
        "makespan_over_good_places_alone": round(found.now / alone.now, 3),
    }


@click.command()
@click.option("--seeds", default=3, show_default=True)
def main(seeds: int) -> None:
    """Simulates every setting."""
    for setting in SETTINGS:
        for seed in range(seeds):
            found = simulate(setting, seed)
            click.echo(json.dumps(found))
            if found["samples_given_up"]:
                raise SystemExit("a good sample was given up")


if __name__ == "__main__":
    main()
