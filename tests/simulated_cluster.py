"""A cluster in simulated time: places that hold an actor each, some of which fail it, and the real scheduler."""

import heapq
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from adadecode.errors import AdaDecodeError
from ray_jobs.events import (
    Accept,
    Action,
    Assign,
    Cancel,
    Cancelled,
    Died,
    Event,
    Fail,
    Finished,
    GiveUp,
    Item,
    Loaded,
    Start,
    Started,
    Stop,
    Tick,
    Wanted,
)
from ray_jobs.limits import Limits
from ray_jobs.scheduler import Scheduler
from ray_jobs.state import ActorState

START_S, TICK_S = 2.0, 5.0
UNLOADABLE = AdaDecodeError("the model is not to be had")


def shards(num: int, num_samples: int, seconds: float, rng: random.Random, poison: Sequence[str] = ()) -> list[Item]:
    """Items whose work is the seconds of each of their samples by name, None of one in `poison`: `7.2` of shard `7`."""
    names = [[f"{shard}.{sample}" for sample in range(num_samples)] for shard in range(num)]
    return [
        Item(
            str(shard),
            {name: None if name in poison else seconds / num_samples * rng.lognormvariate(0, 0.3) for name in of_shard},
            num_samples,
        )
        for shard, of_shard in enumerate(names)
    ]


def samples(item: Item) -> tuple[Item, ...]:
    """Each sample of a shard as an item; none when `item` is a sample."""
    return () if "." in item.name else tuple(Item(name, {name: work}) for name, work in item.work.items())


@dataclass
class Cluster:
    """Runs `items` with an actor per place; Ray puts a new one at the first place that is free.

    From `bad_from_s` on an actor at a place in `bad` dies 2 to 5 seconds after it began an item; anywhere an actor dies 5
    seconds into a sample that is poison. Loading raises at a place in `unloadable`, and anywhere when it would end within
    `outage_s`, from and to. `preemptions` are times and places: whichever actor is there dies; so it
    does in `removals`, and the place is no more.
    """

    items: Sequence[Item]
    num_places: int
    bad: frozenset[int] = frozenset()
    bad_from_s: float = 0.0
    load_s: float = 30.0
    seed: int = 0
    limits: Limits = field(default_factory=Limits)
    unloadable: frozenset[int] = frozenset()
    outage_s: tuple[float, float] = (0.0, 0.0)
    preemptions: Sequence[tuple[float, int]] = ()
    removals: Sequence[tuple[float, int]] = ()

    now: float = 0.0
    accepted: Counter[str] = field(default_factory=Counter)
    given_up: Counter[str] = field(default_factory=Counter)
    failure: Fail | None = None
    deaths: Counter[int] = field(default_factory=Counter)  # at work, by place
    num_failed_loads: Counter[int] = field(default_factory=Counter)  # by place
    _places: dict[str, int] = field(default_factory=dict)  # of each actor that has one
    _waiting: deque[str] = field(default_factory=deque)  # actors without
    _queues: dict[str, list[Item]] = field(default_factory=dict)
    _coming: list[tuple[float, int, str, Callable[[], Event | None]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng, self._order = random.Random(self.seed), itertools.count()
        self._scheduler = Scheduler(self.items, self.limits, samples)

    def run(self, most_s: float = 1e7) -> "Cluster":
        """Runs to the end, for at most `most_s`."""
        self._tell(Wanted(self.num_places))
        tick_at, preemptions = TICK_S, deque(sorted([*self.preemptions, *self.removals]))
        while not self._scheduler.is_over and self.failure is None and self.now < most_s:
            next_at = min(tick_at, self._coming[0][0]) if self._coming else tick_at
            if preemptions and preemptions[0][0] <= next_at:
                self.now, place = preemptions.popleft()
                self._preempt(place)
            elif self._coming and self._coming[0][0] <= tick_at:
                self.now, _, actor, happens = heapq.heappop(self._coming)
                if actor in self._queues and (event := happens()) is not None:
                    self._tell(event)
            else:
                self.now, tick_at = tick_at, tick_at + TICK_S
                self._tell(Tick())
        return self

    @property
    def is_over(self) -> bool:
        return self._scheduler.is_over

    @property
    def actors(self) -> dict[str, ActorState]:
        return self._scheduler.actors

    def _tell(self, event: Event) -> None:
        for action in self._scheduler.handle(event, self.now):
            self._do(action)

    def _do(self, action: Action) -> None:
        match action:
            case Start(name):
                self._queues[name] = []
                self._waiting.append(name)
            case Assign(name, item):
                self._queues[name].append(item)
                if len(self._queues[name]) == 1:
                    self._begin(name)
            case Cancel(name, item) if item in self._queues[name][1:]:
                self._queues[name].remove(item)
                self._later(0.1, name, lambda: Cancelled(name, item.name))
            case Stop(name):
                self._forget(name)
            case Accept(item):
                self.accepted[item.name] += 1
            case GiveUp(item):
                self.given_up[item.name] += 1
            case Fail():
                self.failure = action
            case Cancel():
                pass
        self._place_those_that_wait()

    def _place_those_that_wait(self) -> None:
        gone = {place for at_s, place in self.removals if at_s <= self.now}
        free = sorted(set(range(self.num_places)) - gone - set(self._places.values()))
        while free and self._waiting:
            name = self._waiting.popleft()
            place = self._places[name] = free.pop(0)
            self._later(START_S, name, lambda name=name, place=place: Started(name, str(place)))
            self._later(START_S + self.load_s, name, lambda name=name, place=place: self._load(name, place))

    def _load(self, name: str, place: int) -> Event:
        if place not in self.unloadable and not self.outage_s[0] <= self.now < self.outage_s[1]:
            return Loaded(name)
        self.num_failed_loads[place] += 1
        self._forget(name)
        return Died(name, str(UNLOADABLE), error=UNLOADABLE)

    def _preempt(self, place: int) -> None:
        for name in [name for name, its_place in self._places.items() if its_place == place]:
            self._forget(name)
            self._tell(Died(name, "preempted", preempted=True))

    def _begin(self, name: str) -> None:
        """Has the actor do the first of its queue."""
        place, item = self._places[name], self._queues[name][0]
        seconds = 0.0
        for of_sample in item.work.values():
            if of_sample is None:
                self._later(seconds + 5.0, name, lambda: self._die(name, "poison"))
                return
            seconds += of_sample
        fatal_s = self._rng.uniform(2, 5)
        if place in self.bad and self.now + seconds >= self.bad_from_s and fatal_s < seconds:
            self._later(max(fatal_s, self.bad_from_s - self.now), name, lambda: self._die(name, "bad place"))
        else:
            self._later(seconds, name, lambda: self._end(name, item, seconds))

    def _end(self, name: str, item: Item, seconds: float) -> Event:
        self._queues[name].pop(0)
        if self._queues[name]:
            self._begin(name)
        return Finished(name, item.name, seconds)

    def _die(self, name: str, reason: str) -> Event:
        self.deaths[self._places[name]] += 1
        self._forget(name)
        return Died(name, reason)

    def _forget(self, name: str) -> None:
        del self._queues[name]
        self._places.pop(name, None)
        if name in self._waiting:
            self._waiting.remove(name)

    def _later(self, seconds: float, actor: str, happens: Callable[[], Any]) -> None:
        heapq.heappush(self._coming, (self.now + seconds, next(self._order), actor, happens))
