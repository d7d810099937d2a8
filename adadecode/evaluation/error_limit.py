"""How many samples may fail before a run is plainly broken."""

from dataclasses import dataclass

from adadecode.config import allowed_errors
from adadecode.errors import TooManyErrorsError


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
                f"{self.max_errors} allows {self.allowed}: `adadecode report` names the commonest errors; what is "
                "committed stays, so remove the cause and run the same command with --retry-errors, or go on with a "
                "higher --max-errors"
            )
