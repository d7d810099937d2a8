"""Who does what next: a state machine over the items of a run and its actors, without Ray and without a clock.

Events go in with the time they happened at, actions come out; `ray_jobs/crew.py` turns Ray's futures into the one and
carries out the other. An item is done once for the caller, however many actors worked on it.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from ray_jobs.events import (
    Accept,
    Action,
    Died,
    Dismiss,
    Event,
    Fail,
    Finished,
    Give,
    GiveUp,
    Hire,
    Item,
    Loaded,
    NotBegun,
    Started,
    Stop,
    TakeBack,
    Tick,
    Wanted,
)

FIRST_DEADLINE_S = 900.0


@dataclass(frozen=True)
class Limits:
    """When an actor counts as hung and an item as poison."""

    max_deaths: int = 2  # actors an item may end before it is split, or given up where it cannot be
    max_load_failures: int = 4  # in a row, without any that loaded, before the run fails
    hire_pause_s: float = 10.0  # after a load that failed, doubled each time: a lost node looks alive for a while
    load_deadline_s: float = 1800.0
    first_deadline_s: float | None = FIRST_DEADLINE_S  # of an item before any was timed; None: items have no deadline
    least_deadline_s: float = 60.0
    slack: float = 4.0  # times the slowest time per size that was seen


class Phase(StrEnum):
    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"


@dataclass
class Told:
    """An item that an actor was told to do; `taken` back it may have been begun all the same."""

    item: Item
    taken: bool = False


@dataclass
class ActorState:
    """What an actor is doing; `since` is when it began to.

    `line` is what it was told to do, in that order: the first is in flight. An item may be there twice, taken back and
    given again.
    """

    name: str
    since: float
    phase: Phase = Phase.STARTING
    line: list[Told] = field(default_factory=list)

    @property
    def items(self) -> list[Item]:
        """What it shall do: at most two."""
        return [told.item for told in self.line if not told.taken]

    def take(self, item_name: str) -> None:
        """Marks the item, of which it shall do no more, as taken back."""
        for told in self.line:
            told.taken = told.taken or told.item.name == item_name

    def end(self, item_name: str, now: float) -> None:
        """Takes the item out of its line, the first where it is there twice; the next is in flight from `now` on."""
        for idx, told in enumerate(self.line):
            if told.item.name == item_name:
                del self.line[idx]
                self.since = now if idx == 0 else self.since
                return


@dataclass
class ItemState:
    """An item that is somewhere: pending again, or with the actors in `actors`."""

    item: Item
    is_suspect: bool = False  # an actor died of it, or of what it is a piece of
    deaths: int = 0
    reason: str = ""
    actors: set[str] = field(default_factory=set)


class Scheduler:
    """The state of a run between its events.

    Items are given in their order, those that come back first. An actor has at most one in flight and one queued, or one
    that another actor died of. When none is left, an idle actor takes over a queued one, then runs a second copy of the
    one that runs longest.
    """

    def __init__(
        self, items: Iterable[Item], limits: Limits, split: Callable[[Item], tuple[Item, ...]] = lambda item: ()
    ) -> None:
        """`split` gives what an item consists of, nothing when it is the smallest."""
        self._limits, self._split = limits, split
        self._coming: Iterator[Item] = iter(items)
        self._returned: deque[Item] = deque()
        self._items: dict[str, ItemState] = {}  # every item that was ever given and is not done
        self._num_wanted, self._num_hired, self._num_load_failures = 0, 0, 0
        self._paused_until = 0.0  # no actor is hired before
        self._slowest_s: float | None = None  # per size
        self._is_stopped = False
        self.actors: dict[str, ActorState] = {}

    @property
    def is_over(self) -> bool:
        """Nothing is left to do, or nothing is in flight after a stop."""
        if self._is_stopped:
            return not any(actor.items for actor in self.actors.values())
        return not self._items and not self._has_pending()

    def handle(self, event: Event, now: float) -> list[Action]:
        """What is to be done about `event`; `now` is seconds of a clock that never goes back."""
        actions: list[Action] = []
        match event:
            case Wanted(num_actors):
                self._num_wanted, self._num_load_failures, self._paused_until = num_actors, 0, now
            case Started(name) if actor := self.actors.get(name):
                actor.phase, actor.since = Phase.LOADING, now
            case Loaded(name) if actor := self.actors.get(name):
                actor.phase, actor.since = Phase.READY, now
                self._num_load_failures, self._paused_until = 0, now
            case Finished(name, item_name, full_s):
                actions += self._finish(name, item_name, full_s, now)
            case NotBegun(name, item_name) if actor := self.actors.get(name):
                actor.end(item_name, now)
            case Died(name, reason, preempted) if name in self.actors:
                actions += self._bury(name, reason, preempted, now)
            case Tick():
                actions += self._end_hung(now)
            case Stop():
                self._is_stopped = True
        return actions + (self._wind_up() if self._is_stopped else self._hire(now) + self._assign(now))

    def deadline_s(self, item: Item) -> float | None:
        """How long `item` may take: `slack` times the slowest measured, doubled for each actor it ended."""
        limits = self._limits
        if limits.first_deadline_s is None:
            return None
        patience = 2 ** (state.deaths if (state := self._items.get(item.name)) else 0)
        if self._slowest_s is None:
            return patience * limits.first_deadline_s
        return patience * max(limits.least_deadline_s, limits.slack * item.size * self._slowest_s)

    # The events that change more than one field.

    def _finish(self, name: str, item_name: str, full_s: float | None, now: float) -> list[Action]:
        if actor := self.actors.get(name):
            actor.end(item_name, now)
        state = self._items.pop(item_name, None)
        if state is None:
            return []  # another copy was first
        if full_s is not None:
            self._slowest_s = max(self._slowest_s or 0.0, full_s / state.item.size)
        self._returned = deque(item for item in self._returned if item.name != item_name)  # back from a dead copy
        actions: list[Action] = [Accept(state.item)]
        for other in sorted(state.actors - {name}):  # a copy in flight may end, and counts for nothing
            if self.actors[other].line[0].item.name != item_name:
                self.actors[other].take(item_name)
                actions.append(TakeBack(other, state.item))
        return actions

    def _bury(self, name: str, reason: str, preempted: bool, now: float) -> list[Action]:
        """Forgets a dead actor; what it had comes back, and counts against what it did."""
        actor = self.actors.pop(name)
        if actor.phase is not Phase.READY and not preempted and now >= self._paused_until:  # those at once count once
            self._paused_until = now + self._limits.hire_pause_s * 2**self._num_load_failures
            self._num_load_failures += 1
            if self._num_load_failures >= self._limits.max_load_failures:
                self._num_wanted = len(self.actors)  # others go on; until a node joins no more are hired
                if all(other.phase is Phase.STARTING for other in self.actors.values()):
                    return [Fail(f"{self._num_load_failures} workers ended while loading the model ({reason})")]
        if actor.line and not preempted and (blamed := self._items.get(actor.line[0].item.name)):
            blamed.deaths, blamed.reason, blamed.is_suspect = blamed.deaths + 1, reason, True
        actions: list[Action] = []
        for item in reversed(actor.items):
            state = self._items.get(item.name)
            if state is None:
                continue  # done by another
            state.actors.discard(name)
            if not state.actors:
                actions += self._come_back(state)
        return actions

    def _come_back(self, state: ItemState) -> list[Action]:
        """An item nobody has any more: pending again, split, or given up."""
        item = state.item
        if state.deaths < self._limits.max_deaths:
            self._returned.appendleft(item)
            return []
        del self._items[item.name]
        pieces = self._split(item)
        for piece in reversed(pieces):
            self._items[piece.name] = ItemState(piece, is_suspect=True)
            self._returned.appendleft(piece)
        return [] if pieces else [GiveUp(item, state.reason)]

    def _end_hung(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for actor in list(self.actors.values()):
            if actor.phase is Phase.LOADING:
                deadline_s, doing = self._limits.load_deadline_s, "loading the model"
            elif actor.line:
                deadline_s, doing = self.deadline_s(actor.line[0].item), actor.line[0].item.name
            else:
                continue
            if deadline_s is not None and now - actor.since > deadline_s:
                reason = f"{doing} took more than {deadline_s:.0f} s"
                actions += [Dismiss(actor.name, reason), *self._bury(actor.name, reason, preempted=False, now=now)]
        return actions

    # What follows from the state.

    def _hire(self, now: float) -> list[Action]:
        if now < self._paused_until:
            return []
        if any(actor.phase is Phase.READY and not actor.items for actor in self.actors.values()):
            return []  # it takes what came back, sooner than a new one could
        actions: list[Action] = []
        while len(self.actors) < self._num_wanted and self._has_pending():
            name = f"worker-{self._num_hired}"
            self._num_hired += 1
            self.actors[name] = ActorState(name, now)
            actions.append(Hire(name))
        return actions

    def _assign(self, now: float) -> list[Action]:
        ready = [actor for actor in self.actors.values() if actor.phase is Phase.READY]
        actions: list[Action] = []
        for actor in ready:
            if not actor.items and self._has_pending():
                actions.append(self._give(actor, self._returned.popleft(), now))
        for actor in ready:
            if len(actor.items) == 1 and self._has_pending() and not self._suspects(actor.items[0], self._returned[0]):
                actions.append(self._give(actor, self._returned.popleft(), now))
        for actor in ready:
            if not actor.items:
                actions += self._take_over(actor, now) or self._copy(actor, now)
        return actions

    def _give(self, actor: ActorState, item: Item, now: float) -> Give:
        if not actor.line:
            actor.since = now
        actor.line.append(Told(item))
        assert len(actor.items) <= 2, actor
        self._items.setdefault(item.name, ItemState(item)).actors.add(actor.name)
        return Give(actor.name, item)

    def _take_over(self, idle: ActorState, now: float) -> list[Action]:
        """A queued item of another actor, the largest first; nothing when there is none."""
        queues = [actor for actor in self.actors.values() if len(actor.items) == 2]
        if not queues:
            return []
        other = max(queues, key=lambda actor: actor.items[1].size)
        item = other.items[1]
        other.take(item.name)
        self._items[item.name].actors.discard(other.name)
        return [TakeBack(other.name, item), self._give(idle, item, now)]

    def _copy(self, idle: ActorState, now: float) -> list[Action]:
        """A second copy of the item that has been in flight longest; nothing when each has one."""
        single = [actor for actor in self.actors.values() if actor.items and self._is_single(actor.items[0])]
        if not single:
            return []
        return [self._give(idle, min(single, key=lambda actor: actor.since).items[0], now)]

    def _is_single(self, item: Item) -> bool:
        state = self._items.get(item.name)
        return state is not None and len(state.actors) == 1 and not state.is_suspect

    def _suspects(self, *items: Item) -> bool:
        """Whether an actor may have died of one of `items`: that is given alone, so that it is known which it was."""
        return any((state := self._items.get(item.name)) is not None and state.is_suspect for item in items)

    def _wind_up(self) -> list[Action]:
        """After a stop: ends whoever has nothing in flight, and takes back what is queued."""
        actions: list[Action] = []
        for actor in list(self.actors.values()):
            for item in actor.items[1:]:
                actions.append(TakeBack(actor.name, item))
                actor.take(item.name)
                if (state := self._items.get(item.name)) is not None:
                    state.actors.discard(actor.name)
            if not actor.items:
                del self.actors[actor.name]
                actions.append(Dismiss(actor.name))
        return actions

    def _has_pending(self) -> bool:
        if not self._returned and (item := next(self._coming, None)) is not None:
            self._returned.append(item)
        return bool(self._returned)
