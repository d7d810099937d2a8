"""What was found before a run: one line each, ok, a warning, or what will fail, with the remedy."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from adadecode.errors import EXIT_FAILED, EXIT_OK, EXIT_USAGE, AdaDecodeError
from adadecode.printable import on_one_line

Status = Literal["ok", "warning", "will fail", "not tried"]
EXIT_CODES: dict[Status, int] = {
    "ok": EXIT_OK,
    "not tried": EXIT_OK,
    "warning": EXIT_FAILED,
    "will fail": EXIT_USAGE,
}
LONGEST_LINE = 1000


@dataclass(frozen=True)
class Finding:
    """One line: which check it is of, how it stands, what was found, and what to do where that is not `ok`."""

    check: str
    status: Status
    found: str
    remedy: str = ""

    @classmethod
    def ok(cls, check: str, found: str) -> "Finding":
        return cls(check, "ok", found)

    @classmethod
    def warning(cls, check: str, found: str, remedy: str) -> "Finding":
        return cls(check, "warning", found, remedy)

    @classmethod
    def fails(cls, check: str, found: str, remedy: str) -> "Finding":
        return cls(check, "will fail", found, remedy)

    @classmethod
    def of_error(cls, check: str, error: BaseException) -> "Finding":
        """What `error` says: this program's own errors name their remedy, others the kind that they are of."""
        if isinstance(error, AdaDecodeError):
            return cls(check, "will fail", on_one_line(error, LONGEST_LINE))
        said = f"{type(error).__name__}: {on_one_line(error, LONGEST_LINE)}"
        return cls.fails(check, said, "mend that first: a run would meet it too")

    def at(self, places: str) -> "Finding":
        """The same, found at `places`."""
        return replace(self, check=f"{self.check} on {places}")

    def text(self) -> str:
        """What was found and the remedy."""
        return f"{self.found}: {self.remedy}" if self.remedy else self.found

    def line(self) -> str:
        """The finding on one line."""
        return f"{self.status:<9}  {self.check}: {self.text()}"


def exit_code(findings: Iterable[Finding]) -> int:
    """0 when all is ok, 1 when there are warnings alone, 2 when something will fail."""
    return max((EXIT_CODES[finding.status] for finding in findings), default=EXIT_OK)
