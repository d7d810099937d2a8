"""How far a run is while it goes, and how many of its samples may fail before it is plainly broken."""

import time
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass

from adadecode.errors import TooManyErrorsError
from adadecode.records import ShardOutcome
from adadecode.settings import allowed_errors

NOTHING = ShardOutcome(num_samples=0, num_error_samples=0, num_output_tokens=0, busy_s=0.0, num_exact=0, num_owed=0)


def total_outcome(outcomes: Iterable[ShardOutcome]) -> ShardOutcome:
    """The sums of `outcomes`, field by field."""
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
        """The outcome of all committed shards together, of this session and before."""
        return total_outcome([self._before, self.session])

    @property
    def num_done(self) -> int:
        """Samples of committed shards."""
        return self.total.num_samples

    @property
    def num_errors(self) -> int:
        """Samples of committed shards with an error row."""
        return self.total.num_error_samples

    @property
    def parity(self) -> str:
        """`parity 120/120`: the exact outputs of those that are owed, over all committed shards."""
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


@dataclass(frozen=True)
class ErrorLimit:
    """The samples of a run that may fail. A sample failed when any of its rows is an error."""

    max_errors: str  # as the flag says it: N or P%
    num_planned: int
    allowed: int

    @classmethod
    def of(cls, max_errors: str, num_planned: int) -> "ErrorLimit":
        """The limit `max_errors`, N or P% rounded up, of a run of `num_planned` samples."""
        return cls(max_errors, num_planned, allowed_errors(max_errors, num_planned))

    def check(self, num_error_samples: int) -> None:
        """Raises TooManyErrorsError when more samples failed than may."""
        if num_error_samples > self.allowed:
            raise TooManyErrorsError(
                f"{num_error_samples} of {self.num_planned} planned samples failed, and --max-errors "
                f"{self.max_errors} allows {self.allowed}: what is committed stays, so remove the cause and run the same "
                "command with --retry-errors, or go on with a higher --max-errors"
            )
