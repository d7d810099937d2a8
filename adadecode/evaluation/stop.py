"""Ctrl-C and SIGTERM: the first asks a run to finish what is in flight, a second or the end of the grace period ends it."""

import signal
from types import FrameType, TracebackType

from adadecode.records import Say

ASKING = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """A context in which the signals are heeded; it must be entered in the main thread.

    `install` again after a library has set handlers of its own, as Ray does when it connects. One that does not heed
    signals is never made and touches no handler.
    """

    def __init__(self, grace_s: float, say: Say, *, heeds_signals: bool = True) -> None:
        self._grace_s, self._say, self._heeds_signals = grace_s, say, heeds_signals
        self.is_made = False

    def __call__(self) -> bool:
        """Whether the run was asked to stop."""
        return self.is_made

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.getsignal(number) for number in (*ASKING, signal.SIGALRM)}
        self.install()
        return self

    def install(self) -> None:
        """Sets the handlers."""
        if not self._heeds_signals:
            return
        for number in ASKING:
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGALRM, self._on_grace_over)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def end(self) -> None:
        """From now on nothing is heeded: the run is being closed, and nothing may cut that short."""
        if not self._heeds_signals:
            return
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in ASKING:
            signal.signal(number, signal.SIG_IGN)

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


NEVER = StopRequest(0.0, lambda line: None, heeds_signals=False)
