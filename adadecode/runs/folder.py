"""One run's folder: exactly-once results over at-least-once work.

A shard's data file is created only if absent, and then its commit, which follows from the file (`editions.py`): whoever
comes late changes nothing. Our readers follow commits; `samples/` read as a whole holds the same rows. A folder belongs
to one fingerprint.
"""

import contextlib
import dataclasses
import json
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from adadecode.errors import DamagedError, RunFolderError
from adadecode.files import TEMPORARY_SUFFIX
from adadecode.records import ShardOutcome
from adadecode.report.schema import SAMPLES
from adadecode.runs.commits import (
    AGAIN,
    Shards,
    commit_names,
    committed_content,
    committed_shards,
    committed_table,
    each,
    listed_commit,
    read_commit,
)
from adadecode.runs.editions import (
    WITHDRAWN,
    Edition,
    beside_the_first,
    commit_of,
    data_bytes,
    edition_of,
    parquet_bytes,
    withdrawn,
)
from adadecode.runs.outcome import outcome_of
from adadecode.runs.run_file import RUN_FILE, part_of, refuse_others_results, run_in
from adadecode.runs.storage import Storage, join, open_storage


class RunFolder:
    """The files of one run. Workers on every node must see the same location."""

    def __init__(self, location: str | Path) -> None:
        """Opens the run at `location`; raises RunFolderError when there is none."""
        self.storage: Storage = open_storage(location)
        self.location: str = self.storage.location
        run = run_in(self.storage)
        self.run_id: str = run["run_id"]
        self.fingerprint: str = run["fingerprint"]
        self._git_sha: Any = part_of(run, "provenance").get("git_sha")

    @classmethod
    def open(cls, location: str | Path, fingerprint: str, facts: dict[str, Any]) -> "RunFolder":
        """Creates the folder of a new run, or opens it to finish the same run; refuses another's results."""
        refuse_others_results(location, fingerprint, facts)
        storage = open_storage(location)
        run_id = join(location, "x").split("/")[-2] if "://" in str(location) else Path(location).resolve().name
        run = {"run_id": run_id, "fingerprint": fingerprint, "status": "running", **facts}
        storage.create(RUN_FILE, _json_bytes(run))
        if run_in(storage)["fingerprint"] != fingerprint:  # that run was refused, or died without a result
            storage.replace(RUN_FILE, _json_bytes(run))
        return cls(location)

    def update_run(self, **facts: Any) -> dict[str, Any]:
        """Replaces top-level entries of run.json, atomically; returns the new content."""
        run = run_in(self.storage) | facts
        self.storage.replace(RUN_FILE, _json_bytes(run))
        return run

    def commit_shard(
        self, shard_idx: int, rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], attempt: str
    ) -> bool:
        """Writes a shard's rows and then its commit; False when the rows of another attempt are committed.

        `rows` hold the columns of SAMPLES by name, null where one lacks, less `run_id` and `attempt`, which this adds.
        """
        if run_in(self.storage)["fingerprint"] != self.fingerprint:
            raise RunFolderError(f"{self.location!r} was taken over by another run: choose another --out")
        ordered = sorted(rows, key=lambda row: (row["sample_id"], row["turn"], row["repeat"], row["method"]))
        written_by = {"run_id": self.run_id, "attempt": attempt}
        table = pa.Table.from_pylist([{**row, **written_by} for row in ordered], schema=SAMPLES)
        content = data_bytes(table, self._facts, attempt, facts)
        edition = Edition(shard_idx)
        while True:
            commit = self._settled(edition, content if self.storage.create(edition.data, content) else None)
            if WITHDRAWN not in commit:
                return commit["attempt"] == attempt
            edition = edition.next

    def committed_outcome(self, shard_idx: int) -> ShardOutcome | None:
        """What the shard came to; None while it has no commit."""
        edition = Edition(shard_idx)
        while (commit := read_commit(self.storage, edition.commit)) is not None and WITHDRAWN in commit:
            edition = edition.next
        return None if commit is None else ShardOutcome(**commit["outcome"])

    def check_commits(self) -> list[str]:
        """Withdraws every commit that is damaged, another run's or whose file is, and makes those of files without.

        Of a shard's editions the first counts that is not withdrawn, so later ones are. Returns a line for each change.
        Only for the driver that holds the lease: its run computes again what was withdrawn. What cannot be read now raises
        RunFolderError and is withdrawn by nobody.
        """
        counting: list[Edition] = []

        def check(name: str) -> str | None:
            edition = edition_of(name)
            try:
                commit = listed_commit(self.storage, name)
                assert edition is not None, name  # else it is damaged
                if WITHDRAWN in commit:
                    self._bar(edition)
                    return None
                if commit["fingerprint"] != self.fingerprint:
                    raise DamagedError(f"{join(self.location, name)}: the commit is another run's; {AGAIN}")
                committed_content(self.storage, commit)
                counting.append(edition)
                return None
            except DamagedError as error:
                reason = str(error).removesuffix("; " + AGAIN)
                if edition is None:
                    self.storage.delete(name)
                else:
                    self._withdraw(edition, reason)
                return f"withdrawn, to be computed again: {reason}"

        names = commit_names(self.storage)
        lines = [line for line in each(self.storage, check, names) if line is not None]
        for edition in filter(None, map(edition_of, self.storage.list("samples"))):
            if edition.commit not in names:
                reason = self._settled(edition).get(WITHDRAWN)
                found = f"withdrawn, to be computed again: {reason}" if reason else "found whole, and committed now"
                lines.append(found if reason else f"{join(self.location, edition.data)}: {found}")
                names.append(edition.commit)
                counting += [] if reason else [edition]
        for edition, reason in beside_the_first(counting, names):
            self._withdraw(edition, reason)
            lines.append(f"withdrawn: {join(self.location, edition.data)}: {reason}")
        return lines

    def withdraw_errors(self) -> int:
        """Withdraws the commits with samples that failed, so that the run computes them again; returns how many."""
        commits = read_commits(self.location).values()
        failed = [commit for commit in commits if commit["outcome"]["num_error_samples"]]
        for commit in failed:
            self._withdraw(edition_of(commit["file"]) or Edition(commit["shard"]), "samples failed (--retry-errors)")
        return len(failed)

    def sweep(self, named: Collection[str]) -> None:
        """Leaves under `samples/` the data files that are `named` and empty ones, and no temporary file anywhere.

        Only for the driver of a run of which no planned row is missing.
        """
        for name in self.storage.list("samples"):
            if name not in named:
                if (edition := edition_of(name)) is not None:
                    self._settled(edition)
                else:  # what version 0.1 left behind
                    self.storage.delete(name)
        for name in self.storage.list(""):
            if name.endswith(TEMPORARY_SUFFIX):
                self.storage.delete(name)

    def write_table(self, name: str, table: pa.Table) -> None:
        """Writes a Parquet file under `name`, whole or not at all.

        Its metadata name the schema version, the run, its fingerprint and the git revision.
        """
        self.storage.replace(name, parquet_bytes(table, self._facts))

    @property
    def _facts(self) -> dict[str, str]:
        return {"run_id": self.run_id, "fingerprint": self.fingerprint, "git_sha": str(self._git_sha or "")}

    def _settled(self, edition: Edition, content: bytes | None = None) -> dict[str, Any]:
        """The commit of an edition whose file is there, made from the file (`content`, if known) where there is none.

        A file that is damaged or another run's is withdrawn, and one beside that of an older version's commit emptied.
        """
        commit = read_commit(self.storage, edition.commit) if content is None else None
        if commit is None:
            try:
                content = self.storage.read(edition.data) if content is None else content
            except FileNotFoundError as error:
                raise DamagedError(
                    f"{join(self.location, edition.data)}: deleted before its commit; {AGAIN}"
                ) from error
            commit = commit_of(edition, content, self.fingerprint)
            if not self.storage.create(edition.commit, _json_bytes(commit)):
                commit = listed_commit(self.storage, edition.commit)
        if WITHDRAWN in commit or commit["file"] != edition.data:
            self._bar(edition)
        return commit

    def _withdraw(self, edition: Edition, reason: str) -> None:
        """For good: the shard's next commit is of the next edition."""
        self.storage.replace(edition.commit, _json_bytes(withdrawn(edition, reason)))
        self._bar(edition)

    def _bar(self, edition: Edition) -> None:
        """Leaves the file of a withdrawn edition without rows and its name taken, so that nobody can create it."""
        empty = parquet_bytes(SAMPLES.empty_table(), self._facts)
        with contextlib.suppress(FileNotFoundError):
            if self.storage.read(edition.data) == empty:
                return
        self.storage.replace(edition.data, empty)


def new_attempt() -> str:
    """A name no other attempt at a shard has."""
    return uuid.uuid4().hex[:12]


def read_run(location: str | Path) -> dict[str, Any]:
    """run.json of a run folder; raises RunFolderError when it is not one."""
    return run_in(open_storage(location))


def read_commits(location: str | Path) -> dict[int, dict[str, Any]]:
    """Every commit of a run folder, by shard, equal worker facts shared; raises RunFolderError when one is damaged.

    The outcome that a commit of an older version lacks is computed from its file.
    """
    storage = open_storage(location)
    workers: dict[str, dict[str, Any]] = {}
    commits: dict[int, dict[str, Any]] = {}
    for commit in each(storage, lambda name: listed_commit(storage, name), commit_names(storage)):
        if WITHDRAWN in commit:
            continue
        if (first := commits.get(commit["shard"])) is not None:
            raise RunFolderError(
                f"{storage.location!r}: shard {commit['shard']} has two commits, of {first['file']} and "
                f"{commit['file']}: run the same command again, which keeps the earlier edition, or before that delete the "
                "data file that is not to count"
            )
        commit["worker"] = workers.setdefault(json.dumps(commit["worker"], sort_keys=True), commit["worker"])
        if "outcome" not in commit:
            commit["outcome"] = dataclasses.asdict(outcome_of(committed_table(storage, commit)))
        commits[commit["shard"]] = commit
    return dict(sorted(commits.items()))


def read_samples(location: str | Path) -> pa.Table:
    """All committed rows of a run folder; raises RunFolderError when a committed file is missing or altered."""
    return pa.concat_tables([SAMPLES.empty_table(), *committed_tables(location, read_commits(location))])


def committed_tables(location: str | Path, commits: Mapping[int, dict[str, Any]]) -> Iterator[pa.Table]:
    """The rows of `commits`, some whole shards in each table; raises RunFolderError as `shards_of`."""
    return (shards.rows for shards in shards_of(location, commits))


def shards_of(location: str | Path, commits: Mapping[int, dict[str, Any]]) -> Iterator[Shards]:
    """The rows of `commits` in order, few files in memory at a time.

    Raises RunFolderError when a commit is another run's, or a committed file is missing or altered.
    """
    storage = open_storage(location)
    fingerprint = run_in(storage)["fingerprint"]
    foreign = [shard_idx for shard_idx, commit in commits.items() if commit["fingerprint"] != fingerprint]
    if foreign:
        raise RunFolderError(f"{storage.location!r}: the commits of shards {foreign} are of another run; {AGAIN}")
    yield from committed_shards(storage, list(commits.values()))


def _json_bytes(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
