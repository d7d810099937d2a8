"""Ctrl-C and SIGTERM: the first asks a run to finish what is in flight, a second or the end of the grace period ends it.

While a run is being closed, one more is noted, so that no other run follows it, and the next ends the process.
"""

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType

from adadecode.errors import EXIT_INCOMPLETE
from adadecode.records import Say

ASKING = (signal.SIGINT, signal.SIGTERM)
CLOSING_S = 60.0


class StopRequest:
    """A context in which the signals are heeded; it must be entered in the main thread.

    `install` again after a library has set handlers of its own, as Ray does when it connects. One that does not heed
    signals is never made and touches no handler.
    """

    def __init__(self, grace_s: float, say: Say, *, heeds_signals: bool = True) -> None:
        self._grace_s, self._say, self._heeds_signals = grace_s, say, heeds_signals
        self.is_made = False
        self._watch: ClosingWatch | None = None

    def __call__(self) -> bool:
        """Whether the run was asked to stop."""
        return self.is_made

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.getsignal(number) for number in (*ASKING, signal.SIGALRM)}
        self.install()
        return self

    def install(self) -> None:
        """Sets the handlers; of a run that was being closed, another follows it."""
        if not self._heeds_signals:
            return
        self._end_watch()
        for number in ASKING:
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGALRM, self._on_grace_over)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._end_watch()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def end(self) -> None:
        """From now on the run is being closed: a first signal is noted, a second one or `CLOSING_S` later ends the process.

        That works too while the main thread hangs in a request to a disk that is gone.
        """
        if not self._heeds_signals:
            return
        signal.setitimer(signal.ITIMER_REAL, 0)
        if self._watch is None:
            self._watch = ClosingWatch(self._say, self._make)

    def _make(self) -> None:
        self.is_made = True

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.end()
            self._watch = None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.is_made:
            self._interrupt()
        self.is_made = True
        name = signal.Signals(number).name
        self._say(
            f"{name}: no more shards are begun; those in flight have {self._grace_s:g} s (--grace); again: stop at once"
        )
        if self._grace_s <= 0:
            self._interrupt()
        signal.setitimer(signal.ITIMER_REAL, self._grace_s)

    def _on_grace_over(self, number: int, frame: FrameType | None) -> None:
        self._interrupt()

    def _interrupt(self) -> None:
        """Raises KeyboardInterrupt in the main thread, once."""
        self.end()
        raise KeyboardInterrupt


class ClosingWatch:
    """A thread that heeds the signals in the main thread's place, while that closes a run."""

    def __init__(self, say: Say, on_signal: Callable[[], None]) -> None:
        """`on_signal` is called when the first is noted."""
        self._say, self._on_signal, self._is_ended = say, on_signal, False
        self._seen, seen_by_handler = os.pipe()
        os.set_blocking(seen_by_handler, False)
        self._fd_before = signal.set_wakeup_fd(seen_by_handler, warn_on_full_buffer=False)
        for number in ASKING:
            signal.signal(number, lambda number, frame: None)  # what is seen is written to the pipe
        self._mask_before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)  # so that another thread gets them
        self._thread = threading.Thread(target=self._run, name="closing", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Gives the signals back to the main thread."""
        self._is_ended = True
        os.close(signal.set_wakeup_fd(self._fd_before))
        self._thread.join()
        os.close(self._seen)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask_before)

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
        if (number := self._next_signal(None)) is None:
            return
        self._on_signal()
        name = signal.Signals(number).name
        self._say(f"{name}: the run is being closed; again, or in {CLOSING_S:g} s: end without its tables")
        if self._next_signal(CLOSING_S) is None and self._is_ended:
            return
        self._say("ended before the run was closed; what is committed stays, and the same command continues")
        os._exit(EXIT_INCOMPLETE)

    def _next_signal(self, within_s: float | None) -> int | None:
        """The next signal that asks for an end; None when none comes in time or the watch is ended."""
        until = None if within_s is None else time.monotonic() + within_s
        while not self._is_ended:
            left_s = None if until is None else max(0.0, until - time.monotonic())
            if not select.select([self._seen], [], [], left_s)[0]:
                return None
            number = int.from_bytes(os.read(self._seen, 1))
            if number in ASKING:
                return number
        return None


NEVER = StopRequest(0.0, lambda line: None, heeds_signals=False)
