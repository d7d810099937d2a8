"""What a scorer is: a name, a version, its metrics and a function of an output's text and its reference."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Scored(NamedTuple):
    """A score, or None and the reason why there is none; of a program that failed the reason too."""

    score: float | None
    reason: str | None = None


RunProgram = Callable[[str], Scored]  # runs a program in a sandbox: 1.0 where it succeeds, 0.0 where it does not


def always_there() -> None:
    """Says that nothing is missing."""


@dataclass(frozen=True)
class Scorer:
    """One way to score outputs, one value in one file. Its `version` grows whenever a score that it gives may change.

    `score` gives each of `metrics` a number, made of an output's text and its reference. A scorer that has to run what the
    model wrote has `program` in its place: the program made of both, whose success is its one metric. `over_repeats` makes
    further metrics of the scores that a sample's repeats have, in their order. `missing` says in one line, with the
    remedy, what is not installed that it needs; None where nothing is.
    """

    name: str
    version: int
    metrics: tuple[str, ...]
    score: Callable[[str, str], Mapping[str, float]] | None = None
    program: Callable[[str, str], str] | None = None
    over_repeats: Callable[[Sequence[float]], Mapping[str, float]] | None = None
    missing: Callable[[], str | None] = always_there

    def __post_init__(self) -> None:
        assert (self.score is None) != (self.program is None), f"{self.name}: either `score` or `program`"
        assert self.metrics, self.name
        assert self.program is None or len(self.metrics) == 1, f"{self.name}: a program succeeds or fails, one metric"

    @property
    def is_unsafe(self) -> bool:
        """Whether it runs what a model wrote."""
        return self.program is not None
