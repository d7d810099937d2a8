"""What is known of a run while it goes: samples done, parity so far, tokens per second, time left."""

import time
from collections.abc import Callable, Iterable
from dataclasses import astuple

from adadecode.records import ShardOutcome

NOTHING = ShardOutcome(num_samples=0, num_error_samples=0, num_output_tokens=0, busy_s=0.0, num_exact=0, num_owed=0)


def total_outcome(outcomes: Iterable[ShardOutcome]) -> ShardOutcome:
    """The outcome of all of them together."""
    total = NOTHING
    for outcome in outcomes:
        total = ShardOutcome(*(a + b for a, b in zip(astuple(total), astuple(outcome), strict=True)))
    return total


class RunProgress:
    """The outcomes of a run's shards so far: those committed `before` this session, and those added in it.

    `clock` gives monotonic seconds; the session starts when this object is made.
    """

    def __init__(
        self, num_planned: int, before: ShardOutcome = NOTHING, clock: Callable[[], float] = time.monotonic
    ) -> None:
        assert before.num_samples <= num_planned, (before, num_planned)
        self.num_planned = num_planned
        self.session = NOTHING
        self._before = before
        self._clock = clock
        self._started_at = clock()

    def add(self, outcome: ShardOutcome) -> None:
        """Counts one more shard, committed in this session."""
        self.session = total_outcome([self.session, outcome])

    @property
    def total(self) -> ShardOutcome:
        """Of all shards that are committed."""
        return total_outcome([self._before, self.session])

    @property
    def num_done(self) -> int:
        return self.total.num_samples

    @property
    def num_errors(self) -> int:
        """Samples with an error row."""
        return self.total.num_error_samples

    @property
    def parity(self) -> str:
        """`parity 120/120`: exact outputs of those that are owed; all shards that are committed."""
        total = self.total
        return f"parity {total.num_exact}/{total.num_owed}" if total.num_owed else "parity not checked"

    @property
    def elapsed_s(self) -> float:
        """Seconds of this session."""
        return self._clock() - self._started_at

    @property
    def tokens_per_s(self) -> float | None:
        """Output tokens of all methods per second of this session; None until there are any."""
        tokens, elapsed_s = self.session.num_output_tokens, self.elapsed_s
        return tokens / elapsed_s if tokens and elapsed_s > 0 else None

    @property
    def eta_s(self) -> float | None:
        """Seconds left at this session's samples per second; None until it has done one."""
        num_left = self.num_planned - self.num_done
        return self.elapsed_s / self.session.num_samples * num_left if self.session.num_samples else None
