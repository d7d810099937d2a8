"""What a scheduler is told, and what it wants done: its events and its actions."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Item:
    """A piece of work; `size` is in any unit that its time grows with, such as samples."""

    name: str
    work: Any
    size: int = 1


# Events: what happened.


@dataclass(frozen=True)
class Wanted:
    """So many actors can be used from now on: at the start, and when nodes join."""

    num_actors: int


@dataclass(frozen=True)
class Started:
    """The actor's process runs at `place`, a name for its GPU or its node; it loads."""

    actor: str
    place: str = ""


@dataclass(frozen=True)
class Loaded:
    """The actor is ready for its first assignment."""

    actor: str


@dataclass(frozen=True)
class Finished:
    """The actor did the item. `full_s` is what it would have taken at its longest, in seconds; None: not known."""

    actor: str
    item: str
    full_s: float | None = None


@dataclass(frozen=True)
class Cancelled:
    """The actor had not begun the item when its assignment was cancelled."""

    actor: str
    item: str


@dataclass(frozen=True)
class Died:
    """The actor, its node or its environment is gone, or it raised `error` and is ended for that.

    A preempted one died for no fault of what it did.
    """

    actor: str
    reason: str
    preempted: bool = False
    error: Exception | None = None


@dataclass(frozen=True)
class Tick:
    """Nothing happened for a while."""


@dataclass(frozen=True)
class StopRequested:
    """Nothing more shall be assigned: what is in flight may end."""


Event = Wanted | Started | Loaded | Finished | Cancelled | Died | Tick | StopRequested

# Actions: what is to be done about it.


@dataclass(frozen=True)
class Start:
    """Start the actor's process and have it load."""

    actor: str


@dataclass(frozen=True)
class Assign:
    """Let the actor do the item after those in its queue."""

    actor: str
    item: Item


@dataclass(frozen=True)
class Cancel:
    """Take the item out of the actor's queue, as another does it; should it have begun, the first of both counts."""

    actor: str
    item: Item


@dataclass(frozen=True)
class Stop:
    """End the actor's process, for a reason when it did not do what it should."""

    actor: str
    reason: str | None = None


@dataclass(frozen=True)
class Accept:
    """The item is done, for the first time."""

    item: Item


@dataclass(frozen=True)
class GiveUp:
    """The item ended every actor that tried it."""

    item: Item
    reason: str


@dataclass(frozen=True)
class Fail:
    """The run cannot go on: no actor can be had, or all raise what `error` says."""

    reason: str
    error: Exception | None = None


Action = Start | Assign | Cancel | Stop | Accept | GiveUp | Fail
