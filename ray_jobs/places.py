"""Places: where actors run, what was finished there and how often actors died there.

A place is a host's GPU, or a host where actors compute on CPUs. A bad one loads a model and dies at work, and it is always
free: what is not held against it is held against the items that it is given.
"""

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


SURELY = 8  # times the deaths of which an item is poison, wherever they were: no place is left that is any good
UNKNOWN = Record()  # of an actor that starts


class Places:
    """The record of every place at which an actor of the run has started.

    A place at which an actor died rests, each time for twice as long until something is finished there, as long as
    another place did better: nothing is lost by that, and a place that always fails is tried ever less often.
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

        Once anything was finished, deaths count at places where something was; at one such place again only when none of
        `actors` is where none died of it.
        """
        enough = self._limits.max_deaths
        proven = [place for place, found in self._records.items() if found.has_finished]
        counting = [num for place, num in item.deaths.items() if place in proven or not proven]
        if (proven and len(counting) >= enough) or item.deaths.total() >= SURELY * enough:
            return True
        return sum(counting) >= enough and not self._untried(item, actors, now)

    def best_for(self, item: ItemState, actors: Collection[ActorState], now: float) -> Collection[ActorState]:
        """Which of `actors` may try an item under suspicion: where none died of it, of these where none died lately."""
        untried = self._untried(item, actors, now)
        clean = [
            actor for actor in untried if actor.place in self._records and not self._records[actor.place].num_failures
        ]
        return clean or untried or actors

    def is_resting(self, place: str, now: float) -> bool:
        """Whether an actor there shall wait: fewer have died elsewhere."""
        mine = self._records.get(place, UNKNOWN)
        return now < mine.rests_until and any(
            other.num_failures < mine.num_failures for other in self._records.values()
        )

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
            and not self.is_resting(actor.place, now)
        ]
