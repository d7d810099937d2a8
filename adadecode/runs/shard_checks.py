"""The rows of one shard held against their commit and their file, a table of checks."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adadecode.methods import METHODS
from adadecode.records import ShardOutcome
from adadecode.report.checks import Check
from adadecode.report.findings import RTOL, Mask, Wrong, differs
from adadecode.report.schema import LOST_BY
from adadecode.runs.outcome import outcome_of

Facts = Mapping[str, Any]  # of a worker


@dataclass(frozen=True)
class CommittedShard:
    """A shard's rows, whose schema has the metadata of their file, its commit, and the run.json of its run."""

    run: Mapping[str, Any]
    commit: Mapping[str, Any]
    rows: pa.Table

    @property
    def workers(self) -> list[Facts]:
        """The facts of every worker that the commit names."""
        facts = self.commit["worker"]
        others = facts.get("others")
        return [of for of in (facts, *(others if isinstance(others, list) else [])) if isinstance(of, dict)]


def commit_labels(shard: CommittedShard) -> Iterator[Wrong]:
    """What rows say of where they belong is what their commit says, and run.json."""
    named = {"run_id": shard.run["run_id"]} | {name: shard.commit.get(name) for name in ("shard", "task", "attempt")}
    for name, value in named.items():
        if value is not None:  # commits of some version have no such entry
            wrong = pc.not_equal(shard.rows[name], pa.scalar(value, shard.rows[name].type)).to_numpy()
            of = "run.json" if name == "run_id" else "their commit"
            yield f"{name} is not that of {of}", wrong


def placement(shard: CommittedShard) -> Iterator[Wrong]:
    """The worker, the width of its steps and where methods drafted are those of the commit."""
    yield "width is not that of the method and the worker", _other_width(shard)
    yield "worker_id is none of their commit's workers", _other_worker(shard)
    yield "exits are not those of the method and the worker", _other_exits(shard)


def warm_up(shard: CommittedShard) -> Iterator[Wrong]:
    """No row began before its worker had decoded with every method to warm up, as far as versions store when."""
    ready_at = {of.get("worker_id"): _time(of.get("ready_at")) for of in shard.workers}
    rows = zip(shard.rows["worker_id"].to_pylist(), shard.rows["started_at"].to_pylist(), strict=True)
    early = [(ready := ready_at.get(who)) is not None and started < ready for who, started in rows]
    yield "started_at is before the worker was warm", np.array(early, bool)


def file_facts(shard: CommittedShard) -> Iterator[str]:
    """The metadata of the data file are the commit's and run.json's, as far as its version writes them."""
    found = shard.rows.schema.metadata or {}
    yield from (f"{name} of a data file is not that of run.json" for name in other_facts(shard.run, found))
    if b"worker" in found and found[b"worker"].decode(errors="replace") != json.dumps(
        shard.commit["worker"], sort_keys=True
    ):
        yield "worker of a data file is not that of its commit"
    if found.get(b"attempt", b"") not in (b"", str(shard.commit.get("attempt", "")).encode()):
        yield "attempt of a data file is not that of its commit"


def commit_counts(shard: CommittedShard) -> Iterator[str]:
    """What a commit says its rows come to."""
    if shard.commit.get("num_rows") not in (None, shard.rows.num_rows):
        yield "num_rows of a commit is not the number of its rows"
    if not _same_outcome(shard.commit["outcome"], outcome_of(shard.rows)):
        yield "outcome of a commit is not what its rows come to"


def other_facts(run: Mapping[str, Any], metadata: Mapping[bytes, bytes]) -> list[str]:
    """Which of the facts that every file of a run names are missing in its `metadata`, or not those of run.json."""
    provenance = run.get("provenance")
    git_sha = provenance.get("git_sha") if isinstance(provenance, dict) else None
    expected = {"run_id": run["run_id"], "fingerprint": run["fingerprint"], "git_sha": str(git_sha or "")}
    return [name for name, value in expected.items() if metadata.get(name.encode()) != value.encode()]


# Of the rows of a shard.
SHARD_CHECKS: tuple[Check[[CommittedShard], Wrong], ...] = (
    Check("commits", "rows are of the shard, task, attempt and run that their commit and run.json say", commit_labels),
    Check("placement", "workers, widths and exits are those of the commit's workers", placement),
    Check("warm-up", "no row began before its worker was warm", warm_up),
)

# Of the shard as a whole.
COMMIT_CHECKS: tuple[Check[[CommittedShard], str], ...] = (
    Check("outcome", "a commit counts its rows, and its outcome is theirs", commit_counts),
    Check(
        "metadata",
        "a data file names the run, fingerprint and revision of run.json, and its commit's worker",
        file_facts,
    ),
)


def _other_exits(shard: CommittedShard) -> Mask:
    """Where drafts came from other exits than the worker had for the task; 0 stands for before the first layer."""
    of_methods = shard.commit["worker"].get("draft_exits")
    expected = of_methods.get(shard.commit.get("task")) if isinstance(of_methods, dict) else _of_exits(shard)
    if not isinstance(expected, dict):
        return np.zeros(shard.rows.num_rows, bool)
    pairs = zip(shard.rows["method"].to_pylist(), shard.rows["exits"].to_pylist(), strict=True)
    return np.array([found is not None and found != expected.get(name, found) for name, found in pairs], bool)


def _of_exits(shard: CommittedShard) -> dict[str, list[int]] | None:
    """Where each method drafted by a commit of a version that did not store it; None where it cannot be known."""
    of_tasks, decode = shard.commit["worker"].get("exits"), shard.run["config"].get("decode")
    exits = of_tasks.get(shard.commit.get("task")) if isinstance(of_tasks, dict) else None
    if not isinstance(exits, list) or not isinstance(decode, dict) or "ngram" not in decode:
        return None
    ngrams = [0] if decode["ngram"] is not None else []
    return {
        name: (ngrams if method.ngrams else []) + (exits if method.exits else []) for name, method in METHODS.items()
    }


def _other_width(shard: CommittedShard) -> Mask:
    """Where an ok row's steps were not as wide as its method's are on the worker of the commit."""
    width = shard.commit["worker"].get("width")
    if not isinstance(width, int):
        return np.zeros(shard.rows.num_rows, bool)
    expected = {name: method.step_width(width) for name, method in METHODS.items()}
    found = zip(*(shard.rows[name].to_pylist() for name in ("status", "method", "width")), strict=True)
    return np.array([status == "ok" and w != expected.get(method, w) for status, method, w in found], bool)


def _other_worker(shard: CommittedShard) -> Mask:
    """Where a row is of no worker of the commit; a sample that nobody survived is the driver's.

    Commits of a version without `code_hash` may have one of several workers only.
    """
    if "code_hash" not in shard.commit["worker"]:
        return np.zeros(shard.rows.num_rows, bool)
    named = [of.get("worker_id") for of in shard.workers]
    found = zip(shard.rows["worker_id"].to_pylist(), shard.rows["status"].to_pylist(), strict=True)
    return np.array([who not in named and (who, status) != (LOST_BY, "error") for who, status in found], bool)


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
