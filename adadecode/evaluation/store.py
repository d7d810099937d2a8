"""One run's folder: exactly-once results over at-least-once work.

Data goes to a file under a unique name; then a commit marker, created only if absent, names it. Readers follow commits
and nothing else, so a file whose writer died is never read. A folder belongs to one fingerprint.
"""

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adadecode.errors import RunFolderError
from adadecode.evaluation.outcome import outcome_of
from adadecode.records import ShardOutcome
from adadecode.report.schema import SAMPLES, SCHEMA_VERSION

RUN_FILE = "run.json"


class RunFolder:
    """The files of one run. Workers on every node must see the same folder."""

    def __init__(self, path: Path) -> None:
        """Opens the run in `path`; raises RunFolderError when there is none."""
        run = read_run(path)
        self.path: Path = path
        self.run_id: str = run["run_id"]
        self.fingerprint: str = run["fingerprint"]
        self._git_sha: str | None = run.get("provenance", {}).get("git_sha")

    @classmethod
    def open(cls, path: Path, fingerprint: str, facts: dict[str, Any]) -> "RunFolder":
        """Creates the folder of a new run, or opens it to finish the same run; refuses another's results."""
        try:
            (path / "commits").mkdir(parents=True, exist_ok=True)
            (path / "samples").mkdir(exist_ok=True)
            run = {"run_id": path.resolve().name, "fingerprint": fingerprint, "status": "running", **facts}
            if not (path / RUN_FILE).exists():
                _create(path / RUN_FILE, _json_bytes(run))
            folder = cls(path)
            if folder.fingerprint != fingerprint and not any((path / "commits").iterdir()):
                _replace(path / RUN_FILE, _json_bytes(run))  # the other run was refused, or died without a result
                folder = cls(path)
        except OSError as error:
            raise RunFolderError(
                f"--out {str(path)!r} cannot be written ({error.strerror}): choose a folder you may write to"
            ) from error
        if folder.fingerprint != fingerprint:
            changed = _changed_settings(read_run(path).get("config", {}), facts.get("config", {}))
            raise RunFolderError(
                f"--out {str(path)!r} belongs to another run (fingerprint {folder.fingerprint}, this one is "
                f"{fingerprint}; {changed}): choose another --out, or repeat that run's settings to finish it"
            )
        return folder

    @property
    def location(self) -> str:
        return str(self.path)

    def committed_outcome(self, shard_idx: int) -> ShardOutcome | None:
        """What a committed shard came to; None for one that is not committed."""
        commit = read_commits(self.path).get(shard_idx)
        return None if commit is None else ShardOutcome(**commit["outcome"])

    def update_run(self, **facts: Any) -> dict[str, Any]:
        """Replaces top-level entries of run.json, atomically; returns the new content."""
        run = read_run(self.path) | facts
        _replace(self.path / RUN_FILE, _json_bytes(run))
        return run

    def commit_shard(self, task: str, shard_idx: int, rows: list[dict[str, Any]], facts: dict[str, Any]) -> bool:
        """Writes a shard's rows and then its commit; False when another attempt had committed it before."""
        if read_run(self.path)["fingerprint"] != self.fingerprint:
            raise RunFolderError(f"{str(self.path)!r} was taken over by another run: choose another --out")
        attempt = rows[0]["attempt"]
        ordered = sorted(rows, key=lambda row: (row["sample_id"], row["repeat"], row["method"]))
        table = pa.Table.from_pylist(ordered, schema=SAMPLES)
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
            "outcome": asdict(outcome_of(table)),
            "worker": facts,
        }
        return _create(self.path / "commits" / f"{shard_idx:05d}.json", _json_bytes(commit))

    def write_table(self, name: str, table: pa.Table) -> str:
        """Writes a Parquet file under `name`, whole or not at all; returns the SHA-256 of its bytes.

        Its metadata name the schema version, the run, its fingerprint and the git revision.
        """
        facts = {"run_id": self.run_id, "fingerprint": self.fingerprint, "git_sha": self._git_sha or ""}
        return write_table(self.path / name, table, facts)


def write_table(path: Path, table: pa.Table, facts: dict[str, str]) -> str:
    """Writes a Parquet file, whole or not at all; returns the SHA-256 of its bytes.

    Its metadata name the schema version and `facts`.
    """
    sink = pa.BufferOutputStream()
    table = table.replace_schema_metadata({"schema_version": str(SCHEMA_VERSION), **facts})
    pq.write_table(table, sink, compression="zstd", write_page_index=True, write_page_checksum=True)
    content = sink.getvalue().to_pybytes()
    _replace(path, content)
    return hashlib.sha256(content).hexdigest()


def new_attempt() -> str:
    """A name no other attempt at a shard has."""
    return uuid.uuid4().hex[:12]


def read_run(path: Path) -> dict[str, Any]:
    """run.json of a run folder; raises RunFolderError when it is not one."""
    try:
        run = json.loads((path / RUN_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{str(path)!r} is not a run folder: it has no readable {RUN_FILE}") from error
    if not isinstance(run, dict) or "fingerprint" not in run or "run_id" not in run:
        raise RunFolderError(f"{str(path)!r} is not a run folder: its {RUN_FILE} names no run_id and fingerprint")
    return run


def read_commits(path: Path) -> dict[int, dict[str, Any]]:
    """Every commit of a run folder, by shard; raises RunFolderError when one is damaged."""
    commits = {}
    for file in sorted((path / "commits").glob("*.json")):
        try:
            commit = json.loads(file.read_bytes())
            commits[commit["shard"]] = commit
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunFolderError(f"{file}: the commit is damaged; delete it and run the same command again") from error
    return commits


def read_samples(path: Path) -> pa.Table:
    """All committed rows of a run folder; raises RunFolderError when a committed file is missing or altered."""
    fingerprint = read_run(path)["fingerprint"]
    commits = read_commits(path).values()
    foreign = [commit["shard"] for commit in commits if commit["fingerprint"] != fingerprint]
    if foreign:
        raise RunFolderError(f"{str(path)!r}: the commits of shards {foreign} are of another run: delete them")
    tables = [SAMPLES.empty_table(), *committed_tables(path, commits)]
    return pa.concat_tables(tables, promote_options="default")  # version 1 lacks columns: null there


def committed_tables(path: Path, commits: Iterable[dict[str, Any]]) -> Iterable[pa.Table]:
    """The rows of each of `commits`; raises RunFolderError when a committed file is missing or altered."""
    for commit in commits:
        file = path / commit["file"]
        remedy = f"delete commits/{commit['shard']:05d}.json and run the same command to compute the shard again"
        try:
            content = file.read_bytes()
        except OSError as error:
            raise RunFolderError(f"{file}: a committed file cannot be read ({error.strerror}); {remedy}") from error
        if hashlib.sha256(content).hexdigest() != commit["sha256"]:
            raise RunFolderError(f"{file}: a committed file was altered after its commit; {remedy}")
        yield pq.read_table(pa.BufferReader(content)).replace_schema_metadata(None)


def missing_rows(plan: pa.Table, samples: pa.Table, methods: Sequence[str], repeats: int) -> int:
    """How many planned rows (samples x methods x repeats) are not among `samples`."""
    planned = {(row["task"], row["sample_id"]) for row in plan.select(["task", "sample_id"]).to_pylist()}
    keys = samples.select(["task", "sample_id", "method", "repeat"]).to_pylist()
    found = {tuple(key.values()) for key in keys if (key["task"], key["sample_id"]) in planned}
    return len(planned) * len(methods) * repeats - len(found)


def _changed_settings(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    names = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    return f"different: {', '.join(names)}" if names else "the model, heads or data behind the same settings changed"


def _json_bytes(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def _write_synced(path: Path, content: bytes) -> Path:
    """A new file beside `path` with `content` on disk."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RunFolderError(
            f"{str(path)!r} cannot be written ({error.strerror}): make room or choose another --out; what is committed "
            "stays, and the same command continues"
        ) from error
    return temporary


def _replace(path: Path, content: bytes) -> None:
    os.replace(_write_synced(path, content), path)


def _create(path: Path, content: bytes) -> bool:
    """Creates `path` with `content` unless it exists; the first of several creators wins."""
    temporary = _write_synced(path, content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        raise RunFolderError(
            f"{path}: this storage makes no hard links ({error.strerror}), which commits need: use a local disk or NFS"
        ) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    return True
