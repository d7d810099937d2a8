"""What every executor shares: preparing a run folder, doing one shard in it, and closing the run."""

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adadecode.errors import RunFolderError
from adadecode.provenance import provenance
from adadecode.records import Shard, ShardOutcome
from adadecode.report.errors import ERROR_COLUMNS, error_lines
from adadecode.report.parity import recompute_parity, reject_duplicates, stored_disagreements
from adadecode.report.schema import LOST_BY, SAMPLES, VERIFY
from adadecode.report.summary import NARROW, summarise
from adadecode.runs.fingerprint import source_hashes
from adadecode.runs.folder import (
    RunFolder,
    committed_tables,
    missing_rows,
    num_unplanned,
    read_commits,
    read_run,
    refuse_others_results,
)
from adadecode.runs.lease import Lease
from adadecode.runs.plan import make_plan, plan_hash, plan_table
from adadecode.runs.storage import open_storage
from adadecode.settings import EvalConfig
from adadecode.tasks import expand_task, load_examples

SHARDS_AT_A_TIME = 64  # whose token ids are in memory together


@dataclass(frozen=True)
class PreparedRun:
    """A run whose folder is open and whose shards are known; `notes` say what had to be withdrawn to continue it."""

    config: EvalConfig
    folder: RunFolder
    tasks: tuple[str, ...]
    shards: tuple[Shard, ...]
    plan: pa.Table
    lease: Lease
    notes: tuple[str, ...]
    committed: dict[int, ShardOutcome]  # before, by shard

    @property
    def todo(self) -> tuple[Shard, ...]:
        """The shards that had no commit when this process opened the run."""
        return tuple(shard for shard in self.shards if shard.shard_idx not in self.committed)


@dataclass(frozen=True)
class RunResult:
    """What a run comes to, judged from its committed rows."""

    folder: str  # its location
    summary: pa.Table
    verify: pa.Table
    disagreements: list[str]
    errors: list[str]  # a line that says how many samples failed, and how; none without
    num_missing: int


def plan_run(config: EvalConfig) -> tuple[tuple[Shard, ...], pa.Table]:
    """The shards of `config` and the plan table; reads the data sets, loads no model."""
    examples = {task: load_examples(task, config) for task in expand_task(config.task)}
    shards = make_plan(examples, config.shard_size)
    return shards, plan_table(shards)


@contextlib.contextmanager
def open_run(config: EvalConfig, out: str | Path | None) -> Iterator[PreparedRun]:
    """Plans the run and opens its folder, `results/<task>-<fingerprint>` when `out` is None.

    While the context lasts this process is the folder's only driver. What is damaged in the folder is withdrawn, so that
    the run computes it again. Raises LeaseError when another driver is at work there, and RunFolderError when the folder
    holds another run's results.
    """
    shards, plan = plan_run(config)
    tasks = tuple(dict.fromkeys(shard.task for shard in shards))
    hashes = source_hashes(config, tasks) | {"plan": plan_hash(plan)}
    fingerprint = config.fingerprint(**hashes)
    facts = {
        "config": config.model_dump(mode="json"),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "provenance": provenance() | {"hashes": hashes},
    }
    location = str(out) if out else str(Path("results") / f"{config.task}-{fingerprint[:8]}")
    refuse_others_results(location, fingerprint, facts)
    with Lease(open_storage(location)) as lease:
        folder = RunFolder.open(location, fingerprint, facts)
        folder.update_run(status="running")
        notes = folder.check_commits()
        if config.retry_errors and (num_withdrawn := folder.withdraw_errors()):
            notes.append(f"{num_withdrawn} shards with samples that failed are computed again")
        folder.write_table("plan.parquet", plan)
        committed = {idx: ShardOutcome(**commit["outcome"]) for idx, commit in read_commits(location).items()}
        yield PreparedRun(config, folder, tasks, shards, plan, lease, tuple(notes), committed)


def close_run(prepared: PreparedRun) -> RunResult:
    """Writes verify.parquet and summary.parquet from the committed rows and sets the run's status.

    What attempts that lost left behind is deleted once no planned row is missing.
    """
    prepared.lease.check()
    folder = prepared.folder
    commits = read_commits(folder.location)
    result = judge(folder.location, commits, prepared.plan, prepared.config.methods, prepared.config.repeats)
    folder.write_table("verify.parquet", result.verify)
    folder.write_table("summary.parquet", result.summary)
    folder.update_run(status="incomplete" if result.num_missing else "complete", workers=distinct_workers(commits))
    if not result.num_missing:
        folder.sweep({commit["file"] for commit in commits.values()})
    return result


def distinct_workers(commits: Mapping[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """The facts of every worker process that made one of `commits`."""
    keys = ("worker_id", "host", "pid")
    found = {tuple(commit["worker"].get(key) for key in keys): commit["worker"] for commit in commits.values()}
    return list(found.values())


def reopen_result(location: str | Path) -> RunResult:
    """What the run at `location` comes to, recomputed from its tables alone; writes nothing."""
    config = read_run(location)["config"]
    try:
        plan = pq.read_table(pa.BufferReader(open_storage(location).read("plan.parquet")))
    except (OSError, pa.ArrowException) as error:
        raise RunFolderError(f"{str(location)!r}: plan.parquet cannot be read; run the same command again") from error
    return judge(location, read_commits(location), plan, config["methods"], config["repeats"])


def judge(
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
    workers = [worker for worker in distinct_workers(commits) if worker["worker_id"] != LOST_BY]
    hashes = sorted({worker.get("model_hash", "unknown") for worker in workers})
    mixed = [f"shards were computed with different weights: {', '.join(hashes)}"] if len(hashes) > 1 else []
    return RunResult(
        folder=str(location),
        summary=summarise(committed.narrow, committed.verify),
        verify=committed.verify,
        disagreements=mixed + committed.disagreements,
        errors=error_lines(committed.narrow),
        num_missing=missing_rows(plan, committed.narrow, methods, repeats),
    )


@dataclass(frozen=True)
class Committed:
    """The committed rows without their token ids, and what those ids say of parity."""

    narrow: pa.Table
    verify: pa.Table
    disagreements: list[str]


def read_committed(location: str | Path, commits: Mapping[int, dict[str, Any]]) -> Committed:
    """Reads a few shards' files at a time: a sample's methods are all in one, so parity needs no others.

    Raises RunFolderError as `read_samples` does, and when a row is stored twice.
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
