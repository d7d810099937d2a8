"""Committed rows held against their commits and files, a table of checks; the rows of many shards at once."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adadecode.methods import METHODS
from adadecode.records import ShardOutcome
from adadecode.report.checks import Check
from adadecode.report.findings import RTOL, Columns, Mask, Wrong, differs, spread
from adadecode.report.schema import LOST_BY
from adadecode.runs.commits import Shards
from adadecode.runs.outcome import outcomes_of
from adadecode.runs.worker_checks import Facts, against_model, other_settings

OF_REJECTED = OF_MAKERS = 5  # the schema version since which rows say what was rejected, and files who made them


@dataclass(frozen=True)
class CommittedRows:
    """The rows of some shards one after another, their commits and their files' metadata, and the run.json of the run."""

    run: Mapping[str, Any]
    commits: Sequence[Mapping[str, Any]]
    metadata: Sequence[Mapping[bytes, bytes]]
    rows: pa.Table
    of_row: NDArray[np.int64]  # [rows], the position of each row's commit

    @classmethod
    def of(cls, run: Mapping[str, Any], shards: Shards) -> "CommittedRows":
        """Those of `shards`."""
        of_row = np.repeat(np.arange(len(shards.commits)), shards.num_rows)
        return cls(run, shards.commits, shards.metadata, shards.rows, of_row)

    @cached_property
    def of_workers(self) -> list[tuple[Facts, Any, Mask]]:
        """The facts of each commit's worker and its task, equal ones once, and which rows are of them."""
        groups: dict[tuple[int, Any], list[int]] = {}  # equal facts are one object, as commits are read
        for idx, commit in enumerate(self.commits):
            groups.setdefault((id(commit["worker"]), commit.get("task")), []).append(idx)
        return [
            (self.commits[idxs[0]]["worker"], task, np.isin(self.of_row, idxs)) for (_, task), idxs in groups.items()
        ]

    def each_worker(self, find: Callable[[Facts, Any, Columns], Iterator[Wrong]]) -> Iterator[Wrong]:
        """What `find` gives for the rows of each worker and task, as masks of all rows."""
        for facts, task, chosen in self.of_workers:
            some = self.rows if chosen.all() else self.rows.filter(pa.array(chosen))
            for kind, wrong in find(facts, task, Columns(some)):
                yield kind, spread(wrong, chosen)


def commit_labels(found: CommittedRows) -> Iterator[Wrong]:
    """What rows say of where they belong is what their commit says, and run.json."""
    rows = found.rows
    yield "run_id is not that of run.json", pc.not_equal(rows["run_id"], found.run["run_id"]).to_numpy()
    for name in ("shard", "task", "attempt"):  # commits of some version have no such entry
        stored = pa.array([commit.get(name) for commit in found.commits], rows.schema.field(name).type)
        expected = stored.take(pa.array(found.of_row))
        wrong = pc.fill_null(pc.not_equal(rows[name], expected), False)
        yield f"{name} is not that of their commit", wrong.to_numpy()


def placement(found: CommittedRows) -> Iterator[Wrong]:
    """The worker, the width of its steps and where methods drafted are those of the commit."""

    def find(facts: Facts, task: Any, columns: Columns) -> Iterator[Wrong]:
        yield "width is not that of the method and the worker", _other_width(facts, columns)
        yield "worker_id is none of their commit's workers", _other_worker(facts, columns)
        yield "exits are not those of the method and the worker", _other_exits(found.run, facts, task, columns)

    yield from found.each_worker(find)


def warm_up(found: CommittedRows) -> Iterator[Wrong]:
    """No row began before its worker had decoded with every method to warm up, as far as versions store when."""

    def find(facts: Facts, _: Any, columns: Columns) -> Iterator[Wrong]:
        for of in workers_of(facts):
            ready_at, worker_id = _time(of.get("ready_at")), of.get("worker_id")
            if ready_at is not None and isinstance(worker_id, str):
                early = pc.less(columns.table["started_at"], pa.scalar(ready_at, columns.table["started_at"].type))
                yield (
                    "started_at is before the worker was warm",
                    early.to_numpy() & columns.equal("worker_id", worker_id),
                )

    yield from found.each_worker(find)


def of_model(found: CommittedRows) -> Iterator[Wrong]:
    """Outputs end at the model's own EOS, exits are among its layers and lengths within its context, where it is stored."""
    yield from found.each_worker(lambda facts, _, columns: against_model(facts, found.run, columns))


def settings(found: CommittedRows) -> Iterator[tuple[str, int]]:
    """A commit's worker decoded as run.json says, as far as versions store how it did."""
    for commit in found.commits:
        for facts in workers_of(commit["worker"]):
            for name in other_settings(facts, found.run, commit.get("task")):
                yield f"{name} of a commit's worker is not that of run.json", commit["shard"]


def file_facts(found: CommittedRows) -> Iterator[tuple[str, int]]:
    """The metadata of data files are their commits' and run.json's, as far as their version writes them."""
    stored = {id(facts): json.dumps(facts, sort_keys=True).encode() for facts, _, _ in found.of_workers}
    expected = expected_facts(found.run)
    unseen = _without_rejected(found)
    for commit, metadata, lacks in zip(found.commits, found.metadata, unseen.tolist(), strict=True):
        shard = commit["shard"]
        version = metadata.get(b"schema_version", b"")
        number = int(version) if version.isdigit() and len(version) < 10 else None
        if number is None:
            yield "a data file has no schema_version", shard
        elif lacks and number >= OF_REJECTED:
            yield "rejected is missing in rows of a schema version that has it", shard
        elif number >= OF_MAKERS and not {b"worker", b"attempt"} <= metadata.keys():
            yield "a data file does not have its worker and attempt", shard
        for name in other_facts(expected, metadata):
            yield f"{name} of a data file is not that of run.json", shard
        if metadata.get(b"worker", stored[id(commit["worker"])]) != stored[id(commit["worker"])]:
            yield "worker of a data file is not that of its commit", shard
        if metadata.get(b"attempt", b"") not in (b"", str(commit.get("attempt", "")).encode()):
            yield "attempt of a data file is not that of its commit", shard


def commit_counts(found: CommittedRows) -> Iterator[tuple[str, int]]:
    """What commits say their rows come to."""
    num_rows = np.bincount(found.of_row, minlength=len(found.commits)).tolist()
    outcomes = outcomes_of(found.rows, found.of_row, len(found.commits))
    for commit, num, outcome in zip(found.commits, num_rows, outcomes, strict=True):
        if commit.get("num_rows") not in (None, num):
            yield "num_rows of a commit is not the number of its rows", commit["shard"]
        if not _same_outcome(commit["outcome"], outcome):
            yield "outcome of a commit is not what its rows come to", commit["shard"]


def expected_facts(run: Mapping[str, Any]) -> dict[bytes, bytes]:
    """What every file of the run whose run.json is `run` has in its metadata."""
    provenance = run.get("provenance")
    git_sha = provenance.get("git_sha") if isinstance(provenance, dict) else None
    facts = {"run_id": run["run_id"], "fingerprint": run["fingerprint"], "git_sha": str(git_sha or "")}
    return {name.encode(): value.encode() for name, value in facts.items()}


def other_facts(expected: Mapping[bytes, bytes], metadata: Mapping[bytes, bytes]) -> list[str]:
    """Which of the `expected` facts are missing in the `metadata` of a file, or others there."""
    return [name.decode() for name, value in expected.items() if metadata.get(name) != value]


def workers_of(facts: Facts) -> list[Facts]:
    """The facts of every worker of a commit, whose `worker` are `facts`."""
    others = facts.get("others")
    return [of for of in (facts, *(others if isinstance(others, list) else [])) if isinstance(of, dict)]


# Of the rows of shards.
SHARD_CHECKS: tuple[Check[[CommittedRows], Wrong], ...] = (
    Check("commits", "rows are of the shard, task, attempt and run that their commit and run.json say", commit_labels),
    Check("placement", "workers, widths and exits are those of the commit's workers", placement),
    Check(
        "model",
        "outputs end at the first EOS of the model, exits are in 1..L-1 and lengths within the context, by what the worker "
        "stores of its model",
        of_model,
    ),
    Check("warm-up", "no row began before its worker was warm", warm_up),
)

# Of a shard as a whole: what is wrong, and the shard.
COMMIT_CHECKS: tuple[Check[[CommittedRows], tuple[str, int]], ...] = (
    Check("outcome", "a commit counts its rows, and its outcome is theirs", commit_counts),
    Check(
        "metadata",
        "a data file names run.json's run, fingerprint and revision, and its commit's worker, and has `rejected` where its "
        "schema version has",
        file_facts,
    ),
    Check("settings", "a commit's worker has the device, dtype, kernels and exits that run.json names", settings),
)


def _without_rejected(found: CommittedRows) -> Mask:
    """The shards with an ok row of a method that drafts in our rounds which does not say what was rejected."""
    columns = Columns(found.rows)
    seen = columns.among("method", [name for name, of in METHODS.items() if of.drafts and of.by == "engine"])
    lacking = found.of_row[columns.is_ok & seen & ~columns.has("rejected")]
    return np.bincount(lacking, minlength=len(found.commits)) > 0


def _other_exits(run: Mapping[str, Any], facts: Facts, task: Any, columns: Columns) -> Mask:
    """Where drafts came from other exits than the worker had for the task; 0 stands for before the first layer."""
    of_methods = facts.get("draft_exits")
    expected = of_methods.get(task) if isinstance(of_methods, dict) else _of_exits(run, facts, task)
    wrong = np.zeros(columns.table.num_rows, bool)
    for method, exits in expected.items() if isinstance(expected, dict) else ():
        of_method = np.flatnonzero(columns.equal("method", method) & columns.has("exits"))
        lists = Columns(columns.table.select(["status", "exits"]).take(pa.array(of_method))).lists("exits")
        wrong[of_method] = [layers is not None and layers.tolist() != exits for layers in lists]
    return wrong


def _of_exits(run: Mapping[str, Any], facts: Facts, task: Any) -> dict[str, list[int]] | None:
    """Where each method drafted by a commit of a version that did not store it; None where it cannot be known."""
    of_tasks, decode = facts.get("exits"), run["config"].get("decode")
    exits = of_tasks.get(task) if isinstance(of_tasks, dict) else None
    if not isinstance(exits, list) or not isinstance(decode, dict) or "ngram" not in decode:
        return None
    ngrams = [0] if decode["ngram"] is not None else []
    return {
        name: (ngrams if method.ngrams else []) + (exits if method.exits else []) for name, method in METHODS.items()
    }


def _other_width(facts: Facts, columns: Columns) -> Mask:
    """Where an ok row's steps were not as wide as its method's are on the worker."""
    width, found = facts.get("width"), columns.numbers("width")
    wrong = np.zeros(len(found), bool)
    if not isinstance(width, int):
        return wrong
    for name, method in METHODS.items():
        expected = method.step_width(width)
        is_right = np.isnan(found) if expected is None else found == expected
        wrong |= columns.is_ok & columns.equal("method", name) & ~is_right
    return wrong


def _other_worker(facts: Facts, columns: Columns) -> Mask:
    """Where a row is of no worker of the commit; a sample that nobody survived is the driver's.

    Commits of a version without `code_hash` may have one of several workers only.
    """
    if "code_hash" not in facts:
        return np.zeros(columns.table.num_rows, bool)
    named = [name for of in workers_of(facts) if isinstance(name := of.get("worker_id"), str)]
    is_lost = columns.equal("worker_id", LOST_BY) & columns.equal("status", "error")
    return ~columns.among("worker_id", named) & ~is_lost


def _same_outcome(stored: Mapping[str, Any], found: ShardOutcome) -> bool:
    """Whether a commit's outcome is that of its rows; seconds up to rounding."""
    counts = dataclasses.asdict(found)
    busy_s = counts.pop("busy_s")
    if any(stored.get(name) != count for name, count in counts.items()):
        return False
    return not differs(np.array([stored.get("busy_s")], float), np.array([busy_s], float), RTOL)[0]


def _time(text: Any) -> datetime | None:
    """A stored time with its zone; None where there is none."""
    try:
        found = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo else None
