"""A simulation without Ray: what the real scheduler costs the driver by the number of actors, to the last item.

Prints one JSON object per number of actors: CPU per item over the whole run, in its middle and at its end, when no items
are left and idle actors look for some to share. Actors take items of random length, in simulated time.

    python tests/efficiency/scheduler_cost.py --actors 1000
"""

import heapq
import json
import random
import time
from typing import Any

import click

from ray_jobs.events import (
    Accept,
    Action,
    Assign,
    Cancel,
    Cancelled,
    Event,
    Finished,
    Item,
    Loaded,
    Start,
    Started,
    Wanted,
)
from ray_jobs.limits import Limits
from ray_jobs.scheduler import Scheduler

MAX_MS_PER_ITEM = 2.0  # at 1,000 actors


class Simulated:
    """Actors that each take an item after the other, and the scheduler, timed."""

    def __init__(self, num_actors: int, items: list[Item], seed: int) -> None:
        self.scheduler = Scheduler(items, Limits())
        self.done, self.took_s = 0, []
        self._rng, self._now = random.Random(seed), 0.0
        self._queues: dict[str, list[Item]] = {}
        self._ends: list[tuple[float, str]] = []
        self._tell(Wanted(num_actors))
        for name in list(self._queues):
            self._tell(Started(name, name))
            self._tell(Loaded(name))
        self.took_s.clear()

    def run(self) -> None:
        while not self.scheduler.is_over:
            self._now, name = heapq.heappop(self._ends)
            item = self._queues[name].pop(0)
            self._begin(name)
            self._tell(Finished(name, item.name, 1.0))

    def _tell(self, event: Event) -> None:
        began = time.process_time()
        actions = self.scheduler.handle(event, self._now)
        self.took_s.append(time.process_time() - began)
        for action in actions:
            self._do(action)

    def _do(self, action: Action) -> None:
        match action:
            case Start(name):
                self._queues[name] = []
            case Assign(name, item):
                self._queues[name].append(item)
                if len(self._queues[name]) == 1:
                    self._begin(name)
            case Cancel(name, item) if item in self._queues[name][1:]:
                self._queues[name].remove(item)
                self._tell(Cancelled(name, item.name))
            case Accept():
                self.done += 1
            case _:
                pass

    def _begin(self, name: str) -> None:
        if self._queues[name]:
            heapq.heappush(self._ends, (self._now + self._rng.lognormvariate(0, 0.5), name))


def measure(num_actors: int, items_per_actor: int, seed: int) -> dict[str, Any]:
    """What the scheduler takes for a run of that many actors and items."""
    items = [Item(str(idx), None, 4) for idx in range(num_actors * items_per_actor)]
    began = time.process_time()
    simulated = Simulated(num_actors, items, seed)
    started_s = time.process_time() - began
    simulated.run()
    assert simulated.done == len(items), simulated.done
    took_s, last = simulated.took_s, 2 * num_actors
    return {
        "kind": "simulation: simulated time, no Ray",
        "num_actors": num_actors,
        "num_items": len(items),
        "start_of_all_s": round(started_s, 3),
        "ms_per_item": round(1000 * sum(took_s) / len(items), 4),
        "ms_per_event_in_the_middle": round(1000 * sum(took_s[:-last]) / len(took_s[:-last]), 4),
        "ms_per_event_at_the_end": round(1000 * sum(took_s[-last:]) / last, 4),
    }


@click.command()
@click.option("--actors", type=int, multiple=True, default=(16, 128, 1000), show_default=True)
@click.option("--items-per-actor", default=10, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(actors: tuple[int, ...], items_per_actor: int, seed: int) -> None:
    """Measures a run on each number of actors."""
    for num_actors in actors:
        found = measure(num_actors, items_per_actor, seed)
        click.echo(json.dumps(found))
        if num_actors <= 1000 and found["ms_per_item"] > MAX_MS_PER_ITEM:
            raise SystemExit(f"beyond {MAX_MS_PER_ITEM} ms of the driver per item")


if __name__ == "__main__":
    main()
