"""How far a certification is, and whether more of its prompts failed than may."""

import time
from collections.abc import Mapping

from adadecode.evaluation.progress import total_outcome
from adadecode.records import Say, ShardOutcome
from adadecode.settings import allowed_errors

SAY_EACH_S = 10.0


class Watch:
    """Counts the prompts that are done and says now and then how far the run is."""

    def __init__(self, num_planned: int, before: Mapping[int, ShardOutcome], max_errors: str, say: Say) -> None:
        """`before` are the prompts that were done earlier, by shard; `max_errors` is N or P%."""
        self._num_planned, self._max_errors, self._say = num_planned, max_errors, say
        self._allowed = allowed_errors(max_errors, num_planned)
        self._total = total_outcome(before.values())
        self._num_before = self._total.num_samples
        self._said_at = time.monotonic()

    @property
    def has_failed(self) -> bool:
        """Whether more prompts failed than may."""
        return self._total.num_error_samples > self._allowed

    def add(self, outcome: ShardOutcome) -> None:
        """Counts a prompt that is done."""
        self._total = total_outcome([self._total, outcome])
        if time.monotonic() - self._said_at >= SAY_EACH_S:
            self._said_at = time.monotonic()
            self._say(self._line())

    def say_last(self) -> None:
        """Says how far the run came, where it did."""
        if self._total.num_samples > self._num_before:
            self._say(self._line())

    def failure(self) -> str | None:
        """The line about too many prompts that failed; None where these are not too many."""
        if not self.has_failed:
            return None
        return (
            f"{self._total.num_error_samples} of {self._num_planned} prompts failed, and --max-errors {self._max_errors} "
            f"allows {self._allowed}: what is finished stays, so remove the cause and run the same command again, or go on "
            "with a higher --max-errors"
        )

    def _line(self) -> str:
        num_failed = self._total.num_error_samples
        failed = f", {num_failed} failed" if num_failed else ""
        return f"{self._total.num_samples} of {self._num_planned} prompts done{failed}"
