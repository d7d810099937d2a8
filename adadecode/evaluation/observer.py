"""Who is told how a run goes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from adadecode.evaluation.progress import ErrorLimit, RunProgress
from adadecode.records import ShardOutcome, WorkerState

if TYPE_CHECKING:
    from adadecode.runs.result import RunResult


class Observer(Protocol):
    """What every executor tells of a run, from the thread that drives it. What a method raises ends the run."""

    def say(self, line: str) -> None:
        """Takes a line for a person."""

    def on_start(self, progress: RunProgress) -> None:
        """Takes how far the run is, before its first shard; `progress` goes on counting while it lasts."""

    def on_end(self) -> None:
        """Called once after `on_start`, whatever ended the run."""

    def on_closed(self, result: "RunResult") -> None:
        """Takes what the run comes to, when it was closed; an error that ended it is raised after that."""

    def on_shard(self, outcome: ShardOutcome) -> None:
        """Takes what a shard came to, after its commit."""

    def on_workers(self, states: Sequence[WorkerState]) -> None:
        """Takes what every worker does now; called a few times a second where there are workers."""

    def on_lost_worker(self, line: str) -> None:
        """Takes a line about a worker that died or hung."""


class Quiet(Observer):
    """An observer that does nothing; others begin from it and look at some things alone."""


QUIET: Observer = Quiet()


class Together:
    """Tells each of `observers` in turn."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def say(self, line: str) -> None:
        for observer in self._observers:
            observer.say(line)

    def on_start(self, progress: RunProgress) -> None:
        for observer in self._observers:
            observer.on_start(progress)

    def on_closed(self, result: "RunResult") -> None:
        for observer in self._observers:
            observer.on_closed(result)

    def on_end(self) -> None:
        for observer in self._observers:
            observer.on_end()

    def on_shard(self, outcome: ShardOutcome) -> None:
        for observer in self._observers:
            observer.on_shard(outcome)

    def on_workers(self, states: Sequence[WorkerState]) -> None:
        for observer in self._observers:
            observer.on_workers(states)

    def on_lost_worker(self, line: str) -> None:
        for observer in self._observers:
            observer.on_lost_worker(line)


class Counting(Quiet):
    """Counts what is committed."""

    def __init__(self, progress: RunProgress) -> None:
        self._progress = progress

    def on_shard(self, outcome: ShardOutcome) -> None:
        self._progress.add(outcome)


class Limiting(Quiet):
    """Ends the run when more samples have failed than `limit` allows: raises TooManyErrorsError."""

    def __init__(self, progress: RunProgress, limit: ErrorLimit) -> None:
        self._progress, self._limit = progress, limit

    def on_shard(self, outcome: ShardOutcome) -> None:
        self._limit.check(self._progress.num_errors)
