"""Rows of a data set, read from a file or the Hugging Face hub; every row knows where it stands, for error messages."""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adadecode.errors import TaskDataError

Placed = tuple[str, dict[str, Any]]  # where a row stands, and its fields


@dataclass(frozen=True)
class HubDataset:
    """A data set on the hub: the split to read and, where there is one, the split to train on.

    `config` is None where the data set has only one.
    """

    name: str
    config: str | None
    split: str
    training_split: str | None = None

    def __str__(self) -> str:
        return "/".join(part for part in (self.name, self.config, self.split) if part is not None)

    def for_training(self) -> "HubDataset":
        """The same data set with the training split as the one to read."""
        assert self.training_split is not None, self.name
        return replace(self, split=self.training_split)


@dataclass(frozen=True)
class Row:
    """One row, the 0-based `idx` of its data set; `where` is its file and 1-based line, or its data set and row."""

    idx: int
    where: str
    fields: dict[str, Any]

    def text(self, field: str, remedy: str) -> str:
        """The text in `field`, unchanged. Raises `TaskDataError`, ending in `remedy`, if there is none to decode."""
        if field not in self.fields:
            present = ", ".join(self.fields) or "none"
            raise TaskDataError(f"{self.where}: no field {field!r} among its fields ({present}); {remedy}")
        value = self.fields[field]
        if not isinstance(value, str):
            raise TaskDataError(f"{self.where}: field {field!r} is {shown(value)}, not text; {remedy}")
        if not value.strip():
            raise TaskDataError(f"{self.where}: field {field!r} is {shown(value)}, which holds no text; {remedy}")
        if not _is_unicode(value):
            raise TaskDataError(f"{self.where}: field {field!r} is {shown(value)}, not valid Unicode; {remedy}")
        return value


def iterate_rows(source: Path | HubDataset) -> Iterator[Row]:
    """Yields the rows of `source` as they are read: they need not fit in memory, and none is checked before it is due."""
    found = _hub_rows(source) if isinstance(source, HubDataset) else _file_rows(source)
    idx = -1
    for idx, (where, fields) in enumerate(found):
        yield Row(idx, where, fields)
    if idx < 0:
        raise TaskDataError(f"{source}: the data set is empty; give one with at least one row with --data-file")


def shown(value: object) -> str:
    """`value` as an error message quotes it: on one line and short."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _file_rows(path: Path) -> Iterator[Placed]:
    name = path.name.lower()
    try:
        if not path.is_file():
            raise TaskDataError(f"{path}: no such file; give an existing one with --data-file")
        if name.endswith((".jsonl", ".jsonl.gz")):
            yield from _jsonl_rows(path)
        elif name.endswith(".parquet"):
            yield from _parquet_rows(path)
        else:
            raise TaskDataError(
                f"{path}: unknown suffix {path.suffix!r}; --data-file reads .jsonl, .jsonl.gz, .parquet"
            )
    except (OSError, EOFError, zlib.error) as error:
        raise TaskDataError(f"{path}: cannot be read ({error}); check the file, or copy it again") from error


def _jsonl_rows(path: Path) -> Iterator[Placed]:
    # Bytes: only a newline ends a line (not U+2028, legal within JSON text), and bad UTF-8 gets its line named.
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        for line_number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{path} line {line_number}", _parse_line(line, f"{path} line {line_number}")


def _parse_line(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TaskDataError(f"{where}: {shown(line)} is not JSON ({error}); write one JSON object per line") from error
    if not isinstance(value, dict):
        raise TaskDataError(f"{where}: {shown(value)} is not an object; write one JSON object per line")
    return value


def _parquet_rows(path: Path) -> Iterator[Placed]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches(batch_size=256) for row in batch.to_pylist())
            for row_idx, fields in enumerate(rows):
                yield f"{path} row {row_idx}", fields
    except pyarrow.ArrowException as error:
        raise TaskDataError(f"{path}: not readable as Parquet ({error}); check the file, or copy it again") from error


def _hub_rows(source: HubDataset) -> Iterator[Placed]:
    import datasets

    try:
        rows = datasets.load_dataset(source.name, source.config, split=source.split)
    except Exception as error:  # the hub's client raises unrelated families: connection, HTTP, cache, generation
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise TaskDataError(
            f"{source}: cannot be loaded from the Hugging Face hub ({reason}); "
            "check the network, or download the data set elsewhere and give the file with --data-file"
        ) from error
    for row_idx, fields in enumerate(rows):
        yield f"{source} row {row_idx}", dict(fields)


def _is_unicode(text: str) -> bool:
    """False for a lone surrogate (JSON can escape one): no tokenizer or Parquet file takes it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
