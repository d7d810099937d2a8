"""One run's folder: exactly-once results over at-least-once work.

Data goes to a file under a unique name; then a commit marker, created only if absent, names it. Readers follow commits
and nothing else, so a file whose writer died is never read. A folder belongs to one fingerprint.
"""

import dataclasses
import hashlib
import json
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adadecode.errors import DamagedError, RunFolderError
from adadecode.files import TEMPORARY_SUFFIX
from adadecode.records import ShardOutcome
from adadecode.report.schema import SAMPLES, SCHEMA_VERSION
from adadecode.runs.commits import (
    AGAIN,
    commit_name,
    commit_names,
    committed_content,
    committed_table,
    each,
    listed_commit,
    read_commit,
)
from adadecode.runs.outcome import outcome_of
from adadecode.runs.storage import Storage, join, open_storage

RUN_FILE = "run.json"


class RunFolder:
    """The files of one run. Workers on every node must see the same location."""

    def __init__(self, location: str | Path) -> None:
        """Opens the run at `location`; raises RunFolderError when there is none."""
        self.storage: Storage = open_storage(location)
        self.location: str = self.storage.location
        run = _run_in(self.storage)
        self.run_id: str = run["run_id"]
        self.fingerprint: str = run["fingerprint"]
        self._git_sha: str | None = run.get("provenance", {}).get("git_sha")

    @classmethod
    def open(cls, location: str | Path, fingerprint: str, facts: dict[str, Any]) -> "RunFolder":
        """Creates the folder of a new run, or opens it to finish the same run; refuses another's results."""
        refuse_others_results(location, fingerprint, facts)
        storage = open_storage(location)
        run_id = join(location, "x").split("/")[-2] if "://" in str(location) else Path(location).resolve().name
        run = {"run_id": run_id, "fingerprint": fingerprint, "status": "running", **facts}
        storage.create(RUN_FILE, _json_bytes(run))
        if _run_in(storage)["fingerprint"] != fingerprint:  # that run was refused, or died without a result
            storage.replace(RUN_FILE, _json_bytes(run))
        return cls(location)

    def update_run(self, **facts: Any) -> dict[str, Any]:
        """Replaces top-level entries of run.json, atomically; returns the new content."""
        run = _run_in(self.storage) | facts
        self.storage.replace(RUN_FILE, _json_bytes(run))
        return run

    def commit_shard(
        self, task: str, shard_idx: int, rows: Sequence[Mapping[str, Any]], facts: dict[str, Any], attempt: str
    ) -> bool:
        """Writes a shard's rows and then its commit; False when another attempt had committed it before.

        `rows` hold the columns of SAMPLES by name, null where one lacks, less `run_id` and `attempt`, which this adds.
        """
        if _run_in(self.storage)["fingerprint"] != self.fingerprint:
            raise RunFolderError(f"{self.location!r} was taken over by another run: choose another --out")
        ordered = sorted(rows, key=lambda row: (row["sample_id"], row["repeat"], row["method"]))
        written_by = {"run_id": self.run_id, "attempt": attempt}
        table = pa.Table.from_pylist([{**row, **written_by} for row in ordered], schema=SAMPLES)
        name = f"samples/task={task}/part-{shard_idx:05d}-{attempt}.parquet"
        digest = self.write_table(name, table)
        commit = {
            "shard": shard_idx,
            "task": task,
            "file": name,
            "sha256": digest,
            "num_rows": len(rows),
            "fingerprint": self.fingerprint,
            "attempt": attempt,
            "outcome": dataclasses.asdict(outcome_of(table)),
            "worker": facts,
        }
        return self.storage.create(commit_name(shard_idx), _json_bytes(commit))

    def committed_outcome(self, shard_idx: int) -> ShardOutcome | None:
        """What the shard came to; None while it has no commit."""
        commit = read_commit(self.storage, commit_name(shard_idx))
        return None if commit is None else ShardOutcome(**commit["outcome"])

    def check_commits(self) -> list[str]:
        """Withdraws every commit that is damaged or whose file is; returns one line for each.

        Only for the driver that holds the lease: the run then computes these shards again. What cannot be read now raises
        RunFolderError and is withdrawn by nobody.
        """

        def check(name: str) -> str | None:
            try:
                committed_content(self.storage, listed_commit(self.storage, name))
            except DamagedError as error:
                self.storage.delete(name)
                return f"withdrawn, to be computed again: {str(error).removesuffix('; ' + AGAIN)}"
            return None

        return [line for line in each(self.storage, check, commit_names(self.storage)) if line is not None]

    def withdraw_errors(self) -> int:
        """Withdraws the commits with samples that failed, so that the run computes them again; returns how many."""
        failed = [idx for idx, commit in read_commits(self.location).items() if commit["outcome"]["num_error_samples"]]
        for shard_idx in failed:
            self.storage.delete(commit_name(shard_idx))
        return len(failed)

    def delete_leftovers(self, named: Collection[str]) -> int:
        """Deletes data files that are not among those the commits name, and temporary files; returns how many.

        Only for a run that is complete: a late attempt may still be about to commit what looks left over.
        """
        data = [name for name in self.storage.list("samples") if name not in named]
        temporary = [
            name
            for name in self.storage.list("")
            if name.endswith(TEMPORARY_SUFFIX) and not name.startswith("samples/")
        ]
        for name in data + temporary:
            self.storage.delete(name)
        return len(data + temporary)

    def write_table(self, name: str, table: pa.Table) -> str:
        """Writes a Parquet file under `name`, whole or not at all; returns the SHA-256 of its bytes.

        Its metadata name the schema version, the run, its fingerprint and the git revision.
        """
        facts = {"run_id": self.run_id, "fingerprint": self.fingerprint, "git_sha": self._git_sha or ""}
        return store_table(self.storage, name, table, facts)


def refuse_others_results(location: str | Path, fingerprint: str, facts: dict[str, Any]) -> None:
    """Raises RunFolderError when committed rows of another fingerprint are at `location`; writes nothing."""
    storage = open_storage(location)
    try:
        storage.read(RUN_FILE)
    except FileNotFoundError:
        return
    theirs = _run_in(storage)
    if theirs["fingerprint"] != fingerprint and commit_names(storage):
        changed = _changed_settings(theirs.get("config", {}), facts.get("config", {}))
        raise RunFolderError(
            f"--out {storage.location!r} belongs to another run (fingerprint {theirs['fingerprint']}, this one is "
            f"{fingerprint}; {changed}): choose another --out, or repeat that run's settings to finish it"
        )


def store_table(storage: Storage, name: str, table: pa.Table, facts: dict[str, str]) -> str:
    """Writes a Parquet file, whole or not at all; returns the SHA-256 of its bytes.

    Its metadata name the schema version and `facts`.
    """
    sink = pa.BufferOutputStream()
    table = table.replace_schema_metadata({"schema_version": str(SCHEMA_VERSION), **facts})
    pq.write_table(table, sink, compression="zstd", write_page_index=True, write_page_checksum=True)
    content = sink.getvalue().to_pybytes()
    storage.replace(name, content)
    return hashlib.sha256(content).hexdigest()


def new_attempt() -> str:
    """A name no other attempt at a shard has."""
    return uuid.uuid4().hex[:12]


def read_run(location: str | Path) -> dict[str, Any]:
    """run.json of a run folder; raises RunFolderError when it is not one."""
    return _run_in(open_storage(location))


def read_commits(location: str | Path) -> dict[int, dict[str, Any]]:
    """Every commit of a run folder, by shard, equal worker facts shared; raises RunFolderError when one is damaged.

    The outcome that a commit of an older version lacks is computed from its file.
    """
    storage = open_storage(location)
    workers: dict[str, dict[str, Any]] = {}
    commits = {}
    for commit in each(storage, lambda name: listed_commit(storage, name), commit_names(storage)):
        commit["worker"] = workers.setdefault(json.dumps(commit["worker"], sort_keys=True), commit["worker"])
        if "outcome" not in commit:
            commit["outcome"] = dataclasses.asdict(outcome_of(committed_table(storage, commit)))
        commits[commit["shard"]] = commit
    return commits


def read_samples(location: str | Path) -> pa.Table:
    """All committed rows of a run folder; raises RunFolderError when a committed file is missing or altered."""
    tables = [SAMPLES.empty_table(), *committed_tables(location, read_commits(location))]
    return pa.concat_tables(tables, promote_options="default")  # version 1 lacks columns: null there


def committed_tables(location: str | Path, commits: Mapping[int, dict[str, Any]]) -> Iterator[pa.Table]:
    """The rows of `commits` shard by shard, few files in memory at a time.

    Raises RunFolderError when a commit is another run's, or a committed file is missing or altered.
    """
    storage = open_storage(location)
    fingerprint = _run_in(storage)["fingerprint"]
    foreign = [shard_idx for shard_idx, commit in commits.items() if commit["fingerprint"] != fingerprint]
    if foreign:
        raise RunFolderError(f"{storage.location!r}: the commits of shards {foreign} are of another run: delete them")
    yield from each(storage, lambda commit: committed_table(storage, commit), list(commits.values()))


def _run_in(storage: Storage) -> dict[str, Any]:
    try:
        run = json.loads(storage.read(RUN_FILE))
    except (FileNotFoundError, ValueError) as error:
        raise RunFolderError(f"{storage.location!r} is not a run folder: it has no readable {RUN_FILE}") from error
    if not isinstance(run, dict) or "fingerprint" not in run or "run_id" not in run:
        raise RunFolderError(
            f"{storage.location!r} is not a run folder: its {RUN_FILE} names no run_id and fingerprint"
        )
    return run


def _changed_settings(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    names = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    return f"different: {', '.join(names)}" if names else "the model, heads or data behind the same settings changed"


def _json_bytes(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
