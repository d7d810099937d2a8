"""A shard's data file and the commit that follows from it, under names that are used once.

A shard has one file, `samples/part-00007.parquet`: the first copy that is finished, created only if absent. Its commit
holds nothing but what the file says and the hash of it, so it is the same whoever makes it, also when the writer of the
file died. What was withdrawn stays as a marker with an empty file, so no late writer brings it back; the shard's next
edition has names of its own, `part-00007-1.parquet` and so on.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from adadecode.files import from_json
from adadecode.report.schema import SCHEMA_VERSION
from adadecode.runs.outcome import outcome_of
from adadecode.runs.parquet import read_parquet

SMALL_BYTES = 2**18  # of a table in memory
WITHDRAWN = "withdrawn"  # the entry of a commit that counts no more: why


class Edition(NamedTuple):
    """The names of a shard's file and commit; `number` is how many editions were withdrawn before."""

    shard_idx: int
    number: int = 0

    @property
    def data(self) -> str:
        """The name of the data file."""
        return f"samples/part-{self._stem}.parquet"

    @property
    def commit(self) -> str:
        """The name of the commit."""
        return f"commits/{self._stem}.json"

    @property
    def next(self) -> "Edition":
        """The edition after this one was withdrawn."""
        return Edition(self.shard_idx, self.number + 1)

    @property
    def _stem(self) -> str:
        return f"{self.shard_idx:05d}" + (f"-{self.number}" if self.number else "")


def edition_of(name: str) -> Edition | None:
    """The edition whose data file or commit has `name`; None for other files, such as the data files of version 0.1."""
    found = re.fullmatch(r"(?:samples/part-|commits/)(\d{5,})(?:-(\d+))?\.(?:parquet|json)", name)
    return None if found is None else Edition(int(found[1]), int(found[2] or 0))


def beside_the_first(counting: Iterable[Edition], names: Collection[str]) -> Iterator[tuple[Edition, str]]:
    """The editions to withdraw so that each shard has one that counts, the first of `counting`, and why each.

    Those are the later ones, and of earlier ones those whose commit is not among `names`: somebody deleted it.
    """
    first: dict[int, Edition] = {}
    for edition in sorted(counting):
        if (kept := first.setdefault(edition.shard_idx, edition)) != edition:
            yield edition, f"{kept.data} counts, which is of an earlier edition"
    for kept in first.values():
        for edition in (Edition(kept.shard_idx, number) for number in range(kept.number)):
            if edition.commit not in names:
                yield edition, f"it was deleted, and {kept.data} counts"


def parquet_bytes(table: pa.Table, facts: Mapping[str, str]) -> bytes:
    """`table` as a Parquet file whose metadata name the schema version and `facts`.

    Small ones are read by the thousand, and readers take longer to set up zstd and dictionaries than to unpack them.
    """
    sink = pa.BufferOutputStream()
    is_small = table.nbytes < SMALL_BYTES
    table = table.replace_schema_metadata({"schema_version": str(SCHEMA_VERSION), **facts})
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="snappy" if is_small else "zstd",
        use_dictionary=not is_small,
        write_page_index=True,
        write_page_checksum=True,
    ) as writer:
        if table.num_rows:  # `datasets` trips over a group of no rows
            writer.write_table(table)
    return sink.getvalue().to_pybytes()


def data_bytes(table: pa.Table, facts: Mapping[str, str], attempt: str, worker: Mapping[str, Any]) -> bytes:
    """The data file of a shard's rows, with all that its commit needs."""
    return parquet_bytes(table, {**facts, "attempt": attempt, "worker": json.dumps(worker, sort_keys=True)})


def commit_of(edition: Edition, content: bytes, fingerprint: str) -> dict[str, Any]:
    """The commit of the data file `content`; a withdrawn one when that is not a file of this shard and run."""
    try:
        table = read_parquet(content, checksums=True)
        facts = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        attempt, worker = facts["attempt"], from_json(facts["worker"])
        shards, tasks = (table[name].unique().to_pylist() for name in ("shard", "task"))
    except (KeyError, ValueError) as error:
        return withdrawn(edition, f"{edition.data}: damaged before its commit ({type(error).__name__})")
    if facts.get("fingerprint") != fingerprint or shards != [edition.shard_idx] or len(tasks) != 1:
        return withdrawn(edition, f"{edition.data}: not a file of this run and shard")
    return {
        "shard": edition.shard_idx,
        "task": tasks[0],
        "file": edition.data,
        "sha256": hashlib.sha256(content).hexdigest(),
        "num_rows": table.num_rows,
        "fingerprint": fingerprint,
        "attempt": attempt,
        "outcome": dataclasses.asdict(outcome_of(table)),
        "worker": worker,
    }


def withdrawn(edition: Edition, reason: str) -> dict[str, Any]:
    """What stands in the place of a commit that counts no more."""
    return {"shard": edition.shard_idx, "file": edition.data, WITHDRAWN: reason}
