"""Who does what next: a state machine over the items of a run and its actors, without Ray and without a clock.

Events go in with the time they happened at, actions come out; `ray_jobs/driver.py` gets the events from Ray's futures
and has the actions carried out. An item is done once for the caller, however many actors worked on it.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from ray_jobs.events import (
    Accept,
    Action,
    Assign,
    Cancel,
    Cancelled,
    Died,
    Event,
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
from ray_jobs.limits import Limits
from ray_jobs.places import Places
from ray_jobs.setbacks import Setbacks
from ray_jobs.state import ActorState, ItemState, Phase


class Scheduler:
    """The state of a run between its events.

    Items are assigned in their order, those that come back first. An actor has at most one in flight and one queued; an
    item that an actor died of is quarantined: nothing is queued behind it, nor it behind another, and it goes to a place
    where it ended none. When none is pending, an idle actor steals a queued one (work stealing), then runs the one that
    is in flight longest a second time (speculative execution).
    """

    def __init__(
        self,
        items: Iterable[Item],
        limits: Limits,
        split: Callable[[Item], tuple[Item, ...]] = lambda item: (),
        is_final: Callable[[Exception], bool] = lambda error: False,
    ) -> None:
        """`split` gives what an item consists of, nothing when it is the smallest.

        `is_final` says of an error that work raised whether every actor would raise it: it ends the run at once.
        """
        self._limits, self._split = limits, split
        self._coming: Iterator[Item] = iter(items)
        self._pending: deque[Item] = deque()
        self._items: dict[str, ItemState] = {}  # every item that was ever assigned and is not done
        self._num_wanted, self._num_started, self._is_stopped = 0, 0, False
        self._places, self._setbacks = Places(limits), Setbacks(limits, is_final)
        self._slowest_s: float | None = None  # per size
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
        return state.deaths.total() if (state := self._items.get(item_name)) else 0

    def deadline_s(self, item: Item) -> float | None:
        """How long `item` may take: `slack` times the slowest measured, doubled for each actor it ended, a few times."""
        if self._limits.first_deadline_s is None:
            return None
        patience = 2 ** min(self.num_deaths(item.name), self._limits.most_doublings)
        if self._slowest_s is None:
            return patience * self._limits.first_deadline_s
        return patience * max(self._limits.least_deadline_s, self._limits.slack * item.size * self._slowest_s)

    def handle(self, event: Event, now: float) -> list[Action]:
        """What is to be done about `event`; `now` is seconds of a clock that never goes back."""
        actions: list[Action] = []
        match event:
            case Wanted(num_actors):
                if num_actors > self._num_wanted:  # nodes have joined
                    self._setbacks.begin_anew(now)
                self._num_wanted = num_actors
            case Started(name, place) if actor := self.actors.get(name):
                actor.phase, actor.since, actor.place = Phase.LOADING, now, place
                self._places.add(place)
            case Loaded(name) if actor := self.actors.get(name):
                actor.phase, actor.since = Phase.READY, now
                self._setbacks.loaded(now)
                self._places.loaded(actor.place)
            case Finished(name, item_name, full_s):
                actions += self._on_finished(name, item_name, full_s, now)
            case Cancelled(name, item_name) if actor := self.actors.get(name):
                actor.end(item_name, now)
            case Died(name) if name in self.actors:
                actions += self._on_death(event, now)
            case Tick():
                actions += self._stop_hung(now)
            case StopRequested():
                self._is_stopped = True
            case Started() | Loaded() | Cancelled() | Died():
                pass  # late news of an actor that is no more
        if (failure := self._setbacks.due(self.actors.values(), now)) is not None:
            return [*actions, failure]
        if self._is_stopped or self._setbacks.failure is not None:
            return actions + self._drain()
        return actions + self._start_actors(now) + self._assign_items(now)

    # The events that change more than one field.

    def _on_finished(self, name: str, item_name: str, full_s: float | None, now: float) -> list[Action]:
        self._setbacks.finished()
        if actor := self.actors.get(name):
            actor.end(item_name, now)
            self._places.finished(actor.place)
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

    def _on_death(self, death: Died, now: float) -> list[Action]:
        """Forgets a dead actor; its items come back, and the death counts against the one in flight."""
        actor = self.actors.pop(death.actor)
        self._places.left(actor.place, now)
        if actor.phase is Phase.READY:
            self._setbacks.begin_anew(now)
        if not death.preempted:
            self._count(actor, death, now)
        actions: list[Action] = []
        for item in reversed(actor.items):
            if (state := self._items.get(item.name)) is None:
                continue  # done by another
            state.actors.discard(actor.name)
            if not state.actors:
                actions += self._requeue(state, now)
        return actions

    def _count(self, actor: ActorState, death: Died, now: float) -> None:
        """Holds a death against the place, against the item in flight and, when it failed to load or raised, the run."""
        if actor.phase is not Phase.READY:
            self._places.load_failed(actor.place)
            self._setbacks.load_failed(death, self.actors.values(), self._places.none_loads, now)
            return
        self._places.failed(actor.place, now)
        if death.error is not None:
            self._setbacks.raised(death.error, actor.place, self.actors.values(), now)
        if actor.in_flight and (blamed := self._items.get(actor.in_flight.name)):
            blamed.deaths[actor.place] += 1
            blamed.reason, blamed.is_quarantined = death.reason, True

    def _requeue(self, state: ItemState, now: float) -> list[Action]:
        """Makes an item that no actor has any more pending again, or its pieces, or gives it up."""
        item = state.item
        if self._setbacks.failure is not None or not self._places.is_poison(state, self.actors.values(), now):
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
                deadline_s, doing = self._limits.load_deadline_s, "loading"
            elif actor.in_flight:
                deadline_s, doing = self.deadline_s(actor.in_flight), actor.in_flight.name
            else:
                continue
            if deadline_s is not None and now - actor.since > deadline_s:
                reason = f"{doing} took more than {deadline_s:.0f} s"
                actions += [Stop(actor.name, reason), *self._on_death(Died(actor.name, reason), now)]
        return actions

    # What follows from the state.

    def _start_actors(self, now: float) -> list[Action]:
        if now < self._setbacks.start_from or len(self.actors) >= self._num_wanted:
            return []
        if any(not actor.items and self._next_for(actor, now) for actor in self._short_of_work(now)):
            return []  # it does what came back, sooner than a new one could
        actions: list[Action] = []
        while len(self.actors) < self._num_wanted and self._has_pending():
            name = f"worker-{self._num_started}"
            self._num_started += 1
            self.actors[name] = ActorState(name, now)
            actions.append(Start(name))
        return actions

    def _assign_items(self, now: float) -> list[Action]:
        short = self._short_of_work(now)
        actions: list[Action] = []
        for actor in short:
            if not actor.items and (item := self._next_for(actor, now)):
                actions.append(self._assign(actor, item, now))
        for actor in () if self._limits.exclusive else short:
            if len(actor.items) == 1 and (item := self._next_for(actor, now)) and self._may_queue(actor.items[0], item):
                actions.append(self._assign(actor, item, now))
        for actor in short:
            if not actor.items:
                if not (found := self._steal(actor, now) or self._speculate(actor, now)):
                    break  # nor is there anything for another
                actions += found
        return actions

    def _short_of_work(self, now: float) -> list[ActorState]:
        """The actors that may be assigned something: not those with two items, nor those at a place that rests."""
        short = [actor for actor in self.actors.values() if actor.phase is Phase.READY and len(actor.items) < 2]
        return [actor for actor in short if not self._places.is_resting(actor.place, self.actors.values(), now)]

    def _next_for(self, actor: ActorState, now: float) -> Item | None:
        """The first pending item that `actor` may be assigned; None when there is none."""
        found = next((item for item in self._pending if self._may_try(actor, item, now)), None)
        if found is None and (found := next(self._coming, None)) is not None:
            self._pending.append(found)
        return found

    def _may_try(self, actor: ActorState, item: Item, now: float) -> bool:
        """Whether the item is under no suspicion, or no actor is at a better place for it."""
        state = self._items.get(item.name)
        if state is None or not state.is_quarantined:
            return True
        return actor in self._places.best_for(state, self.actors.values(), now)

    def _assign(self, actor: ActorState, item: Item, now: float) -> Assign:
        with contextlib.suppress(ValueError):  # it may be another's, in flight or queued
            self._pending.remove(item)
        actor.assign(item, now)
        self._items.setdefault(item.name, ItemState(item)).actors.add(actor.name)
        return Assign(actor.name, item)

    def _steal(self, idle: ActorState, now: float) -> list[Action]:
        """Assigns `idle` the largest item that is queued with another actor; nothing when there is none."""
        victims = (actor for actor in self.actors.values() if len(actor.items) == 2)
        if (victim := max(victims, key=lambda actor: actor.items[1].size, default=None)) is None:
            return []
        item = victim.items[1]
        return [self._cancel(victim, item), self._assign(idle, item, now)]

    def _speculate(self, idle: ActorState, now: float) -> list[Action]:
        """Assigns `idle` the item that has been in flight longest with one actor alone; nothing when there is none."""
        alone = (actor for actor in self.actors.values() if actor.items and self._may_speculate(actor.items[0]))
        oldest = min(alone, key=lambda actor: actor.since, default=None)
        if oldest is None or self._limits.exclusive:
            return []
        return [self._assign(idle, oldest.items[0], now)]

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
