"""The loop of a driver: what a pool reports goes to the scheduler, and what that wants done is done."""

import time
from abc import ABC, abstractmethod
from typing import Any

from adadecode.errors import AdaDecodeError
from ray_jobs.events import (
    Accept,
    Action,
    Assign,
    Cancel,
    Died,
    Event,
    Fail,
    GiveUp,
    Item,
    Loaded,
    Start,
    Stop,
    StopRequested,
    Tick,
    Wanted,
)
from ray_jobs.pool import Pool
from ray_jobs.scheduler import Scheduler
from ray_jobs.state import Phase
from ray_jobs.watch import ClusterWatch

WAIT_S = 0.25
WANTED_EVERY_S = 2.0  # between two looks at how many actors the cluster can hold


class Driver(ABC):
    """A run's main loop, and what is the run's own: how many actors it uses, where results go, what is said."""

    def __init__(self, pool: Pool, scheduler: Scheduler, cluster: ClusterWatch) -> None:
        self._pool, self._scheduler, self._cluster = pool, scheduler, cluster
        self._has_loaded = False  # any actor
        self._unsaid: list[str] = []  # about loads that raised

    @abstractmethod
    def num_wanted(self) -> int:
        """How many actors can be used now."""

    @abstractmethod
    def on_done(self, item: Item, result: Any) -> None:
        """Takes what the first actor returned for `item`; called once for each item that is done."""

    @abstractmethod
    def on_give_up(self, item: Item, reason: str) -> None:
        """Takes that `item` ended the actors that tried it, the last for `reason`."""

    def is_stopping(self) -> bool:
        """Whether no more shall be begun."""
        return False

    def on_wait(self) -> None:
        """Called a few times a second, however much happens, and when an actor has loaded."""
        return

    def on_lost_actor(self, line: str) -> None:
        """Takes a line about an actor that died or hung."""
        return

    def drive(self) -> None:
        """Has the pool do all that the scheduler holds, or what is in flight once stopping; then ends its actors.

        Raises what every actor that loads refuses, a user's mistake, what every actor raises at work, or AdaDecodeError
        when no actor can be had.
        """
        try:
            self._drive()
        finally:
            self._pool.stop_all()

    def _drive(self) -> None:
        num_wanted, next_look, next_wait, is_stopped = 0, 0.0, 0.0, False
        wait_s = 0.0  # nothing is begun yet
        while True:
            happened = self._pool.poll(wait_s)
            wait_s = WAIT_S
            self._cluster.check()
            now = time.monotonic()
            if now >= next_look and not is_stopped:
                next_look = now + WANTED_EVERY_S
                if (wanted := self.num_wanted()) != num_wanted:
                    num_wanted = wanted
                    happened += [(Wanted(wanted), None), *self._let_go(wanted)]
            if self.is_stopping() and not is_stopped:
                is_stopped = True
                happened.append((StopRequested(), None))
            for event, result in [*happened, (Tick(), None)]:
                actions = self._scheduler.handle(event, now)
                if not any(isinstance(action, Fail) for action in actions):  # what ends the run is said by its error
                    self._take_note(event)
                for action in actions:
                    self._carry_out(action, result)
            if self._scheduler.is_over:
                return
            has_loaded = any(isinstance(event, Loaded) for event, _ in happened)
            if now >= next_wait or has_loaded:  # not after each of a thousand actors' items: it looks at all of them
                next_wait = now + WAIT_S
                self.on_wait()

    def _let_go(self, num_wanted: int) -> list[tuple[Event, Any]]:
        """Ends the newest actors beyond `num_wanted` that wait for a node, so that no node is started for them."""
        actors = self._scheduler.actors
        waiting = [actor.name for actor in reversed(actors.values()) if actor.phase is Phase.STARTING]
        surplus = waiting[: max(0, len(actors) - num_wanted)]
        for name in surplus:
            self._pool.stop(name)
        return [(Died(name, "not wanted any more", preempted=True), None) for name in surplus]

    def _carry_out(self, action: Action, result: Any) -> None:
        """Does what the scheduler wants about an event; `result` is that of the work which the event ends."""
        match action:
            case Start(name):
                self._pool.start(name)
            case Assign(name, item):
                self._pool.assign(name, item)
            case Cancel(name, item):
                self._pool.cancel(name, item)
            case Stop(name, reason):
                if reason is not None:
                    self.on_lost_actor(f"{self._named(name)} is ended: {reason}")
                self._pool.stop(name)
            case Accept(item):
                self.on_done(item, result)
            case GiveUp(item, reason):
                self.on_give_up(item, reason)
            case Fail(_, error) if error is not None:
                raise error
            case Fail(reason):
                raise AdaDecodeError(f"{reason}; what is committed stays, and the same command continues")

    def _take_note(self, event: Event) -> None:
        """Ends an actor that is lost and says so; of a load that raised only when another has loaded, as none else may."""
        if isinstance(event, Died) and event.actor in self._pool.actors:
            done = "is gone" if event.error is None else "failed"
            self._unsaid.append(f"{self._named(event.actor)} {done}: {event.reason}")
            self._pool.stop(event.actor)
        self._has_loaded |= isinstance(event, Loaded)
        if self._has_loaded or (isinstance(event, Died) and event.error is None):
            while self._unsaid:
                self.on_lost_actor(self._unsaid.pop(0))

    def _named(self, actor: str) -> str:
        """The actor and, when it is known, its place."""
        place = self._pool.places.get(actor)
        return actor if place is None else f"{actor} on {place}"
