"""How long a process takes for what it does one thing after another, by name."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Generator
from contextvars import ContextVar


class Stopwatch:
    """Seconds by the name of a lap. Each counts once: under the lap that was begun last and is not over."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds = defaultdict[str, float](float)
        self._clock, self._since, self._lap = clock, clock(), ""

    def begin(self, name: str) -> str:
        """Counts under `name` from now on; returns the lap that this interrupts."""
        now, before = self._clock(), self._lap
        self.seconds[before] += now - self._since
        self._since, self._lap = now, name
        return before


_running: ContextVar[Stopwatch | None] = ContextVar("stopwatch", default=None)


@contextlib.contextmanager
def stopwatch() -> Generator[Stopwatch]:
    """The stopwatch that runs, or one that runs while the context lasts."""
    watch = _running.get()
    if watch is not None:
        yield watch
        return
    token = _running.set(watch := Stopwatch())
    try:
        yield watch
    finally:
        _running.reset(token)


@contextlib.contextmanager
def lap(name: str) -> Generator[None]:
    """Has the stopwatch that runs, where one does, count what is done meanwhile under `name`."""
    watch = _running.get()
    before = None if watch is None else watch.begin(name)
    try:
        yield
    finally:
        if watch is not None and before is not None:
            watch.begin(before)
