"""What a run comes to, judged from its committed rows alone: tables, lines for a person, an exit code."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from adadecode.errors import EXIT_FAILED, EXIT_INCOMPLETE, EXIT_MISMATCH, EXIT_OK, RunFolderError
from adadecode.report.checks import Check
from adadecode.report.parity import (
    broken_contract,
    num_checked,
    once_each,
    recompute_parity,
    stored_disagreements,
)
from adadecode.report.row_checks import without_impossible_times
from adadecode.report.schema import PLAN, SAMPLES, VERIFY, filled
from adadecode.report.scores import score_lines
from adadecode.report.summary import ERROR_COLUMNS, NARROW, error_lines, num_owed, summarise, whole_tasks
from adadecode.report.tables import finding_lines
from adadecode.runs.audit import CHECKS
from adadecode.runs.commits import commit_names
from adadecode.runs.engines import engine_lines, num_engines
from adadecode.runs.folder import read_commits, read_run, shards_of
from adadecode.runs.folder_checks import CLAIM_CHECKS, RUN_CHECKS, SCORES_CHECK, Committed, JudgedRun
from adadecode.runs.plan import num_missing
from adadecode.runs.run_checks import RunChecks, RunContext
from adadecode.runs.scores import stored_scores
from adadecode.runs.storage import Storage, open_storage
from adadecode.runs.table_checks import are_of_before
from adadecode.runs.typed import typed_table

SeeRows = Callable[[pa.Table], object]  # what is done with some rows


@dataclass(frozen=True)
class RunResult:
    """What a run comes to, judged from its committed rows."""

    folder: str  # its location
    summary: pa.Table
    verify: pa.Table
    disagreements: list[str]  # of stored parity claims, and of workers
    errors: list[str]  # a line that says how many samples failed, and how; none without
    num_missing: int
    contradictions: Sequence[str] = ()  # of the tables with themselves, with each other and with run.json
    engines: Sequence[str] = ()  # lines that say what computed the rows, and what is mixed
    status: str = "unknown"  # by run.json, unless rows are missing of what it calls complete
    scores: pa.Table | None = None  # None where no task has a scorer, or none was asked yet
    score_notes: Sequence[str] = ()  # what is not scored, and why
    rows: pa.Table | None = None  # the committed rows without their token ids

    def lines(self) -> list[str]:
        """What stands under the table of the summary: what was found, and where the tables are."""
        return [*self.findings(), f"tables: {self.folder}"]

    def audited(self) -> list[str]:
        """The same with how many checks hold, and the names of those that do not."""
        *found, tables = self.lines()
        broken = self.broken_checks()
        told = (
            f"{len(CHECKS) - len(broken)} of {len(CHECKS)} checks hold" if broken else f"{len(CHECKS)} checks, all hold"
        )
        return [*found, f"audit: {told}" + (f"; not: {', '.join(broken)}" if broken else ""), tables]

    def broken_checks(self) -> list[str]:
        """The names of the checks that found something, in the order of the table."""
        found = {line.partition(": ")[0] for line in (*self.disagreements, *self.contradictions)}
        found |= {"rows"} if self.num_missing else set()
        return [check.name for check in CHECKS if check.name in found]

    def findings(self) -> list[str]:
        """Parity, errors, scores, what differs and what computed the rows."""
        found = finding_lines(self.summary, self.verify, self.errors)
        scores = [] if self.scores is None else score_lines(self.scores)
        return [*found, *scores, *self.score_notes, *self.disagreements, *self.contradictions, *self.engines]

    def with_scores(self, scores: pa.Table, notes: Sequence[str] = (), unlike: Sequence[str] = ()) -> "RunResult":
        """The same with a SCORES table of its rows, and what of it contradicts them: what is `unlike` them, and itself."""
        found = [f"{SCORES_CHECK.name}: {line}" for line in (*SCORES_CHECK.find(scores, self.verify), *unlike)]
        contradictions = [*self.contradictions, *found]
        return replace(self, scores=scores, score_notes=notes, contradictions=contradictions)

    def problem_lines(self, resume: str | None = None) -> list[str]:
        """Why the exit code is not 0; none when it is. `resume` is the command that goes on, when it is known."""
        lines = []
        if self._num_broken:
            lines.append(f"parity broken on {self._num_broken} of {self.verify.num_rows} checked outputs")
        if self.disagreements:
            lines.append(f"experiments are mixed, or stored claims wrong: {len(self.disagreements)}, each a line above")
        if self.contradictions:
            lines.append(f"the tables contradict themselves in {len(self.contradictions)} ways, each a line above")
        if self.num_missing:
            lines.append(self.missing_line(resume))
        if not lines and self._num_unproved:
            lines.append(
                f"{self._num_unproved} outputs of vanilla have none to compare with; see error_message in the samples"
            )
        if not lines and self._all_failed:
            lines.append("; ".join([f"every sample failed: {', '.join(self._all_failed)}", *self.errors]))
        return lines

    def missing_line(self, resume: str | None = None) -> str:
        """How many planned rows are missing, and how to go on: with `resume`, when that command is known."""
        how = "run the same command again" if resume is None else f"go on with: {resume}"
        return f"{self.num_missing} planned rows are missing; {how}"

    @property
    def exit_code(self) -> int:
        """3 when parity is broken or the tables contradict themselves, else 4 when rows are missing, else 1.

        1 stands for parity or a method's speed that is unproved.
        """
        if self._num_broken or self.disagreements or self.contradictions:
            return EXIT_MISMATCH
        if self.num_missing:
            return EXIT_INCOMPLETE
        return EXIT_FAILED if self._num_unproved or self._all_failed else EXIT_OK

    @property
    def _num_broken(self) -> int:
        return broken_contract(self.verify).num_rows

    @property
    def _num_unproved(self) -> int:
        """Outputs of vanilla that a method under the parity contract has none to compare with."""
        return num_owed(self.summary) - num_checked(self.verify)

    @property
    def _all_failed(self) -> list[str]:
        """The methods, and on which tasks, of which no sample was measured."""
        return [f"{row['method']} on {row['task']}" for row in whole_tasks(self.summary).to_pylist() if row["n"] == 0]


def read_result(location: str | Path, see: SeeRows | None = None) -> RunResult:
    """What the run at `location` comes to, recomputed from its tables alone; writes nothing.

    `see` is given its rows, those of some shards at a time, so that who needs more of them reads no file again.
    """
    storage = open_storage(location)
    read_run(location)  # raises where there is none
    try:
        plan = filled(typed_table(storage.read("plan.parquet"), PLAN))
    except (FileNotFoundError, ValueError) as error:
        how = (
            "run the same command again"
            if commit_names(storage)
            else "its rows are not here; run its command to have them"
        )
        why = "" if isinstance(error, FileNotFoundError) else f" ({error})"
        raise RunFolderError(f"{str(location)!r}: plan.parquet cannot be read{why}; {how}") from error
    return judge_run(location, read_commits(location), plan, see)


def judge_run(
    location: str | Path, commits: Mapping[int, dict[str, Any]], plan: pa.Table, see: SeeRows | None = None
) -> RunResult:
    """Summary, parity, contradictions and missing rows of `commits`, which are those at `location`.

    Raises RunFolderError when a committed file cannot be read, and when run.json has no settings.
    """
    run, storage = _run_with_settings(location), open_storage(location)
    status = run.get("status", "unknown")
    # one that cannot be read is made again by `adadecode score`
    scores = None if status == "running" else stored_scores(storage)
    checks = RunChecks(RunContext.of(run, plan, scores))
    committed = read_committed(location, commits, checks, see)
    missing = num_missing(plan, committed.narrow, run["config"]["methods"], run["config"]["repeats"])
    judged = JudgedRun(
        storage=storage,
        run=run,
        commits=commits,
        plan=plan,
        committed=committed,
        summary=summarise(committed.narrow, committed.verify, num_engines(commits)),
        num_missing=missing,
        is_closed=_is_closed(storage, status, missing, committed.narrow.num_rows),
    )
    result = RunResult(
        folder=str(location),
        summary=judged.summary,
        verify=committed.verify,
        disagreements=_found(CLAIM_CHECKS, judged),
        errors=error_lines(committed.narrow),
        num_missing=missing,
        contradictions=[*checks.lines(), *_found(RUN_CHECKS, judged)],
        engines=engine_lines(commits),
        status="incomplete, though run.json says complete" if missing and status == "complete" else str(status),
        rows=committed.narrow,
    )
    return result if scores is None or not judged.is_closed else result.with_scores(scores, unlike=checks.score_lines())


def _found(checks: Iterable[Check[[JudgedRun], str]], judged: JudgedRun) -> list[str]:
    """What `checks` find of a run, the name of the check first in each line."""
    return [f"{check.name}: {line}" for check in checks for line in check.find(judged)]


def _is_closed(storage: Storage, status: Any, missing: int, num_rows: int) -> bool:
    """Whether the tables that the run keeps are those of its `num_rows` rows.

    Those of a run that goes on, or lacks rows, are of before. One that was closed without all rows may have them by now.
    """
    if missing or status == "running":
        return False
    return status == "complete" or not are_of_before(storage, num_rows)


def _run_with_settings(location: str | Path) -> dict[str, Any]:
    """run.json; raises RunFolderError when the settings without which no row can be judged are not in it."""
    run = read_run(location)
    config = run.get("config")
    methods, repeats = (config.get("methods"), config.get("repeats")) if isinstance(config, dict) else (None, None)
    has_methods = isinstance(methods, list) and methods and all(isinstance(name, str) for name in methods)
    is_named = isinstance(run["run_id"], str) and isinstance(run["fingerprint"], str)
    if not has_methods or type(repeats) is not int or repeats < 1 or not is_named:
        raise RunFolderError(
            f"{str(location)!r}: its run.json has no settings with `methods` and `repeats`; restore it, or choose another "
            "--out"
        )
    return run


def read_committed(
    location: str | Path, commits: Mapping[int, dict[str, Any]], checks: RunChecks, see: SeeRows | None = None
) -> Committed:
    """The rows of `commits`, some shards at a time: a sample's methods are all in one, so parity needs no others.

    `checks` see all of them, and so does `see`. Of times that no clock can have shown none is left in the rows that are
    returned, nor a row that is there again. Raises RunFolderError when a committed file is missing or altered.
    """
    columns = list(dict.fromkeys([*NARROW, *ERROR_COLUMNS, "shard", "worker_id", "sampling_key"]))
    narrow = [SAMPLES.empty_table().select(columns)]
    verify, wrong_claims = [VERIFY.empty_table()], []
    num_read = 0
    for shards in shards_of(location, commits):
        samples = shards.rows
        checks.see_shards(shards)
        num_read += samples.num_rows
        samples = once_each(samples)
        if see is not None:
            see(samples)
        checks.see_samples(samples)
        parity = recompute_parity(samples)
        wrong_claims += stored_disagreements(samples, parity)
        narrow.append(without_impossible_times(samples.select(columns)))
        verify.append(parity)
    rows, verified = (once_each(pa.concat_tables(parts)).combine_chunks() for parts in (narrow, verify))
    return Committed(rows, verified, wrong_claims, num_read - rows.num_rows)
