"""Places: where actors run, what was finished there and how often actors died there.

A place is a host's GPU, or a host where actors compute on CPUs. A bad one loads a model and dies at work, and it is always
free: what is not held against it is held against the items that it is given.
"""

import math
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

from ray_jobs.limits import Limits
from ray_jobs.state import ActorState, ItemState, Phase


@dataclass
class Record:
    """What happened at one place."""

    num_failures: int = 0  # actors that died at work there since anything was finished there
    has_finished: bool = False
    is_unloadable: bool = False  # the last load there failed
    rests_until: float = 0.0
    left_at: float = -math.inf  # when the last actor was lost there


SURELY = 8  # times the deaths of which an item is poison, wherever they were: no place is left that is any good
UNKNOWN = Record()  # of an actor that starts


class Places:
    """The record of every place at which an actor of the run has started.

    A place at which an actor died rests, each time for twice as long until something is finished there, as long as
    another that is held did better: nothing is lost by that, and a place that always fails is tried ever less often. A
    place is held while an actor is there, and for a while after: it or its node may come back.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._records: defaultdict[str, Record] = defaultdict(Record)

    def add(self, place: str) -> None:
        """An actor has started there."""
        self._records[place]  # makes its record

    @property
    def none_loads(self) -> bool:
        """Whether at every place the last load failed."""
        return all(record.is_unloadable for record in self._records.values())

    def left(self, place: str, now: float) -> None:
        """An actor there is no more."""
        if place in self._records:
            self._records[place].left_at = now

    def loaded(self, place: str) -> None:
        """An actor has loaded there."""
        self._records[place].is_unloadable = False

    def load_failed(self, place: str) -> None:
        """An actor has died there before it had loaded; one that never started has no place."""
        if place in self._records:
            self._records[place].is_unloadable = True

    def finished(self, place: str) -> None:
        """An actor has finished an item there."""
        record = self._records[place]
        record.num_failures, record.has_finished, record.rests_until = 0, True, 0.0

    def failed(self, place: str, now: float) -> None:
        """An actor that had loaded has died there, or raised an error."""
        record = self._records[place]
        rest_s = self._limits.backoff_s * 2 ** min(record.num_failures, 30)
        record.num_failures += 1
        record.rests_until = now + min(rest_s, self._limits.longest_rest_s)

    def is_poison(self, item: ItemState, actors: Collection[ActorState], now: float) -> bool:
        """Whether the item is to blame for the deaths, and not the places.

        While a place where something was finished is held, deaths count at such places; at one place again only when none
        of `actors` is where none died of it.
        """
        enough = self._limits.max_deaths
        proven = [num for place, num in item.deaths.items() if self._records[place].has_finished]
        if len(proven) >= enough or item.deaths.total() >= SURELY * enough:
            return True
        counting = proven if any(held.has_finished for held in self._held(actors, now)) else item.deaths.values()
        return sum(counting) >= enough and not self._untried(item, actors, now)

    def best_for(self, item: ItemState, actors: Collection[ActorState], now: float) -> Collection[ActorState]:
        """Which of `actors` may try an item under suspicion: where none died of it, of these where none died lately."""
        untried = self._untried(item, actors, now)
        clean = [
            actor for actor in untried if actor.place in self._records and not self._records[actor.place].num_failures
        ]
        return clean or untried or actors

    def is_resting(self, place: str, actors: Collection[ActorState], now: float) -> bool:
        """Whether an actor there shall wait: fewer have died elsewhere, at a place that is held."""
        mine = self._records.get(place, UNKNOWN)
        return now < mine.rests_until and any(
            other.num_failures < mine.num_failures for other in self._held(actors, now)
        )

    def _held(self, actors: Collection[ActorState], now: float) -> list[Record]:
        """The records of the places where one of `actors` is, or one was so lately that its place may have it back."""
        here = {actor.place for actor in actors}
        return [
            record
            for place, record in self._records.items()
            if place in here or now - record.left_at < self._limits.away_s
        ]

    def _untried(self, item: ItemState, actors: Collection[ActorState], now: float) -> list[ActorState]:
        """Those of `actors` that do not rest and are where none died of the item, or may come to be.

        One that loads where the last load failed is not waited for.
        """
        return [
            actor
            for actor in actors
            if (actor.phase is not Phase.STARTING or now - actor.since < self._limits.start_s)
            and (actor.phase is not Phase.LOADING or not self._records[actor.place].is_unloadable)
            and actor.place not in item.deaths
            and not self.is_resting(actor.place, actors, now)
        ]
