"""What the files of a run's folder say against each other, a table of checks whose findings are lines."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from adadecode.printable import on_one_line
from adadecode.report.checks import Check
from adadecode.report.scores import score_findings
from adadecode.runs.engines import mixed_experiments, worker_facts
from adadecode.runs.fingerprint import recomputed_fingerprint, stored_hashes
from adadecode.runs.parquet import metadata_of
from adadecode.runs.plan import num_unplanned, plan_hash
from adadecode.runs.shard_checks import expected_facts, other_facts
from adadecode.runs.storage import Storage
from adadecode.runs.table_checks import closed_lines, stray_lines, worker_lines

STATUSES = ("running", "incomplete", "complete")  # of a run.json
TABLES = ("plan.parquet", "verify.parquet", "summary.parquet", "scores.parquet")
PROVENANCE = ("adadecode", "git_sha", "hashes", "packages", "platform")  # entries that every version writes


@dataclass(frozen=True)
class Committed:
    """The committed rows without their token ids, each once, and what those ids say of parity."""

    narrow: pa.Table
    verify: pa.Table
    wrong_claims: list[str]
    num_repeated: int = 0  # rows that were there again, and are left out


@dataclass(frozen=True)
class JudgedRun:
    """A run's folder and what was made of its rows."""

    storage: Storage
    run: Mapping[str, Any]  # run.json
    commits: Mapping[int, dict[str, Any]]
    plan: pa.Table
    committed: Committed
    summary: pa.Table
    num_missing: int
    is_closed: bool  # whether the tables that the run keeps are those of its rows


def rows(judged: JudgedRun) -> Iterator[str]:
    """Every planned row is there once, and no other."""
    config = judged.run["config"]
    if judged.committed.num_repeated:
        yield (
            f"{judged.committed.num_repeated} rows repeat another row's (task, sample_id, turn, method, repeat); "
            "each counts once"
        )
    unplanned = num_unplanned(judged.plan, judged.committed.narrow, config["methods"], config["repeats"])
    if unplanned:
        yield f"{unplanned} committed rows are not in the plan; choose another --out"


def plan(judged: JudgedRun) -> Iterator[str]:
    """The plan is the one whose hash run.json has, and every committed shard is in it."""
    stored, found = stored_hashes(judged.run).get("plan"), plan_hash(judged.plan)
    if stored not in (None, found):
        yield f"plan.parquet: its hash is {found}, that of the run's plan {stored}"
    unplanned = sorted(set(judged.commits) - set(judged.plan["shard"].to_pylist()))
    if unplanned:
        yield f"commits: {len(unplanned)} of shards that are not planned, first {unplanned[0]}"


def fingerprint(judged: JudgedRun) -> Iterator[str]:
    """The settings and hashes in run.json give its fingerprint, and every table names it."""
    if judged.commits:  # published tables without their rows may have had their paths shortened
        found = recomputed_fingerprint(judged.run)
        if found != judged.run["fingerprint"]:
            yield f"run.json: its settings and hashes give the fingerprint {found}, not {judged.run['fingerprint']}"
    yield from table_facts(judged.storage, judged.run)


def table_facts(storage: Storage, run: Mapping[str, Any]) -> Iterator[str]:
    """A line for each table of a run that does not name the run, fingerprint and revision of run.json."""
    for file in TABLES:
        try:
            found = metadata_of(storage.read(file))
        except (FileNotFoundError, ValueError):
            continue  # who reads the table is told
        if wrong := other_facts(expected_facts(run), found):
            yield f"{file}: its metadata lack or contradict run.json in {', '.join(wrong)}"


def provenance(judged: JudgedRun) -> Iterator[str]:
    """run.json says what made the run, and each commit which worker; their workers are the same."""
    found = judged.run.get("provenance")
    missing = [name for name in PROVENANCE if not isinstance(found, dict) or name not in found]
    if missing:
        yield f"run.json: its provenance lacks {', '.join(missing)}"
    if judged.run.get("starts") == [] and judged.commits:
        yield "run.json: it has no start, though there are commits"
    if judged.is_closed:
        yield from worker_lines(judged.run, worker_facts(judged.commits))
    status = judged.run.get("status", "unknown")
    if status not in STATUSES:
        yield f"run.json: its status is {on_one_line(repr(status))}, none of {', '.join(STATUSES)}"


def tables(judged: JudgedRun) -> Iterator[str]:
    """summary.parquet and verify.parquet are what the rows give."""
    if judged.is_closed:
        yield from closed_lines(judged.storage, judged.run, judged.summary, judged.committed.verify)


def files(judged: JudgedRun) -> Iterator[str]:
    """Under `samples/` of a complete run no file has rows that no commit names."""
    if not judged.num_missing and judged.run.get("status") == "complete":
        yield from stray_lines(judged.storage, {commit["file"] for commit in judged.commits.values()})


def engines(judged: JudgedRun) -> Iterator[str]:
    """All shards are of one experiment."""
    yield from mixed_experiments(judged.commits)


def parity(judged: JudgedRun) -> Iterator[str]:
    """What rows claim of their parity is what the ids and digests say."""
    yield from judged.committed.wrong_claims


# Of the run as a whole: what contradicts itself.
RUN_CHECKS: tuple[Check[[JudgedRun], str], ...] = (
    Check("rows", "every planned row is there once, and none that was not planned", rows),
    Check("plan", "plan.parquet has the hash that run.json names, and all committed shards", plan),
    Check(
        "fingerprint",
        "the settings and hashes of run.json give its fingerprint, and all tables name the run, the fingerprint and the "
        "revision of run.json",
        fingerprint,
    ),
    Check("provenance", "run.json has what made the run, a known status, and the workers of the commits", provenance),
    Check("tables", "summary.parquet and verify.parquet are what the rows give, in all columns", tables),
    Check("files", "in a complete run no file has rows that no commit names", files),
)
# And where it is not one experiment, or claims what its outputs do not have.
CLAIM_CHECKS: tuple[Check[[JudgedRun], str], ...] = (
    Check("engines", "all shards have the same weights, heads, exits, dtype, width, chat template and code", engines),
    Check("parity", "`parity`, `logits_equal` and first differences are what ids and digests give", parity),
)
SCORES_CHECK: Check[[pa.Table, pa.Table], str] = Check(
    "scores",
    "an output has each score once, the one that the scorer gives, and outputs with vanilla's tokens have vanilla's scores",
    score_findings,
)
