"""What a certification comes to, judged from its committed rows alone: tables, lines for a person, an exit code."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from adadecode.certify.compare import BASELINE, CANDIDATE, COMPARED, SIDES, Row, compared
from adadecode.certify.verdict import LEVEL, Verdict, verdict_of
from adadecode.errors import EXIT_FAILED, EXIT_INCOMPLETE, EXIT_MISMATCH, EXIT_OK, RunFolderError
from adadecode.report.parity import reject_duplicates, stored_disagreements
from adadecode.report.row_checks import without_impossible_times
from adadecode.report.schema import PLAN, filled
from adadecode.report.summary import error_lines, summarise
from adadecode.runs.folder import read_run, read_samples
from adadecode.runs.plan import num_missing, num_unplanned
from adadecode.runs.run_file import part_of
from adadecode.runs.storage import open_storage
from adadecode.runs.typed import typed_table

KIND = "certify"  # what run.json calls it
MAX_SHOWN = 10  # outputs that differ


@dataclass(frozen=True)
class CertifyResult:
    """What a certification comes to. `stopped` says why it ended before its prompts did; None where it did not."""

    folder: str  # its location
    summary: pa.Table
    verify: pa.Table
    verdict: Verdict
    comparison: list[str]  # a line on what was compared where that was not ids alone
    errors: list[str]  # a line that says how many prompts failed, and how; none without
    disagreements: list[str]  # stored claims that the outputs contradict
    num_missing: int
    num_failed: int  # rows
    stopped: str | None = None

    def lines(self) -> list[str]:
        """What stands under the table."""
        found = [*_steadiness_lines(self.verdict), *self.comparison, *_difference_lines(self.verify), *self.errors]
        return [*found, *self.disagreements, f"verdict: {_verdict_text(self.verdict)}", f"tables: {self.folder}"]

    def problem_lines(self, resume: str | None = None) -> list[str]:
        """Why the exit code is not 0; none when it is. `resume` is the command that goes on, when it is known."""
        how = "run the same command again" if resume is None else f"go on with: {resume}"
        lines = [] if self.verdict.outcome != "differs" else ["the candidate is not exact"]
        if self.disagreements:
            lines.append(f"stored claims are wrong: {len(self.disagreements)}, each a line above")
        if self.stopped is not None:
            lines.append(self.stopped)
        if self.num_missing:
            lines.append(f"{self.num_missing} planned rows are missing; {how}")
        elif self.num_failed:
            lines.append(
                f"{self.num_failed} rows are errors, so no verdict is of all prompts; remove the cause and {how}"
            )
        return lines

    @property
    def exit_code(self) -> int:
        """3 when the candidate differs or a stored claim is wrong, else 1 when errors stopped it, else 4 when rows miss.

        Else 1 when some rows are errors, or nothing could be compared.
        """
        if self.verdict.outcome == "differs" or self.disagreements:
            return EXIT_MISMATCH
        if self.stopped is None and self.num_missing:
            return EXIT_INCOMPLETE
        return EXIT_OK if not self.num_failed and self.verdict.outcome != "unproved" else EXIT_FAILED


def is_certification(run: Mapping[str, Any]) -> bool:
    """Whether a run.json is one of `adadecode certify`."""
    return run.get("kind") == KIND


def read_certification(location: str | Path, stopped: str | None = None) -> CertifyResult:
    """What the certification at `location` comes to, recomputed from its rows; writes nothing. Raises RunFolderError."""
    passes = part_of(read_run(location), "config").get("passes")
    if type(passes) is not int or passes < 1:
        raise RunFolderError(f"{str(location)!r}: its run.json has no settings with `passes`; restore it")
    try:
        plan = filled(typed_table(open_storage(location).read("plan.parquet"), PLAN))
    except (FileNotFoundError, ValueError) as error:
        raise RunFolderError(f"{str(location)!r}: plan.parquet cannot be read; run the same command again") from error
    samples = read_samples(location).combine_chunks()
    reject_duplicates(samples)
    if num_unplanned(plan, samples, SIDES, passes):
        raise RunFolderError(f"{str(location)!r}: committed rows are not in its plan: choose another --out")
    rows: list[Row] = samples.select(COMPARED).to_pylist()
    verify = compared(rows)
    return CertifyResult(
        folder=str(location),
        summary=summarise(without_impossible_times(samples), verify, over=(BASELINE,)),
        verify=verify,
        verdict=verdict_of(rows, passes),
        comparison=list(_comparison_lines(rows)),
        errors=error_lines(samples),
        disagreements=stored_disagreements(samples, verify),
        num_missing=num_missing(plan, samples, SIDES, passes),
        num_failed=sum(row["status"] != "ok" for row in rows),
        stopped=stopped,
    )


def _comparison_lines(rows: list[Row]) -> Iterator[str]:
    """A line where outputs were compared by their texts, because a side gave no ids, or not one for each token."""
    num_ok = {side: sum(row["method"] == side and row["status"] == "ok" for row in rows) for side in SIDES}
    lacking = {
        side: sum(row["method"] == side and row["status"] == "ok" and row["output_token_ids"] is None for row in rows)
        for side in SIDES
    }
    sides = [f"{side} on {lacking[side]} of {num_ok[side]} outputs" for side in SIDES if lacking[side]]
    if sides:
        yield f"compared by text, not by token ids, where a side gave none: {', '.join(sides)}"


def _steadiness_lines(verdict: Verdict) -> list[str]:
    repeated, equal = verdict.num_repeated - verdict.num_unsteady, verdict.num_prompts - verdict.num_differ
    return [
        f"baseline with itself: {repeated} of {verdict.num_repeated} prompts equal in all passes",
        f"candidate with the baseline: {equal} of {verdict.num_prompts} prompts equal in all passes",
    ]


def _verdict_text(verdict: Verdict) -> str:
    match verdict.outcome:
        case "exact":
            return "exact: the baseline repeats itself, and every output of the candidate is its"
        case "differs" if verdict.p_value is None:
            return "not exact: the baseline repeats itself on every prompt, and the candidate gives another output"
        case "differs":
            return f"not exact: the candidate differs more than the baseline from itself ({_test_text(verdict)})"
        case "not more":
            return f"the baseline differs from itself, and the candidate from it not more ({_test_text(verdict)})"
        case "unproved":
            return "none: no prompt has outputs to compare"


def _test_text(verdict: Verdict) -> str:
    return f"permutation test over {verdict.num_tested} prompts, p = {verdict.p_value:.4f}, level {LEVEL:g}"


def _difference_lines(verify: pa.Table) -> list[str]:
    """A line for each of the first outputs that are not equal, the candidate's first: where, and both tokens there."""
    differs = [row for row in verify.to_pylist() if row["parity"] == "mismatch"]
    differs.sort(key=lambda row: (row["method"] != CANDIDATE, row["task"], row["sample_id"], row["repeat"]))
    lines = [_difference_line(row) for row in differs[:MAX_SHOWN]]
    more = len(differs) - MAX_SHOWN
    return [*lines, f"and {more} more outputs that differ, in verify.parquet"] if more > 0 else lines


def _difference_line(row: dict[str, Any]) -> str:
    pair = f"{row['task']}/{row['sample_id']} pass {row['repeat']}: {row['method']}"
    other = "baseline" if row["method"] == CANDIDATE else "the baseline of pass 0"
    if row["first_diff_idx"] is None:
        return f"{pair} ends otherwise than {other}, after equal outputs"
    theirs, ours = row["vanilla_token_id"], row["method_token_id"]
    if theirs is None and ours is None:
        return f"{pair} differs from {other} at character {row['first_diff_idx']}"
    return f"{pair} differs from {other} at token {row['first_diff_idx']}: {_token(ours)}, not {_token(theirs)}"


def _token(token_id: int | None) -> str:
    return "its end" if token_id is None else str(token_id)
