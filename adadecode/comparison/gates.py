"""What a change must not do: the limits of `--fail-if-slower` and `--fail-if-acceptance-drops`, held against intervals."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from adadecode.comparison.changes import Change
from adadecode.errors import UsageError
from adadecode.methods import REFERENCE
from adadecode.report.stats import Estimate


@dataclass(frozen=True)
class Limits:
    """Shares: a method fails where it is surely slower by more than `slower`, or its acceptance surely lower by `drops`.

    With `over_vanilla` its speedup over vanilla of the same run is judged, in which a slower machine does not count.
    """

    slower: float | None = None
    drops: float | None = None
    over_vanilla: bool = False

    def __post_init__(self) -> None:
        if self.over_vanilla and self.slower is None:
            raise UsageError("--over-vanilla is about what --fail-if-slower judges: give that too")


@dataclass(frozen=True)
class Judged:
    """What the limits say: methods that `failed`, such as cannot be judged, and what else may explain it, a line each."""

    failed: list[str]
    unproved: list[str]
    hints: list[str]


def share_of(flag: str, text: str) -> float:
    """The share that `text` is, such as `5%`; raises UsageError unless it is 0% or more and below 100%."""
    found = re.fullmatch(r"([0-9]{1,2}(?:\.[0-9]{1,9})?)%", text.strip())
    if found is None:
        raise UsageError(f"{flag} {text!r}: give a share from 0% to below 100%, such as 5%")
    return float(found[1]) / 100


def judged(found: Sequence[Change], limits: Limits, alone: Iterable[str] = ()) -> Judged:
    """Which of the changes pass a limit with their whole interval, and which have none that could tell.

    Nor have methods that are in one run `alone`, a line for each.
    """
    failed, unproved = list[str](), list[str]()
    for name, what, estimate, limit in _claims(found, limits):
        if estimate is None or estimate.low is None or estimate.high is None:
            unproved.append(f"{name}: {what} cannot be judged, as it has no interval")
        elif estimate.high < limit:
            ends = f"{estimate.low:.3f} to {estimate.high:.3f}"
            failed.append(f"{name}: {what} is {estimate.value:.3f}, its 95 % interval {ends}, all below {limit:g}")
    is_any = limits.slower is not None or limits.drops is not None
    unproved += [f"{line}, and cannot be judged" for line in alone] if is_any else []
    return Judged(failed, unproved, list(_hints(found, limits)))


def _hints(found: Iterable[Change], limits: Limits) -> Iterator[str]:
    """A line for each task on which vanilla itself is slower than the limit, where speeds are judged as they are."""
    for change in found:
        high = None if change.speed is None else change.speed.high
        is_slower = limits.slower is not None and high is not None and high < 1 - limits.slower
        if change.method == REFERENCE and is_slower and not limits.over_vanilla:
            yield f"{REFERENCE} on {change.task} is slower itself, as a busy machine is: --over-vanilla judges beside it"


def _claims(found: Iterable[Change], limits: Limits) -> Iterator[tuple[str, str, Estimate | None, float]]:
    """The method, what is judged, the estimate of it, and the limit that it must not lie below."""
    for change in found:
        name = f"{change.method} on {change.task}"
        if limits.slower is not None and limits.over_vanilla and change.method != REFERENCE:
            yield name, "its speedup over vanilla by A's", change.over_vanilla, 1 - limits.slower
        elif limits.slower is not None and not limits.over_vanilla:
            yield name, "its speed by A's", change.speed, 1 - limits.slower
        if limits.drops is not None and change.acceptance.before is not None:
            yield name, "the change of its acceptance rate", change.acceptance.change, -limits.drops
