"""Two runs compared, from their tables alone: what changed, what differs, what fails a limit, an exit code."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from adadecode.certify.result import is_certification
from adadecode.comparison.changes import Change, MetricChange, changes, score_changes, summary_changes
from adadecode.comparison.gates import Judged, Limits, judged
from adadecode.comparison.outputs import MAX_SHOWN, difference_lines
from adadecode.comparison.pairs import compared_columns, left_out_lines, pair_rows, rows_together
from adadecode.comparison.provenance import provenance_differences
from adadecode.comparison.spread import spread_lines
from adadecode.errors import EXIT_MISMATCH, EXIT_OK, EXIT_REGRESSION, RunFolderError
from adadecode.methods import REFERENCE
from adadecode.report.parity import broken_contract
from adadecode.report.summary import whole_tasks
from adadecode.report.tables import mismatch_lines, parity_text
from adadecode.runs.folder import read_run
from adadecode.runs.listing import read_published
from adadecode.runs.result import read_result


@dataclass(frozen=True)
class Side:
    """One of the two runs as it is judged alone; `rows` are None of a run that was published without them."""

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
    provenance: list[tuple[str, str, str]]
    notes: list[str]  # what was not compared, and why
    outputs: list[str]  # how many differ, and the first of them
    spread: list[str]  # between workers and repeats of each
    limits: Limits

    @cached_property
    def judged(self) -> Judged:
        """What the limits say of the changes."""
        return judged(self.changes, self.limits)

    def problem_lines(self) -> list[str]:
        """Why the exit code is not 0, and what could not be judged."""
        sides = [f"{name}: {line}" for name, side in (("A", self.a), ("B", self.b)) for line in side.problems]
        return [*sides, *self.judged.failed, *self.judged.unproved]

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
        side = "A" if first.rows is None else "B"
        notes = [f"{side} has no rows here: summaries are compared, so there are no intervals and no outputs"]
        comparison = Comparison(first, second, found, [], provenance, notes, [], [], limits)
    else:
        pairs = pair_rows(first.rows, second.rows)
        left_out = left_out_lines(pairs)
        if not pairs.a.num_rows:
            told = [line.removeprefix("not compared: ") for line in left_out] or ["there are no rows"]
            raise RunFolderError(f"{a!r} and {b!r} cannot be paired: {'; '.join(told)}; give runs of the same prompts")
        scores, not_scored = score_changes(pairs, first.scores, second.scores)
        comparison = Comparison(
            first,
            second,
            changes(pairs),
            scores,
            provenance,
            [*left_out, *not_scored],
            difference_lines(pairs),
            spread_lines(pairs),
            limits,
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
    found = [*mismatch_lines(broken_contract(result.verify)), *result.disagreements, *result.contradictions]
    more = [f"and {len(found) - MAX_SHOWN} more, in `adadecode report {location}`"] if len(found) > MAX_SHOWN else []
    problems = [*found[:MAX_SHOWN], *more, *result.problem_lines()]
    return Side(location, run, result.summary, result.scores, rows_together(parts), result.exit_code, problems)
