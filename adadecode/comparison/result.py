"""Two runs compared, from their tables alone: what changed, what differs, what fails a limit, an exit code."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pyarrow as pa

from adadecode.certify.result import is_certification
from adadecode.comparison.changes import Change, MetricChange, changes, score_changes, summary_changes
from adadecode.comparison.gates import Judged, Limits, judged
from adadecode.comparison.outputs import MAX_SHOWN, Outputs, compare_outputs
from adadecode.comparison.pairs import SIDES, compared_columns, left_out_lines, pair_rows, rows_together
from adadecode.comparison.provenance import provenance_differences
from adadecode.comparison.spread import spread_lines
from adadecode.errors import EXIT_MISMATCH, EXIT_OK, EXIT_REGRESSION, RunFolderError
from adadecode.methods import REFERENCE
from adadecode.report.parity import broken_contract
from adadecode.report.summary import whole_tasks
from adadecode.report.tables import mismatch_lines, parity_text
from adadecode.runs.folder import read_run
from adadecode.runs.listing import read_published
from adadecode.runs.result import RunResult, read_result
from adadecode.runs.run_file import part_of


@dataclass(frozen=True)
class Side:
    """One of the two runs as it is judged alone.

    `rows` are None of a run that was published without them, and once they are compared: those of a sweep take much memory.
    """

    location: str
    run: Mapping[str, Any]
    summary: pa.Table
    scores: pa.Table | None
    rows: pa.Table | None
    exit_code: int
    problems: Sequence[str]  # why that is not 0

    def parity(self, task: str, method: str) -> str:
        """`24/24`, or the sign of what was not compared."""
        rows = {(row["task"], row["method"]): row for row in whole_tasks(self.summary).to_pylist()}
        vanilla = rows.get((task, REFERENCE))
        return parity_text(rows[task, method], None if vanilla is None else vanilla["n"])


@dataclass(frozen=True)
class Comparison:
    """Run B beside run A."""

    a: Side
    b: Side
    changes: list[Change]
    scores: list[MetricChange]
    provenance: list[tuple[str, ...]]  # name, A's and B's value
    notes: list[str]  # what was not compared, and why
    outputs: Outputs | None  # None where rows are not there
    spread: list[str]  # between workers and repeats of each
    limits: Limits
    left_out: Mapping[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])  # by reason and method

    @cached_property
    def judged(self) -> Judged:
        """What the limits say of the changes."""
        return judged(self.changes, self.limits, self._alone())

    def _alone(self) -> Iterator[str]:
        """A line for each method on a task that is in one of the runs alone."""
        of_side = {
            name: [(row["method"], row["task"]) for row in whole_tasks(side.summary).to_pylist()]
            for name, side in zip(SIDES, (self.a, self.b), strict=True)
        }
        for name, others in (SIDES, SIDES[::-1]):
            yield from (f"{' on '.join(of)}: only {name} has it" for of in of_side[name] if of not in of_side[others])

    def problem_lines(self) -> list[str]:
        """Why the exit code is not 0, and what could not be judged."""
        sides = [f"{name}: {line}" for name, side in (("A", self.a), ("B", self.b)) for line in side.problems]
        return [*sides, *self.judged.failed, *self.judged.unproved, *self.judged.hints]

    @property
    def exit_code(self) -> int:
        """3 when a run breaks parity or contradicts itself, else 5 when a limit is passed, else the runs' own.

        Outputs that differ between the two runs change nothing: the models may be two.
        """
        codes = (self.a.exit_code, self.b.exit_code)
        if EXIT_MISMATCH in codes:
            return EXIT_MISMATCH
        return EXIT_REGRESSION if self.judged.failed else max(codes, default=EXIT_OK)


def compare_runs(a: str, b: str, limits: Limits) -> Comparison:
    """The run at `b` beside that at `a`; writes nothing.

    Raises RunFolderError where one is none, is a certification, or where no row of one pairs with one of the other.
    """
    first, second = read_side(a), read_side(b)
    provenance = provenance_differences(first.run, second.run)
    if first.rows is None or second.rows is None:
        found = summary_changes(first.summary, second.summary)
        if not found:
            raise RunFolderError(f"{a!r} and {b!r} cannot be paired: no method on a task is in both")
        bare = " and ".join(name for name, side in zip(SIDES, (first, second), strict=True) if side.rows is None)
        notes = [f"rows of {bare} are not here: summaries are compared, so there are no intervals and no outputs"]
        if any(name == "provenance.hashes.plan" for name, *_ in provenance):
            notes.append("the plans are not the same: these are speeds of other prompts")
        comparison = Comparison(first, second, found, [], provenance, notes, None, [], limits)
    else:
        pairs = pair_rows(first.rows, second.rows, one_limit=_limit(first.run) == _limit(second.run))
        left_out = left_out_lines(pairs)
        if not pairs.a.num_rows:
            told = [line.removeprefix("not compared: ") for line in left_out] or ["there are no rows"]
            raise RunFolderError(f"{a!r} and {b!r} cannot be paired: {'; '.join(told)}; give runs of the same prompts")
        scores, not_scored = score_changes(pairs, first.scores, second.scores)
        comparison = Comparison(
            replace(first, rows=None),
            replace(second, rows=None),
            changes(pairs),
            scores,
            provenance,
            [*left_out, *not_scored],
            compare_outputs(pairs),
            spread_lines(pairs),
            limits,
            pairs.left_out,
        )
    return comparison


def read_side(location: str) -> Side:
    """The run at `location` with its rows, judged as `report` judges it. Raises RunFolderError."""
    run = read_run(location)
    if is_certification(run):
        raise RunFolderError(f"{location!r} is a certification: give runs of `adadecode eval`")
    if (published := read_published(location)) is not None:
        summary, lines = published
        return Side(location, run, summary, None, None, EXIT_MISMATCH if lines else EXIT_OK, lines)
    parts: list[pa.Table] = []
    result = read_result(location, lambda rows: parts.append(compared_columns(rows)))
    return Side(
        location, run, result.summary, result.scores, rows_together(parts), result.exit_code, problems_of(result)
    )


def problems_of(result: RunResult) -> list[str]:
    """Why the exit code of a run is not 0: the first of what was found wrong, and what that comes to."""
    found = [*mismatch_lines(broken_contract(result.verify)), *result.disagreements, *result.contradictions]
    num_more = len(found) - MAX_SHOWN
    more = [f"and {num_more} more, in `adadecode report {result.folder}`"] if num_more > 0 else []
    return [*found[:MAX_SHOWN], *more, *result.problem_lines()]


def _limit(run: Mapping[str, Any]) -> Any:
    """The most tokens of an output in the settings of run.json; None where they do not tell."""
    return part_of(part_of(run, "config"), "decode").get("max_new_tokens")
