"""A commit and the data file it names: a JSON marker for each shard, under `commits/`, with the SHA-256 of the file.

A marker or file that is not what was written raises DamagedError; what cannot be read now, RunFolderError.
"""

import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa

from adadecode.errors import DamagedError, RunFolderError
from adadecode.files import from_json
from adadecode.records import ShardOutcome
from adadecode.report.schema import SAMPLES, filled
from adadecode.runs.editions import WITHDRAWN, edition_of
from adadecode.runs.storage import Storage, join
from adadecode.runs.typed import check_values, unchecked_table

T = TypeVar("T")
U = TypeVar("U")

REQUIRED = {"shard": int, "file": str, "sha256": str, "fingerprint": str, "worker": dict}  # of a commit of any version
OPTIONAL = {"task": str, "attempt": str, "num_rows": int}
REQUIRED_OF_WITHDRAWN = {"shard": int, "file": str}
MAX_SHARD = 2**31 - 1  # which the column `shard` holds
MAX_TOTAL = 2**63 - 1  # of an outcome's counts and seconds
BATCH_BYTES = 2**23  # of rows that are in memory together
AGAIN = "run the same command again: it computes the shard again"


def commit_names(storage: Storage) -> list[str]:
    """The names of all commits, those withdrawn too, sorted."""
    return [name for name in storage.list("commits") if name.endswith(".json")]


def read_commit(storage: Storage, name: str) -> dict[str, Any] | None:
    """The commit under `name`, None where there is none; raises DamagedError."""
    try:
        content = storage.read(name)
    except FileNotFoundError:
        return None
    try:
        commit = from_json(content)
        _check_types(commit)
        _check_names(name, commit)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{join(storage.location, name)}: the commit is damaged; {AGAIN}") from error
    return commit


def _check_types(commit: Any) -> None:
    """Raises KeyError, TypeError or ValueError where `commit` is none."""
    given = {name: kind for name, kind in OPTIONAL.items() if name in commit}
    for field, kind in (REQUIRED_OF_WITHDRAWN if WITHDRAWN in commit else {**REQUIRED, **given}).items():
        if type(commit[field]) is not kind:
            raise TypeError(field)
    if WITHDRAWN not in commit and not 0 <= commit["shard"] <= MAX_SHARD:
        raise ValueError("shard")
    if "outcome" in commit:
        for count in vars(ShardOutcome(**commit["outcome"])).values():
            if type(count) not in (int, float) or (type(count) is int and abs(count) > MAX_TOTAL):
                raise TypeError("outcome")


def _check_names(name: str, commit: dict[str, Any]) -> None:
    """Raises ValueError where the commit under `name` is of another shard or edition, or its file none of a shard's."""
    edition = edition_of(name)
    if edition is None or commit["shard"] != edition.shard_idx:
        raise ValueError("shard")
    of_version_0_1 = re.fullmatch(r"samples/task=[^/]+/part-(\d{5,})-\w+\.parquet", commit["file"])
    if commit["file"] != edition.data and (of_version_0_1 is None or int(of_version_0_1[1]) != edition.shard_idx):
        raise ValueError("file")


def listed_commit(storage: Storage, name: str) -> dict[str, Any]:
    """The commit under a name that was listed; raises DamagedError, also when it is gone by now."""
    commit = read_commit(storage, name)
    if commit is None:
        raise DamagedError(f"{join(storage.location, name)}: the commit is gone; {AGAIN}")
    return commit


@dataclass(frozen=True)
class Shards:
    """The rows of some shards one after another, their commits, and their files' metadata and numbers of rows."""

    commits: Sequence[dict[str, Any]]
    metadata: Sequence[Mapping[bytes, bytes]]
    num_rows: Sequence[int]
    rows: pa.Table


def committed_content(storage: Storage, commit: dict[str, Any]) -> bytes:
    """The bytes of a committed file; raises DamagedError when they are not those that were committed."""
    try:
        content = storage.read(commit["file"])
    except FileNotFoundError as error:
        raise DamagedError(f"{_file(storage, commit)}: a committed file is missing; {AGAIN}") from error
    if hashlib.sha256(content).hexdigest() != commit["sha256"]:
        raise DamagedError(f"{_file(storage, commit)}: a committed file was altered after its commit; {AGAIN}")
    return content


def committed_table(storage: Storage, commit: dict[str, Any]) -> pa.Table:
    """The rows of a committed file; raises DamagedError when it is not what was committed.

    What was committed and holds no rows of SAMPLES raises RunFolderError.
    """
    (shards,) = committed_shards(storage, [commit])
    return shards.rows


def committed_shards(storage: Storage, commits: Sequence[dict[str, Any]]) -> Iterator[Shards]:
    """The rows of `commits` in order, of as many shards at a time as take some BATCH_BYTES; raises as `committed_table`.

    Each file is read once, and few of them are small enough to be worth a look of their own.
    """
    some: list[tuple[dict[str, Any], pa.Table]] = []
    num_bytes = 0
    for commit, table in zip(commits, each(storage, lambda of: _unchecked_rows(storage, of), commits), strict=True):
        some.append((commit, table))
        num_bytes += table.get_total_buffer_size()
        if num_bytes >= BATCH_BYTES:
            yield _together(storage, some)
            some, num_bytes = [], 0
    if some:
        yield _together(storage, some)


def _unchecked_rows(storage: Storage, commit: dict[str, Any]) -> pa.Table:
    """The rows of a committed file, which may lack values."""
    content = committed_content(storage, commit)
    try:
        table = filled(unchecked_table(content, SAMPLES))
    except ValueError as error:
        raise _no_rows(storage, commit, error) from error
    return table if table.num_columns == len(SAMPLES) else table.select(SAMPLES.names)


def _together(storage: Storage, shards: Sequence[tuple[dict[str, Any], pa.Table]]) -> Shards:
    """`shards`, whose values are checked; where one lacks some, which it is."""
    rows = pa.concat_tables([table for _, table in shards]).combine_chunks()
    try:
        check_values(rows, SAMPLES)
    except ValueError:
        for commit, table in shards:
            try:
                check_values(table, SAMPLES)
            except ValueError as error:
                raise _no_rows(storage, commit, error) from error
        raise
    return Shards(
        [commit for commit, _ in shards],
        [table.schema.metadata or {} for _, table in shards],
        [table.num_rows for _, table in shards],
        rows,
    )


def _no_rows(storage: Storage, commit: dict[str, Any], error: ValueError) -> RunFolderError:
    file = _file(storage, commit)
    return RunFolderError(f"{file}: it holds no rows of a shard ({error}); delete it and {AGAIN}")


def _file(storage: Storage, commit: dict[str, Any]) -> str:
    return join(storage.location, commit["file"])


def each(storage: Storage, function: Callable[[T], U], arguments: Sequence[T]) -> Iterator[U]:
    """`function` of each argument, in order; as many at once as the storage takes, the results of few in memory."""
    if storage.num_parallel == 1:
        yield from map(function, arguments)
        return
    with ThreadPoolExecutor(storage.num_parallel) as pool:
        ahead: deque[Future[U]] = deque()
        try:
            for argument in arguments:
                ahead.append(pool.submit(function, argument))
                if len(ahead) > 2 * storage.num_parallel:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:  # who reads no further waits for nothing that was not begun
            for future in ahead:
                future.cancel()
