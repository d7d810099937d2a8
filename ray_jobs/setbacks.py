"""Setbacks: loads that failed and errors that were raised; when another actor may be started, and when the run is lost."""

import errno
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from adadecode.errors import RunFolderError
from ray_jobs.events import Died, Fail
from ray_jobs.limits import Limits
from ray_jobs.state import ActorState, Phase

LONG = 2  # times the loads in a row that fail before the run does, where a place is left that may only be away
FULL = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))


@dataclass
class Setbacks:
    """What actors failed at. One that fails alone is replaced; what fails for all ends the run."""

    limits: Limits
    is_final: Callable[[Exception], bool]  # of an error at work: whether every actor would raise it
    start_from: float = 0.0  # no actor is started before
    num_load_failures: int = 0  # in a row; those at once count once
    has_loaded: bool = False  # any actor, ever
    refusal: Exception | None = None  # what the first load raised that did
    raised_at: list[str] = field(default_factory=list)  # the places of errors at work since anything was finished
    unharmed: set[str] = field(default_factory=set)  # the actors that were there at the first of these and raised none
    failure: Fail | None = None
    fails_from: float = 0.0  # what is in flight may end before

    def begin_anew(self, now: float) -> None:
        """Nodes have joined, or an actor that had loaded is gone: actors may be started at once."""
        self.num_load_failures, self.start_from = 0, now

    def loaded(self, now: float) -> None:
        """An actor has loaded."""
        self.has_loaded = True
        self.begin_anew(now)

    def finished(self) -> None:
        """An actor has finished an item."""
        self.raised_at.clear()

    def load_failed(self, death: Died, others: Collection[ActorState], is_everywhere: bool, now: float) -> None:
        """Counts an actor that ended before it had loaded, beside `others`; `is_everywhere`: as did the last of each place.

        The next is started later and later. The run is lost when too many ended in a row and none of `others` is left
        that may do better.
        """
        self.refusal = self.refusal or death.error
        if now >= self.start_from:
            rest_s = self.limits.backoff_s * 2 ** min(self.num_load_failures, 30)
            self.start_from = now + min(rest_s, self.limits.longest_rest_s)
            self.num_load_failures += 1
        if self.has_loaded:
            most = self.limits.max_load_failures * (1 if is_everywhere else LONG)
            is_anyone_left = any(self._may_load(other, now) for other in others)
        else:
            most = self.limits.max_load_failures
            is_anyone_left = any(other.phase is not Phase.STARTING for other in others)
        if self.failure is None and self.num_load_failures >= most and not is_anyone_left:
            lost = f"{self.num_load_failures} workers ended while loading ({death.reason})"
            self.failure = Fail(lost, None if self.has_loaded else self.refusal)

    def raised(self, error: Exception, place: str, others: Collection[ActorState], now: float) -> None:
        """Counts an error that work raised at `place`.

        It is the run's when it is final, or when none of `others` is left that may do better: then the run ends with it as
        soon as nothing is in flight or the grace period is over.
        """
        at_work = [other for other in others if other.phase is not Phase.STARTING]
        names = {other.name for other in at_work}
        self.unharmed = self.unharmed & names if self.raised_at else names
        self.raised_at.append(place)
        is_everywhere = len(self.raised_at) >= self.limits.max_errors and all(
            other.name not in self.unharmed and other.place in self.raised_at for other in at_work
        )
        if self.failure is None and (is_everywhere or is_full_disk(error) or self.is_final(error)):
            self.failure, self.fails_from = Fail(str(error), error), now + self.limits.grace_s

    def due(self, actors: Collection[ActorState], now: float) -> Fail | None:
        """How the run fails now, with `actors` left; None while it need not."""
        if self.refusal is not None and not self.has_loaded and not any(self._may_load(actor, now) for actor in actors):
            return Fail(str(self.refusal), self.refusal)  # nobody else can load either: a setting or a file is wrong
        if self.failure is not None and (now >= self.fails_from or not any(actor.items for actor in actors)):
            return self.failure
        return None

    def _may_load(self, actor: ActorState, now: float) -> bool:
        """Whether its load has an outcome to wait for."""
        return actor.phase is not Phase.STARTING or now - actor.since < self.limits.start_s


def is_full_disk(error: Exception) -> bool:
    """Whether the run folder's disk has no room: nobody else can write there either, and waiting makes none."""
    return isinstance(error, RunFolderError) and any(words in str(error) for words in FULL)
