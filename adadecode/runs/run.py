"""A run's beginning and end, the same for every executor: planned and opened before its shards, closed after them."""

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from adadecode.provenance import code_hash, git_sha, provenance
from adadecode.records import Shard, ShardOutcome
from adadecode.runs.engines import changed_code_notes, worker_facts
from adadecode.runs.fingerprint import source_hashes
from adadecode.runs.folder import RunFolder, read_commits
from adadecode.runs.kernels import resume_kernels
from adadecode.runs.lease import Lease
from adadecode.runs.plan import default_shard_size, make_plan, plan_hash, plan_table
from adadecode.runs.run_file import refuse_others_results, shard_size_at
from adadecode.runs.scores import SCORES_FILE, score_commits, scorers_of
from adadecode.runs.starts import new_start, starts_of
from adadecode.runs.storage import open_storage
from adadecode.settings import EvalConfig
from adadecode.tasks import expand_task, find_task, load_examples, stops_of

if TYPE_CHECKING:
    from adadecode.runs.result import RunResult


@dataclass(frozen=True)
class PreparedRun:
    """A run whose folder is open and whose shards are known; `notes` say what is to be known before it goes on.

    `config` is what was asked for, with the size of the shards.
    """

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

    def heading(self) -> str:
        """What is done and what is left to do, on one line."""
        num_todo, num_shards = len(self.todo), len(self.shards)
        return (
            f"run {self.folder.location}: {self.plan.num_rows} samples in {num_shards} shards, "
            f"{num_shards - num_todo} done before, {num_todo} to do; methods {', '.join(self.config.methods)}"
        )


def plan_run(config: EvalConfig, out: str | Path | None = None) -> tuple[EvalConfig, tuple[Shard, ...], pa.Table]:
    """`config` with the size of its shards, these and the plan table; reads the data sets, loads no model.

    Where `config` has no size it is that of the run at `out`, which may be one of an earlier version, else the default.
    """
    tasks = expand_task(config.task)
    for task in tasks:
        stops_of(config, task)  # raises where it has none
    examples = {task: load_examples(task, config) for task in tasks}
    size = config.shard_size or shard_size_at(out) or default_shard_size(sum(map(len, examples.values())))
    shards = make_plan(examples, size)
    return config.model_copy(update={"shard_size": size}), shards, plan_table(shards)


@contextlib.contextmanager
def open_run(config: EvalConfig, out: str | Path | None, command: str | None = None) -> Generator[PreparedRun]:
    """Plans the run and opens its folder, `results/<task>-<fingerprint>` when `out` is None.

    While the context lasts this process is the folder's only driver. What is damaged in the folder is withdrawn, so that
    the run computes it again. run.json stores every start that has shards to compute, with the `command` typed for it.
    Raises LeaseError when another driver is at work there, and RunFolderError when the folder holds another run's results.
    """
    config, shards, plan = plan_run(config, out)
    tasks = tuple(dict.fromkeys(shard.task for shard in shards))
    hashes = source_hashes(config, tasks) | {"plan": plan_hash(plan)}
    fingerprint = config.fingerprint(**hashes)
    facts = {
        "config": config.model_dump(mode="json"),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "provenance": provenance()
        | {"hashes": hashes, "data": {task: find_task(task).read_from(config) for task in tasks}},
        "starts": [],
    }
    location = str(Path("results") / f"{config.task}-{fingerprint[:8]}") if out is None else str(out)
    refuse_others_results(location, fingerprint, facts)
    with Lease(open_storage(location)) as lease:
        folder = RunFolder.open(location, fingerprint, facts)
        run = folder.update_run(status="running")
        notes = folder.check_commits()
        if config.retry_errors and (num_withdrawn := folder.withdraw_errors()):
            notes.append(f"{num_withdrawn} shards with samples that failed are computed again")
        folder.write_table("plan.parquet", plan)
        commits = read_commits(location)
        if config.kernels == "auto":
            resume_kernels(folder.storage, commits)
        if len(commits) < len(shards):  # a start that finds nothing to compute is none
            folder.update_run(starts=[*starts_of(run), new_start(config, command)])
            notes += changed_code_notes(commits, code_hash(), git_sha())
        committed = {idx: ShardOutcome(**commit["outcome"]) for idx, commit in commits.items()}
        yield PreparedRun(config, folder, tasks, shards, plan, lease, tuple(notes), committed)


def close_run(prepared: PreparedRun) -> "RunResult":
    """Writes verify.parquet, summary.parquet and scores.parquet from the committed rows and sets the run's status.

    What attempts that lost left behind is deleted once no planned row is missing. Raises LeaseError, and writes nothing,
    when another driver has taken the run over.
    """
    from adadecode.runs.result import judge_run  # its statistics take longer to import than a run to be opened

    prepared.lease.check()
    folder = prepared.folder
    commits = read_commits(folder.location)
    result = judge_run(folder.location, commits, prepared.plan)
    prepared.lease.confirm()
    folder.write_table("verify.parquet", result.verify)
    folder.write_table("summary.parquet", result.summary)
    if scorers_of(commits):
        scores = score_commits(folder.location, commits)
        folder.write_table(SCORES_FILE, scores.table)
        result = result.with_scores(scores.table, scores.notes)
    if not result.num_missing:  # before the run is called complete, or a driver killed here would leave them in it
        folder.sweep({commit["file"] for commit in commits.values()})
    folder.update_run(status="incomplete" if result.num_missing else "complete", workers=worker_facts(commits))
    return result
