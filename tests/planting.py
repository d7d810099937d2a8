"""Faults planted in a finished run: its files edited and everything that names them made to fit, as a forger would."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adadecode.runs.outcome import outcome_of

Row = dict[str, Any]


def plant(run: Path, change: Callable[[list[Row]], object], *, fits: bool = True) -> None:
    """Lets `change` edit the committed rows of `run`, all at once; commits get their new SHA-256.

    With `fits` the counts in the commits are made to fit too.
    """
    commits = {file: json.loads(file.read_text()) for file in sorted((run / "commits").iterdir())}
    tables = {file: pq.ParquetFile(run / commit["file"]).read() for file, commit in commits.items()}
    rows = {file: table.to_pylist() for file, table in tables.items()}
    change([row for of_shard in rows.values() for row in of_shard])
    for file, commit in commits.items():
        optional = pa.schema([field.with_nullable(True) for field in tables[file].schema])
        table = pa.Table.from_pylist(rows[file], schema=optional)
        pq.write_table(table, run / commit["file"])
        commit["sha256"] = hashlib.sha256((run / commit["file"]).read_bytes()).hexdigest()
        if fits:
            commit |= {"num_rows": table.num_rows, "outcome": dataclasses.asdict(outcome_of(table))}
        file.write_text(json.dumps(commit))


def edit_json(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Lets `change` edit the object in a JSON file."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def edit_table(file: Path, **columns: Callable[[Any], Any]) -> None:
    """Replaces each value of the named columns by what its function makes of it."""
    table = pq.read_table(file)
    rows = [row | {name: change(row[name]) for name, change in columns.items()} for row in table.to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
