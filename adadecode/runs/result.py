"""What a run comes to, judged from its committed rows alone: tables, lines for a person, an exit code."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adadecode.errors import EXIT_FAILED, EXIT_INCOMPLETE, EXIT_MISMATCH, EXIT_OK, RunFolderError
from adadecode.report.parity import (
    broken_contract,
    num_checked,
    recompute_parity,
    reject_duplicates,
    stored_disagreements,
)
from adadecode.report.schema import LOST_BY, SAMPLES, VERIFY
from adadecode.report.summary import ERROR_COLUMNS, NARROW, error_lines, num_owed, summarise
from adadecode.report.tables import finding_lines
from adadecode.runs.folder import committed_tables, read_commits, read_run
from adadecode.runs.plan import num_missing, num_unplanned
from adadecode.runs.storage import open_storage

SHARDS_AT_A_TIME = 64  # whose token ids are in memory together


@dataclass(frozen=True)
class RunResult:
    """What a run comes to, judged from its committed rows."""

    folder: str  # its location
    summary: pa.Table
    verify: pa.Table
    disagreements: list[str]
    errors: list[str]  # a line that says how many samples failed, and how; none without
    num_missing: int

    def lines(self) -> list[str]:
        """What stands under the table of the summary: parity, errors, what differs, and where the tables are."""
        found = finding_lines(self.summary, self.verify, self.errors)
        return [*found, *self.disagreements, f"tables: {self.folder}"]

    def problem_lines(self, resume: str | None = None) -> list[str]:
        """Why the exit code is not 0; none when it is. `resume` is the command that goes on, when it is known."""
        lines = []
        if self.is_parity_broken:
            lines.append(f"parity broken on {self._num_broken} of {self.verify.num_rows} checked outputs")
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
        """3 when parity is broken, else 4 when rows are missing, else 1 when parity or a method's speed is unproved."""
        if self.is_parity_broken:
            return EXIT_MISMATCH
        if self.num_missing:
            return EXIT_INCOMPLETE
        return EXIT_FAILED if self._num_unproved or self._all_failed else EXIT_OK

    @property
    def is_parity_broken(self) -> bool:
        """Whether an output that must be vanilla's is not, or a stored claim contradicts the outputs."""
        return bool(self._num_broken or self.disagreements)

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
        return [f"{row['method']} on {row['task']}" for row in self.summary.to_pylist() if row["n"] == 0]


def read_report(location: str | Path) -> tuple[pa.Table, list[str]]:
    """The SUMMARY table of the run at `location` and the lines under it, of what is committed; needs no plan."""
    committed = read_committed(location, read_commits(location))
    summary = summarise(committed.narrow, committed.verify)
    return summary, finding_lines(summary, committed.verify, error_lines(committed.narrow))


def read_result(location: str | Path) -> RunResult:
    """What the run at `location` comes to, recomputed from its tables alone; writes nothing."""
    config = read_run(location)["config"]
    try:
        plan = pq.read_table(pa.BufferReader(open_storage(location).read("plan.parquet")))
    except (OSError, pa.ArrowException) as error:
        raise RunFolderError(f"{str(location)!r}: plan.parquet cannot be read; run the same command again") from error
    return judge_run(location, read_commits(location), plan, config["methods"], config["repeats"])


def judge_run(
    location: str | Path, commits: Mapping[int, dict[str, Any]], plan: pa.Table, methods: Sequence[str], repeats: int
) -> RunResult:
    """Summary, parity and missing rows of `commits`, which are those at `location`.

    Raises RunFolderError when a row is stored twice or was never planned.
    """
    committed = read_committed(location, commits)
    unplanned = num_unplanned(plan, committed.narrow, methods, repeats)
    if unplanned:
        raise RunFolderError(
            f"{str(location)!r}: {unplanned} committed rows are not in its plan, so it cannot be complete: choose "
            "another --out"
        )
    return RunResult(
        folder=str(location),
        summary=summarise(committed.narrow, committed.verify),
        verify=committed.verify,
        disagreements=mixed_weights(commits) + committed.disagreements,
        errors=error_lines(committed.narrow),
        num_missing=num_missing(plan, committed.narrow, methods, repeats),
    )


def mixed_weights(commits: Mapping[int, dict[str, Any]]) -> list[str]:
    """A line that names the models behind `commits` when there are several; none for one."""
    workers = [worker for worker in worker_processes(commits) if worker["worker_id"] != LOST_BY]
    hashes = sorted({worker.get("model_hash", "unknown") for worker in workers})
    return [f"shards were computed with different weights: {', '.join(hashes)}"] if len(hashes) > 1 else []


def worker_processes(commits: Mapping[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """The facts of every worker process that made one of `commits`, each once."""
    keys = ("worker_id", "host", "pid")
    found = {tuple(commit["worker"].get(key) for key in keys): commit["worker"] for commit in commits.values()}
    return list(found.values())


@dataclass(frozen=True)
class Committed:
    """The committed rows without their token ids, and what those ids say of parity."""

    narrow: pa.Table
    verify: pa.Table
    disagreements: list[str]


def read_committed(location: str | Path, commits: Mapping[int, dict[str, Any]]) -> Committed:
    """The rows of `commits`, a few shards' files at a time: a sample's methods are all in one, so parity needs no others.

    Raises RunFolderError when a committed file is missing or altered, and when a row is stored twice.
    """
    columns = list(dict.fromkeys([*NARROW, *ERROR_COLUMNS, "shard"]))
    narrow = [SAMPLES.empty_table().select(columns)]
    verify, disagreements = [VERIFY.empty_table()], []
    tables = committed_tables(location, commits)
    while some := list(itertools.islice(tables, SHARDS_AT_A_TIME)):
        samples = pa.concat_tables(some, promote_options="default").combine_chunks()
        parity = recompute_parity(samples)
        disagreements += stored_disagreements(samples, parity)
        narrow.append(samples.select(columns))
        verify.append(parity)
    rows = pa.concat_tables(narrow).combine_chunks()
    reject_duplicates(rows)
    return Committed(rows, pa.concat_tables(verify).combine_chunks(), disagreements)
