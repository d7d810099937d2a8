"""Who does what next: a state machine over the items of a run and its actors, without Ray and without a clock.

Events go in with the time they happened at, actions come out; `ray_jobs/driver.py` gets the events from Ray's futures
and has the actions carried out. An item is done once for the caller, however many actors worked on it.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

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
    StopRequested,
    Tick,
    Wanted,
)
from ray_jobs.state import ActorState, ItemState, Phase

FIRST_DEADLINE_S = 900.0


@dataclass(frozen=True)
class Limits:
    """When an actor counts as hung and an item as poison."""

    max_deaths: int = 2  # actors an item may end before it is split, or given up where it cannot be
    max_load_failures: int = 4  # in a row, without any that loaded, before the run fails
    backoff_s: float = 10.0  # after a load that failed, doubled each time: a lost node looks alive for a while
    load_deadline_s: float = 1800.0
    first_deadline_s: float | None = FIRST_DEADLINE_S  # of an item before any was timed; None: items have no deadline
    least_deadline_s: float = 60.0
    slack: float = 4.0  # times the slowest time per size that was seen


class Scheduler:
    """The state of a run between its events.

    Items are assigned in their order, those that come back first. An actor has at most one in flight and one queued; an
    item that an actor died of is quarantined: nothing is queued behind it, nor it behind another. When none is pending,
    an idle actor steals a queued one (work stealing), then runs the one that is in flight longest a second time
    (speculative execution).
    """

    def __init__(
        self, items: Iterable[Item], limits: Limits, split: Callable[[Item], tuple[Item, ...]] = lambda item: ()
    ) -> None:
        """`split` gives what an item consists of, nothing when it is the smallest."""
        self._limits, self._split = limits, split
        self._coming: Iterator[Item] = iter(items)
        self._pending: deque[Item] = deque()
        self._items: dict[str, ItemState] = {}  # every item that was ever assigned and is not done
        self._num_wanted, self._num_started, self._num_load_failures = 0, 0, 0
        self._backoff_until = 0.0  # no actor is started before
        self._slowest_s: float | None = None  # per size
        self._is_stopped = False
        self.actors: dict[str, ActorState] = {}

    @property
    def is_over(self) -> bool:
        """Nothing is left to do, or nothing is in flight after a stop."""
        if self._is_stopped:
            return not any(actor.items for actor in self.actors.values())
        return not self._items and not self._has_pending()

    @property
    def pending(self) -> tuple[Item, ...]:
        """What came back or is next, in the order in which it is assigned; the items after these are not yet asked for."""
        return tuple(self._pending)

    def num_deaths(self, item_name: str) -> int:
        """How many actors died of the item; 0 for one that was never assigned or is done."""
        return state.deaths if (state := self._items.get(item_name)) else 0

    def deadline_s(self, item: Item) -> float | None:
        """How long `item` may take: `slack` times the slowest measured, doubled for each actor it ended."""
        limits = self._limits
        if limits.first_deadline_s is None:
            return None
        patience = 2 ** self.num_deaths(item.name)
        if self._slowest_s is None:
            return patience * limits.first_deadline_s
        return patience * max(limits.least_deadline_s, limits.slack * item.size * self._slowest_s)

    def handle(self, event: Event, now: float) -> list[Action]:
        """What is to be done about `event`; `now` is seconds of a clock that never goes back."""
        actions: list[Action] = []
        match event:
            case Wanted(num_actors):
                self._num_wanted, self._num_load_failures, self._backoff_until = num_actors, 0, now
            case Started(name) if actor := self.actors.get(name):
                actor.phase, actor.since = Phase.LOADING, now
            case Loaded(name) if actor := self.actors.get(name):
                actor.phase, actor.since = Phase.READY, now
                self._num_load_failures, self._backoff_until = 0, now
            case Finished(name, item_name, full_s):
                actions += self._on_finished(name, item_name, full_s, now)
            case Cancelled(name, item_name) if actor := self.actors.get(name):
                actor.end(item_name, now)
            case Died(name, reason, preempted) if name in self.actors:
                actions += self._on_death(name, reason, preempted, now)
            case Tick():
                actions += self._stop_hung(now)
            case StopRequested():
                self._is_stopped = True
            case Started() | Loaded() | Cancelled() | Died():
                pass  # late news of an actor that is no more
        return actions + (self._drain() if self._is_stopped else self._start_actors(now) + self._assign_items(now))

    # The events that change more than one field.

    def _on_finished(self, name: str, item_name: str, full_s: float | None, now: float) -> list[Action]:
        if actor := self.actors.get(name):
            actor.end(item_name, now)
        state = self._items.pop(item_name, None)
        if state is None:
            return []  # another actor was first
        if full_s is not None:
            self._slowest_s = max(self._slowest_s or 0.0, full_s / state.item.size)
        self._pending = deque(item for item in self._pending if item.name != item_name)  # back from an actor that died
        actions: list[Action] = [Accept(state.item)]
        for other in sorted(state.actors - {name}):  # what it has in flight may end, and counts for nothing
            if self.actors[other].queue[0].item.name != item_name:
                self.actors[other].cancel(item_name)
                actions.append(Cancel(other, state.item))
        return actions

    def _on_death(self, name: str, reason: str, preempted: bool, now: float) -> list[Action]:
        """Forgets a dead actor; its items come back, and the death counts against the one in flight."""
        actor = self.actors.pop(name)
        if actor.phase is not Phase.READY and not preempted and now >= self._backoff_until:  # those at once count once
            self._backoff_until = now + self._limits.backoff_s * 2**self._num_load_failures
            self._num_load_failures += 1
            if self._num_load_failures >= self._limits.max_load_failures:
                self._num_wanted = len(self.actors)  # others go on; until a node joins no more are started
                if all(other.phase is Phase.STARTING for other in self.actors.values()):
                    return [Fail(f"{self._num_load_failures} workers ended while loading the model ({reason})")]
        if actor.in_flight and not preempted and (blamed := self._items.get(actor.in_flight.name)):
            blamed.deaths, blamed.reason, blamed.is_quarantined = blamed.deaths + 1, reason, True
        actions: list[Action] = []
        for item in reversed(actor.items):
            state = self._items.get(item.name)
            if state is None:
                continue  # done by another
            state.actors.discard(name)
            if not state.actors:
                actions += self._requeue(state)
        return actions

    def _requeue(self, state: ItemState) -> list[Action]:
        """Makes an item that no actor has any more pending again, or its pieces, or gives it up."""
        item = state.item
        if state.deaths < self._limits.max_deaths:
            self._pending.appendleft(item)
            return []
        del self._items[item.name]
        pieces = self._split(item)
        for piece in reversed(pieces):
            self._items[piece.name] = ItemState(piece, is_quarantined=True)
            self._pending.appendleft(piece)
        return [] if pieces else [GiveUp(item, state.reason)]

    def _stop_hung(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for actor in list(self.actors.values()):
            if actor.phase is Phase.LOADING:
                deadline_s, doing = self._limits.load_deadline_s, "loading the model"
            elif actor.in_flight:
                deadline_s, doing = self.deadline_s(actor.in_flight), actor.in_flight.name
            else:
                continue
            if deadline_s is not None and now - actor.since > deadline_s:
                reason = f"{doing} took more than {deadline_s:.0f} s"
                actions += [Stop(actor.name, reason), *self._on_death(actor.name, reason, preempted=False, now=now)]
        return actions

    # What follows from the state.

    def _start_actors(self, now: float) -> list[Action]:
        if now < self._backoff_until:
            return []
        if any(actor.phase is Phase.READY and not actor.items for actor in self.actors.values()):
            return []  # it does what came back, sooner than a new one could
        actions: list[Action] = []
        while len(self.actors) < self._num_wanted and self._has_pending():
            name = f"worker-{self._num_started}"
            self._num_started += 1
            self.actors[name] = ActorState(name, now)
            actions.append(Start(name))
        return actions

    def _assign_items(self, now: float) -> list[Action]:
        ready = [actor for actor in self.actors.values() if actor.phase is Phase.READY]
        actions: list[Action] = []
        for actor in ready:
            if not actor.items and self._has_pending():
                actions.append(self._assign(actor, self._pending.popleft(), now))
        for actor in ready:
            if len(actor.items) == 1 and self._has_pending() and self._may_queue(actor.items[0], self._pending[0]):
                actions.append(self._assign(actor, self._pending.popleft(), now))
        for actor in ready:
            if not actor.items:
                actions += self._steal(actor, now) or self._speculate(actor, now)
        return actions

    def _assign(self, actor: ActorState, item: Item, now: float) -> Assign:
        actor.assign(item, now)
        self._items.setdefault(item.name, ItemState(item)).actors.add(actor.name)
        return Assign(actor.name, item)

    def _steal(self, idle: ActorState, now: float) -> list[Action]:
        """Assigns `idle` the largest item that is queued with another actor; nothing when there is none."""
        victims = [actor for actor in self.actors.values() if len(actor.items) == 2]
        if not victims:
            return []
        victim = max(victims, key=lambda actor: actor.items[1].size)
        item = victim.items[1]
        return [self._cancel(victim, item), self._assign(idle, item, now)]

    def _speculate(self, idle: ActorState, now: float) -> list[Action]:
        """Assigns `idle` the item that has been in flight longest with one actor alone; nothing when there is none."""
        alone = [actor for actor in self.actors.values() if actor.items and self._may_speculate(actor.items[0])]
        if not alone:
            return []
        return [self._assign(idle, min(alone, key=lambda actor: actor.since).items[0], now)]

    def _may_speculate(self, item: Item) -> bool:
        state = self._items.get(item.name)
        return state is not None and len(state.actors) == 1 and not state.is_quarantined

    def _may_queue(self, *items: Item) -> bool:
        """Whether none of `items` is quarantined: those are alone with an actor, so that it is known which it dies of."""
        return not any((state := self._items.get(item.name)) is not None and state.is_quarantined for item in items)

    def _cancel(self, actor: ActorState, item: Item) -> Cancel:
        actor.cancel(item.name)
        if (state := self._items.get(item.name)) is not None:
            state.actors.discard(actor.name)
        return Cancel(actor.name, item)

    def _drain(self) -> list[Action]:
        """After a stop: cancels what is queued, and ends every actor that has nothing in flight."""
        actions: list[Action] = []
        for actor in list(self.actors.values()):
            actions += [self._cancel(actor, item) for item in actor.items[1:]]
            if not actor.items:
                del self.actors[actor.name]
                actions.append(Stop(actor.name))
        return actions

    def _has_pending(self) -> bool:
        if not self._pending and (item := next(self._coming, None)) is not None:
            self._pending.append(item)
        return bool(self._pending)
