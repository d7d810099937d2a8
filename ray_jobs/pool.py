"""The actors of a run as Ray has them: their futures become the scheduler's events, its actions are carried out on them.

Own loop over `ray.wait`, not `ray.util.ActorPool`, which loses the work of a node that dies.
"""

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError, TaskCancelledError

from adadecode.errors import AdaDecodeError
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
from ray_jobs.scheduler import Scheduler

WAIT_S = 0.25
PLACES_S = 2.0  # between two looks at how many actors the cluster can hold

HELLO, LOAD = Item("starting", None), Item("loading the model", None)


class Place(NamedTuple):
    """Where an actor's process runs."""

    host: str
    pid: int


class Process:
    """What every actor of a crew is: made from its name and the crew's task, then told to `load` and to `work`."""

    def hello(self) -> Place:
        """Where this process runs; answers as soon as it does."""
        return Place(socket.gethostname(), os.getpid())


@dataclass(frozen=True)
class Done:
    """What `work` returns: `result` is the caller's, `full_s` the scheduler's (`Finished`)."""

    result: Any
    full_s: float | None = None


class Crew:
    """The processes behind the scheduler's names, and the futures of what each was told to do."""

    def __init__(self, actor_class: Any, task: Any, threads: int, resources: dict[str, float]) -> None:
        environment = {"env_vars": {"OMP_NUM_THREADS": str(threads)}}
        self._actor_class = actor_class.options(runtime_env=environment, **resources)
        self._task = task
        self._doing: dict[ray.ObjectRef, tuple[str, Item]] = {}
        self.actors: dict[str, Any] = {}
        self.places: dict[str, Place] = {}

    def hire(self, name: str) -> None:
        """Starts an actor, loading."""
        actor = self.actors[name] = self._actor_class.remote(name, self._task)
        self._doing[actor.hello.remote()] = (name, HELLO)
        self._doing[actor.load.remote()] = (name, LOAD)

    def give(self, name: str, item: Item) -> None:
        self._doing[self.actors[name].work.remote(item.work)] = (name, item)

    def take_back(self, name: str, item: Item) -> None:
        """Cancels what the actor has not begun; nothing happens to what it has."""
        for ref, doing in self._doing.items():
            if doing == (name, item):
                ray.cancel(ref)

    def dismiss(self, name: str) -> None:
        """Ends the actor's process and forgets it; one that does not answer Ray ends after some seconds."""
        self.places.pop(name, None)
        self._doing = {ref: doing for ref, doing in self._doing.items() if doing[0] != name}
        if (actor := self.actors.pop(name, None)) is not None:
            ray.kill(actor)

    def dismiss_all(self) -> None:
        for name in list(self.actors):
            with contextlib.suppress(RayError):  # with the cluster they are gone too
                self.dismiss(name)

    def poll(self, timeout_s: float) -> list[tuple[Event, Any]]:
        """What happened, each event with the result of the work it ends; waits for the first for at most `timeout_s`.

        Raises what an actor refused to do, a user's mistake, and AdaDecodeError for what it failed at.
        """
        refs = list(self._doing)
        if not refs:
            time.sleep(timeout_s)
            return []
        if not ray.wait(refs, num_returns=1, timeout=timeout_s)[0]:
            return []
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        return [self._event(ref) for ref in ready if ref in self._doing]

    def _event(self, ref: ray.ObjectRef) -> tuple[Event, Any]:
        name, item = self._doing.pop(ref)
        try:
            result = ray.get(ref)
        except TaskCancelledError:
            return NotBegun(name, item.name), None
        except RayTaskError as error:
            raise _as_told(error, item.name) from error
        except RayError as error:  # the actor, its node or its environment is gone
            preempted = isinstance(error, RayActorError) and error.preempted
            return Died(name, " ".join(str(error).split())[:300], preempted), None
        if item is HELLO:
            self.places[name] = result
            return Started(name), None
        if item is LOAD:
            return Loaded(name), None
        return Finished(name, item.name, result.full_s), result.result


def drive(
    crew: Crew,
    scheduler: Scheduler,
    *,
    num_wanted: Callable[[], int],
    on_done: Callable[[Item, Any], None],
    on_give_up: Callable[[Item, str], None],
    is_stopping: Callable[[], bool] = lambda: False,
    on_wait: Callable[[], None] = lambda: None,
    on_lost: Callable[[str], None] = lambda line: None,
) -> None:
    """Has `crew` do all that `scheduler` holds, or what is in flight once `is_stopping`.

    `on_done` gets each item once, with what the first actor returned for it; `on_give_up` those that ended every actor, and
    why; `on_lost` a line for each actor that died or hung. `on_wait` is called a few times a second. Raises AdaDecodeError
    when no actor can be had.
    """
    seen_wanted, next_look, is_stopped = 0, 0.0, False
    while True:
        found = crew.poll(WAIT_S)
        now = time.monotonic()
        if now >= next_look and not is_stopped:
            next_look = now + PLACES_S
            if (wanted := num_wanted()) != seen_wanted:
                seen_wanted = wanted
                found.append((Wanted(wanted), None))
        if is_stopping() and not is_stopped:
            is_stopped = True
            found.append((Stop(), None))
        for event, result in [*found, (Tick(), None)]:
            if isinstance(event, Died) and event.actor in crew.actors:
                on_lost(f"{event.actor} is gone: {event.reason}")
                crew.dismiss(event.actor)
            for action in scheduler.handle(event, now):
                _carry_out(action, crew, result, on_done, on_give_up, on_lost)
        if scheduler.is_over:
            return
        on_wait()


def _carry_out(
    action: Action,
    crew: Crew,
    result: Any,
    on_done: Callable[[Item, Any], None],
    on_give_up: Callable[[Item, str], None],
    on_lost: Callable[[str], None],
) -> None:
    match action:
        case Hire(name):
            crew.hire(name)
        case Give(name, item):
            crew.give(name, item)
        case TakeBack(name, item):
            crew.take_back(name, item)
        case Dismiss(name, reason):
            if reason is not None:
                on_lost(f"{name} is ended: {reason}")
            crew.dismiss(name)
        case Accept(item):
            on_done(item, result)
        case GiveUp(item, reason):
            on_give_up(item, reason)
        case Fail(reason):
            raise AdaDecodeError(f"{reason}; what is committed stays, and the same command continues")


def _as_told(error: RayTaskError, doing: str) -> Exception:
    """The worker's own one-line error when it made one, else a line that names what it was doing."""
    cause = error.cause
    if isinstance(cause, AdaDecodeError):
        return cause
    last_line = str(error).strip().splitlines()[-1]
    return AdaDecodeError(f"{doing} failed: {last_line}; Ray's logs are under {tempfile.gettempdir()}/ray")
