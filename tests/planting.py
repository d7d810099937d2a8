"""Faults planted in a finished run: its files edited and everything that names them made to fit, as a forger would."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adadecode.report.schema import SAMPLES
from adadecode.runs.folder import RunFolder
from adadecode.runs.outcome import outcome_of
from adadecode.runs.result import read_result

Row = dict[str, Any]

GOLDEN = Path(__file__).parent / "golden" / "run-0.1.0" / "complete"
FIRST = "demo-math/demo-math-000"
OURS, VANILLA, W1 = "adadecode", "vanilla", "vanilla-w1"  # the methods of that run


def plant(run: Path, change: Callable[[list[Row]], object], *, fits: bool = True) -> None:
    """Lets `change` edit the committed rows of `run`, all at once; commits get their new SHA-256.

    With `fits` the counts in the commits are made to fit too.
    """
    commits = {file: json.loads(file.read_text()) for file in sorted((run / "commits").iterdir())}
    tables = {file: pq.ParquetFile(run / commit["file"]).read() for file, commit in commits.items()}
    rows = {file: table.to_pylist() for file, table in tables.items()}
    change([row for of_shard in rows.values() for row in of_shard])
    for file in commits:
        forge(run, file, rows[file], tables[file].schema, fits=fits)


def plant_in_first(run: Path, change: Callable[[list[Row]], object]) -> None:
    """Lets `change` edit the list of the rows of the first shard, so that it may add some and take some out."""
    file = min((run / "commits").iterdir())
    table = pq.ParquetFile(run / json.loads(file.read_text())["file"]).read()
    rows = table.to_pylist()
    change(rows)
    forge(run, file, rows, table.schema)


def plant_worker(run: Path, shard_idx: int, **facts: Any) -> dict[str, Any]:
    """Has the commit of one shard, and its data file, say that their worker was another; returns its facts."""
    file = run / "commits" / f"{shard_idx:05d}.json"
    edit_json(file, lambda commit: commit["worker"].update(facts))
    commit = json.loads(file.read_text())
    table = pq.ParquetFile(run / commit["file"]).read()
    worker = {b"worker": json.dumps(commit["worker"], sort_keys=True).encode()}
    forge(run, file, table.to_pylist(), table.schema.with_metadata((table.schema.metadata or {}) | worker))
    return commit["worker"]


def forge(run: Path, commit_file: Path, rows: list[Row], schema: pa.Schema, *, fits: bool = True) -> None:
    """Replaces the rows of a shard, and makes its commit fit. A column that older files lack is there if a row has it."""
    commit = json.loads(commit_file.read_text())
    for name in SAMPLES.names:
        if name not in schema.names and any(row.get(name) is not None for row in rows):
            schema = schema.append(SAMPLES.field(name))
    optional = pa.schema([field.with_nullable(True) for field in schema], schema.metadata)
    table = pa.Table.from_pylist(rows, schema=optional)
    pq.write_table(table, run / commit["file"])
    commit["sha256"] = hashlib.sha256((run / commit["file"]).read_bytes()).hexdigest()
    if fits:
        commit |= {"num_rows": table.num_rows, "outcome": dataclasses.asdict(outcome_of(table))}
    commit_file.write_text(json.dumps(commit))


def close_again(run: Path) -> None:
    """Writes the summary and the parity that the rows of a finished `run` give by now."""
    found, folder = read_result(run), RunFolder(run)
    folder.write_table("summary.parquet", found.summary)
    folder.write_table("verify.parquet", found.verify)


def slowed(factor: Callable[[int], float], *methods: str) -> Callable[[list[Row]], None]:
    """Lets the clocks of every row, or of those of `methods`, show `factor(idx)` times as much; `idx` counts rows.

    All rows then begin so much later that none does before the one before it has ended.
    """

    def change(rows: list[Row]) -> None:
        most, began = max(1.0, *map(factor, range(len(rows)))), min(row["started_at"] for row in rows)
        for idx, row in enumerate(rows):
            row["started_at"] = began + (row["started_at"] - began) * most
            if row["method"] in (methods or (row["method"],)):
                scale_times(row, factor(idx))

    return change


def scale_times(row: Row, factor: float) -> None:
    """Lets the clocks of a row show `factor` times as much, each of them."""
    row |= {name: row[name] * factor for name in ("ttft_s", "decode_s", "e2e_s", "tpot_s")}
    row["step_gaps_s"] = [gap * factor for gap in row["step_gaps_s"]]


def each(method: str | None = None, **columns: Callable[[Row], Any]) -> Callable[[list[Row]], None]:
    """Sets columns in every row, or in those of one method, to what is made of the row."""

    def change(rows: list[Row]) -> None:
        for row in rows:
            if method in (None, row["method"]):
                row |= {name: of(row) for name, of in columns.items()}

    return change


def once(method: str, **columns: Any) -> Callable[[list[Row]], None]:
    """Sets columns of the first row of a method."""

    def change(rows: list[Row]) -> None:
        next(row for row in rows if row["method"] == method).update(columns)

    return change


def swapped(rows: list[Row], *names: str) -> None:
    """Exchanges the named columns of vanilla and adadecode in the first sample and repeat."""
    first = [row for row in rows if (row["sample_id"], row["repeat"]) == ("demo-math-000", 0)]
    a, b = (next(row for row in first if row["method"] == name) for name in ("vanilla", "adadecode"))
    for name in names:
        a[name], b[name] = b[name], a[name]


def other_prompt(row: Row) -> list[int]:
    return [*row["prompt_token_ids"][:-1], row["prompt_token_ids"][-1] + 1]


def altered_first(name: str, idx: int, value: int) -> Callable[[Row], list[int]]:
    return lambda row: [*row[name][:idx], value, *row[name][idx + 1 :]]


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
