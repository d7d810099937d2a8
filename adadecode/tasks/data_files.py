"""Rows of a data file: where each stands, its fields, and the names of all there are.

Of a Parquet file only the columns that are asked for are read, so what other columns hold does not matter.
"""

import gzip
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from adadecode.errors import TaskDataError
from adadecode.files import from_json
from adadecode.printable import on_one_line

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
COPY_AGAIN = "check the file, or copy it again"
ONE_PER_LINE = "write one JSON object per line"
TEXT_COLUMN = "write that column as text in UTF-8, or as whole numbers where they are ids"
BATCH_ROWS = 256  # of a Parquet file in memory at a time

# What a file that cannot be read begins with, the suffix with which that is right, and what to do without it
FIRST_BYTES = (
    (b"PAR1", ".parquet", "it is a Parquet file: name it .parquet"),
    (b"\x1f\x8b", ".gz", "it is compressed with gzip: name it .jsonl.gz"),
    (b"{", ".jsonl", "it is not compressed: name it .jsonl"),
    (b"\xff\xfe", None, "it is UTF-16: write it as UTF-8"),
    (b"\xfe\xff", None, "it is UTF-16: write it as UTF-8"),
    (b"version https://git-lfs", None, "it is a Git LFS pointer: fetch the file with `git lfs pull`"),
    (b"PK\x03\x04", None, "it is a zip archive: unpack it"),
    (b"\x28\xb5\x2f\xfd", None, "it is compressed with zstd: unpack it"),
    (b"\xfd7zXZ\x00", None, "it is compressed with xz: unpack it"),
    (b"BZh", None, "it is compressed with bzip2: unpack it"),
)


@dataclass(frozen=True)
class Unreadable:
    """The value of a field that is there and cannot be read, and why."""

    reason: str


class PlacedRow(NamedTuple):
    """One row: `where` it stands, the fields of it that were read, and the names of all it has.

    A field that cannot be read has Unreadable for its value.
    """

    where: str
    fields: dict[str, Any]
    names: Collection[str]


def file_rows(path: Path, wanted: Collection[str]) -> Iterator[PlacedRow]:
    """Yields the rows of `path` with at least the fields `wanted`, as far as there are any.

    Raises TaskDataError, which names the file and, where it is one row's fault, the row.
    """
    name = path.name.lower()
    try:
        if not path.is_file():
            raise TaskDataError(f"{path}: {_no_file(path)}")
        if name.endswith((".jsonl", ".jsonl.gz")):
            yield from _jsonl_rows(path)
        elif name.endswith(".parquet"):
            yield from _parquet_rows(path, wanted)
        else:
            raise TaskDataError(f"{path}: unknown suffix {path.suffix!r}; --data-file reads {', '.join(SUFFIXES)}")
    except (OSError, EOFError, zlib.error) as error:
        raise TaskDataError(f"{path}: cannot be read ({on_one_line(error)}); {_advice(path) or COPY_AGAIN}") from error


def shown(value: object) -> str:
    """`value` as an error message quotes it: on one line and short."""
    try:
        text = ascii(value)
    except (RecursionError, ValueError):  # nested too deep, or a number too long to print
        return f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def _no_file(path: Path) -> str:
    if not path.exists():
        return "no such file; give an existing one with --data-file"
    if not path.is_dir():
        return "no regular file; copy what it gives to a file"
    found = sorted(file.name for file in path.iterdir() if file.name.lower().endswith(SUFFIXES))
    if not found:
        return f"a folder, without {', '.join(SUFFIXES)} files in it; give one file"
    return f"a folder; give one of its files, such as {found[0]} ({len(found)} of them can be read)"


def _advice(path: Path) -> str | None:
    """What to do about a file that is something else than its suffix says; None when that cannot be told."""
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except OSError:
        return None
    for first_bytes, right_suffix, advice in FIRST_BYTES:
        if start.startswith(first_bytes) and not (right_suffix and path.name.lower().endswith(right_suffix)):
            return advice
    return None


def _jsonl_rows(path: Path) -> Iterator[PlacedRow]:
    # Bytes: only a newline ends a line (not U+2028, legal within JSON text), and bad UTF-8 gets its line named.
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        for line_number, line in enumerate(file, start=1):
            if line.strip():
                where = f"{path} line {line_number}"
                fields = _parse_line(line, where, path)
                yield PlacedRow(where, fields, fields)


def _parse_line(line: bytes, where: str, path: Path) -> dict[str, Any]:
    try:
        value = _value_of(line)
    except ValueError as error:
        advice = _advice(path) or ONE_PER_LINE
        raise TaskDataError(f"{where}: {shown(line)} is not JSON ({on_one_line(error)}); {advice}") from error
    if not isinstance(value, dict):
        raise TaskDataError(f"{where}: {shown(value)} is not an object; {ONE_PER_LINE}")
    return value


def _value_of(line: bytes) -> Any:
    """The JSON value in `line`; in texts that are not UTF-8 what is none of it is surrogates. Raises ValueError."""
    try:
        return from_json(line)
    except UnicodeDecodeError as error:
        try:
            return from_json(line.decode("utf-8", "surrogateescape"))
        except ValueError:
            raise error from None


def _parquet_rows(path: Path, wanted: Collection[str]) -> Iterator[PlacedRow]:
    try:
        yield from _columns_read(path, wanted)
    except (TaskDataError, OSError):
        raise
    except Exception as error:  # of a damaged file: pyarrow's own, of decoding names, of memory it would take
        advice = _advice(path) or COPY_AGAIN
        raise TaskDataError(f"{path}: not readable as Parquet ({on_one_line(error)}); {advice}") from error


def _columns_read(path: Path, wanted: Collection[str]) -> Iterator[PlacedRow]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        found = [name for name in wanted if name in names]
        for name in found:
            if names.count(name) > 1:
                raise TaskDataError(f"{path}: {names.count(name)} columns are called {name!r}; keep one of them")
        if not found and file.metadata.num_rows:  # one row says it for all
            yield PlacedRow(f"{path} row 0", {}, names)
            return
        row_idx = 0
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=found):
            columns = {name: batch.column(name) for name in found}
            for idx in range(batch.num_rows):
                where = f"{path} row {row_idx}"
                yield PlacedRow(where, {name: _value(columns[name][idx]) for name in found}, names)
                row_idx += 1


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except Exception as error:  # unrelated families: text that is no UTF-8, a date past Python's, an unknown time zone
        return Unreadable(on_one_line(error))
