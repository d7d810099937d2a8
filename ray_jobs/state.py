"""What a scheduler knows of each actor and of each item."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from ray_jobs.events import Item


class Phase(StrEnum):
    """How far an actor is: its process starts, it loads the model, it takes items."""

    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"


@dataclass
class Assignment:
    """An item in an actor's queue; one that was cancelled may have been begun all the same."""

    item: Item
    is_cancelled: bool = False


@dataclass
class ActorState:
    """What an actor is doing; `since` is when it began to.

    `queue` is what it was assigned, in that order: the first is in flight. An item may be there twice, cancelled and
    assigned again.
    """

    name: str
    since: float
    phase: Phase = Phase.STARTING
    place: str = ""  # not known while it starts
    queue: list[Assignment] = field(default_factory=list)

    @property
    def items(self) -> list[Item]:
        """What it shall do: at most two."""
        return [assignment.item for assignment in self.queue if not assignment.is_cancelled]

    @property
    def in_flight(self) -> Item | None:
        """What it does, cancelled or not; None when its queue is empty."""
        return self.queue[0].item if self.queue else None

    def assign(self, item: Item, now: float) -> None:
        """Puts the item at the end of the queue; it is in flight from `now` on when it is alone there."""
        if not self.queue:
            self.since = now
        self.queue.append(Assignment(item))
        assert len(self.items) <= 2, self

    def cancel(self, item_name: str) -> None:
        """Marks every assignment of the item as cancelled."""
        for assignment in self.queue:
            if assignment.item.name == item_name:
                assignment.is_cancelled = True

    def end(self, item_name: str, now: float) -> None:
        """Takes the item out of the queue, the first where it is there twice; the next is in flight from `now` on."""
        for idx, assignment in enumerate(self.queue):
            if assignment.item.name == item_name:
                del self.queue[idx]
                self.since = now if idx == 0 else self.since
                return


@dataclass
class ItemState:
    """An item that was assigned and is not done: pending again, or in the queues of `actors`."""

    item: Item
    is_quarantined: bool = False  # an actor died of it, or of what it is a piece of: nothing is queued beside it
    deaths: Counter[str] = field(default_factory=Counter)  # by place
    reason: str = ""  # of the last death
    actors: set[str] = field(default_factory=set)
