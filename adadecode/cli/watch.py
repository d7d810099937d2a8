"""How a run is shown while it goes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adadecode.cli.console import console, say
from adadecode.records import ShardOutcome, WorkerState

if TYPE_CHECKING:
    from adadecode.cli.live import LiveProgress
    from adadecode.evaluation.progress import RunProgress
    from adadecode.runs.result import RunResult


class Watcher:
    """An observer that draws on the terminal, or writes a line now and then to a log."""

    def __init__(self) -> None:
        self._live: LiveProgress | None = None
        self.closed: RunResult | None = None

    def on_start(self, progress: "RunProgress") -> None:
        from adadecode.cli.live import LiveProgress

        self._live = LiveProgress(progress, console())
        self._live.__enter__()

    def on_end(self) -> None:
        if self._live is not None:
            self._live.__exit__(None, None, None)
            self._live = None

    def on_closed(self, result: "RunResult") -> None:
        self.closed = result

    def on_shard(self, outcome: ShardOutcome) -> None:
        if self._live is not None:
            self._live.refresh()

    def on_workers(self, states: Sequence[WorkerState]) -> None:
        if self._live is not None:
            self._live.update(states)

    def on_lost_worker(self, line: str) -> None:
        self.say(line)

    def say(self, line: str) -> None:
        if self._live is None:
            say(line)
        else:
            self._live.say(line)
