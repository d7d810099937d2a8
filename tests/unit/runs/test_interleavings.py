"""Writers that are late, killed or replaced, request by request in every order: a run's folder holds each row once."""

import functools
import hashlib
import os
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adadecode.runs.editions import edition_of
from adadecode.runs.folder import RunFolder, read_commits, read_samples
from adadecode.runs.storage import Storage, open_storage

FACTS = {"config": {}, "provenance": {"git_sha": "abc123"}}
NUM_SHARDS = 2
STARTED = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch) -> None:
    """Nothing here is about power cuts."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(autouse=True)
def one_client(monkeypatch) -> None:
    """Making a client of an object store takes longer than all its requests here."""
    cached = functools.cache(open_storage)
    monkeypatch.setattr("adadecode.runs.folder.open_storage", cached)
    monkeypatch.setitem(globals(), "open_storage", cached)


class KilledError(BaseException):
    """Ends a process in the middle, so that nothing it would do then is done."""


class Process:
    """Something that runs against a storage in a thread of its own and stops before each of its requests."""

    num_parallel = 1

    def __init__(self, storage: Storage, work: Callable[[Storage], None]) -> None:
        self._storage, self._work = storage, work
        self._go, self._waits = threading.Semaphore(0), threading.Semaphore(0)
        self.is_killed = self.is_over = False
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._waits.acquire(timeout=60)

    def step(self) -> None:
        """Lets it make one request, and go on up to the next."""
        if not self.is_over:
            self._go.release()
            assert self._waits.acquire(timeout=60)

    def finish(self) -> None:
        while not self.is_over:
            self.step()

    def kill(self) -> None:
        self.is_killed = True
        self.finish()

    def _run(self) -> None:
        try:
            self._work(self)
        except KilledError:
            pass
        except Exception as error:
            self.error = error
        self.is_over = True
        self._waits.release()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._storage, name)
        if name not in ("read", "replace", "create", "list", "delete"):
            return found

        def request(*arguments: Any) -> Any:
            self._waits.release()
            self._go.acquire()
            if self.is_killed:
                raise KilledError
            return found(*arguments)

        return request


def rows(shard_idx: int, attempt: str, status: str = "ok") -> list[dict[str, Any]]:
    key = {
        "task": "jsonl",
        "sample_id": f"s{shard_idx}",
        "repeat": 0,
        "turn": 0,
        "shard": shard_idx,
        "started_at": STARTED,
    }
    return [{**key, "method": m, "status": status, "worker_id": attempt} for m in ("vanilla", "adadecode")]


def writer(location: str, shard_idx: int, attempt: str, status: str) -> Process:
    """An actor that has computed a shard and commits it."""

    def work(storage: Storage) -> None:
        folder = RunFolder(location)
        folder.storage = storage
        folder.commit_shard(shard_idx, rows(shard_idx, attempt, status), {"worker_id": attempt}, attempt)

    return Process(open_storage(location), work)


def opener(location: str, *, retries_errors: bool) -> Process:
    """A driver that opens the run to go on."""

    def work(storage: Storage) -> None:
        folder = RunFolder(location)
        folder.storage = storage
        folder.check_commits()
        if retries_errors:
            folder.withdraw_errors()

    return Process(open_storage(location), work)


def rows_in_the_folder(storage: Storage) -> list[pa.Table]:
    return [pq.read_table(pa.BufferReader(storage.read(name))) for name in storage.list("samples")]


def check_that_each_row_is_there_once(location: str) -> None:
    storage = open_storage(location)
    tables = rows_in_the_folder(storage)
    keys = Counter(key for t in tables for key in zip(t["sample_id"].to_pylist(), t["method"].to_pylist(), strict=True))
    assert not keys or max(keys.values()) == 1, keys
    for commit in read_commits(location).values():
        content = storage.read(commit["file"])
        assert hashlib.sha256(content).hexdigest() == commit["sha256"], commit["file"]


def close(location: str) -> dict[str, bytes]:
    """What the last driver does: opens, has every shard done, sweeps. Returns the files of the complete run."""
    folder = RunFolder(location)
    folder.check_commits()
    for shard_idx in range(NUM_SHARDS):
        if folder.committed_outcome(shard_idx) is None:
            folder.commit_shard(shard_idx, rows(shard_idx, "last"), {"worker_id": "last"}, "last")
    folder.sweep({commit["file"] for commit in read_commits(location).values()})
    return files(location)


def files(location: str) -> dict[str, bytes]:
    storage = open_storage(location)
    return {name: storage.read(name) for part in ("samples", "commits") for name in storage.list(part)}


def play(location: str, data: st.DataObject, num_moves: int) -> None:
    RunFolder.open(location, "f00d", FACTS)
    processes: list[Process] = []
    driver: Process | None = None
    for number in range(num_moves):
        move = data.draw(st.sampled_from(["write", "step", "step", "step", "step", "step", "open", "kill"]))
        if move == "write":
            shard_idx, status = data.draw(st.integers(0, NUM_SHARDS - 1)), data.draw(st.sampled_from(["ok", "error"]))
            processes.append(writer(location, shard_idx, f"attempt{number}", status))
        elif move == "open" and (driver is None or driver.is_over):  # one driver at a time: the lease sees to that
            driver = opener(location, retries_errors=data.draw(st.booleans()))
            processes.append(driver)
        elif processes:
            process = processes[data.draw(st.integers(0, len(processes) - 1))]
            process.kill() if move == "kill" else process.step()
        check_that_each_row_is_there_once(location)
    if driver is not None:
        driver.kill()
    complete = close(location)
    check_that_each_row_is_there_once(location)
    committed = read_samples(location).num_rows
    assert committed == NUM_SHARDS * 2 == sum(table.num_rows for table in rows_in_the_folder(open_storage(location)))
    while late := [process for process in processes if not process.is_over]:
        late[data.draw(st.integers(0, len(late) - 1))].step()
        assert files(location) == complete, "what finishes late changes nothing"
    assert not [process.error for process in processes if process.error is not None]


@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_the_order_of_requests_a_folder_holds_each_row_once_and_late_ones_change_nothing(data, tmp_path):
    play(str(tmp_path / uuid.uuid4().hex), data, 25)


@given(data=st.data())
@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_the_order_of_requests_a_bucket_holds_each_row_once_and_late_ones_change_nothing(data, s3_bucket):
    play(f"{s3_bucket}/{uuid.uuid4().hex}", data, 12)


@pytest.mark.parametrize("num_steps", range(6))
@pytest.mark.parametrize("what_next", ["nothing", "retries its errors", "damages its data", "loses its data"])
def test_a_writer_that_stood_still_after_any_of_its_requests_changes_nothing_when_it_wakes(
    tmp_path, num_steps, what_next
):
    location = str(tmp_path / "run")
    RunFolder.open(location, "f00d", FACTS)
    late = writer(location, 0, "late", "error")
    for _ in range(num_steps):
        late.step()
    opener(location, retries_errors=what_next == "retries its errors").finish()
    for name in open_storage(location).list("samples"):
        if what_next == "damages its data" and edition_of(name) is not None:
            open_storage(location).replace(name, b"damaged")
        elif what_next == "loses its data":
            open_storage(location).delete(name)
    complete = close(location)
    late.finish()
    assert late.error is None
    assert files(location) == complete
    check_that_each_row_is_there_once(location)
    assert read_samples(location).num_rows == NUM_SHARDS * 2
