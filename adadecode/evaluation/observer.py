"""Who is told how a run goes."""

from collections.abc import Sequence
from typing import Protocol

from adadecode.records import ShardOutcome, WorkerState


class Observer(Protocol):
    """What every executor tells of a run, from the thread that drives it. What a method raises ends the run."""

    def say(self, line: str) -> None:
        """Takes a line for a person."""

    def on_shard(self, outcome: ShardOutcome) -> None:
        """Takes what a shard came to, after its commit."""

    def on_workers(self, states: Sequence[WorkerState]) -> None:
        """Takes what every worker does now; called a few times a second where there are workers."""

    def on_lost_worker(self, line: str) -> None:
        """Takes a line about a worker that died or hung."""


class Quiet:
    """An observer that does nothing."""

    def say(self, line: str) -> None:
        pass

    def on_shard(self, outcome: ShardOutcome) -> None:
        pass

    def on_workers(self, states: Sequence[WorkerState]) -> None:
        pass

    def on_lost_worker(self, line: str) -> None:
        pass


QUIET: Observer = Quiet()
