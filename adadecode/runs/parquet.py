"""A Parquet file that anybody may have made: unpacked only where that takes little memory; nothing in it is run."""

from collections.abc import Collection, Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adadecode.printable import on_one_line

MAX_UNPACKED = 2**30  # bytes in memory, of one file: those of runs take a thousandth of that
MAX_PARTS = 10_000  # columns times groups of rows: those of a run's file are some 50
WIDTHS = {
    "BOOLEAN": 1,
    "INT32": 4,
    "INT64": 8,
    "INT96": 12,
    "FLOAT": 4,
    "DOUBLE": 8,
    "BYTE_ARRAY": 0,
}  # bytes of a value
OF_PLACE = 8  # bytes beside each value, and in each list it lies in: its level, or where it begins


def read_parquet(content: bytes, *, checksums: bool = False) -> pa.Table:
    """The table in `content`, the pages checked against their `checksums` where that is asked.

    Raises ValueError, which says why in one line, where the bytes are no whole Parquet file that can be read, are
    encrypted, or would take more than MAX_UNPACKED in memory. A dictionary or runs of one value make much of few bytes.
    """
    try:
        with _opened(content, checksums) as file:
            _check_size(file.metadata)
            repeated = list(_repeated_texts(file.metadata, file.schema_arrow.names))
            if not repeated:
                return file.read(use_threads=False)  # files are small, and several are read at a time
        with _opened(content, checksums, repeated) as file:
            return _written_out(file.read(use_threads=False), repeated)
    except (pa.ArrowException, OSError, MemoryError, OverflowError) as error:
        raise ValueError(on_one_line(error) or type(error).__name__) from error


def metadata_of(content: bytes) -> dict[bytes, bytes]:
    """The key-value metadata of the Parquet file `content`; raises ValueError where it is none."""
    try:
        with _opened(content) as file:
            return dict(file.schema_arrow.metadata or {})
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise ValueError(on_one_line(error) or type(error).__name__) from error


def _opened(content: bytes, checksums: bool = False, as_dictionary: list[str] | None = None) -> pq.ParquetFile:
    return pq.ParquetFile(
        pa.BufferReader(content), read_dictionary=as_dictionary, page_checksum_verification=checksums, pre_buffer=False
    )


def _check_size(found: pq.FileMetaData) -> None:
    """Raises ValueError where the values that a file says it has take too much memory, texts once for each page."""
    if found.num_columns * max(1, found.num_row_groups) > MAX_PARTS:
        raise ValueError(
            f"it has {found.num_columns} columns in {found.num_row_groups} groups of rows, and a table of a run "
            f"has at most {MAX_PARTS} parts"
        )
    schema = found.schema
    widths = [_width(schema.column(idx)) for idx in range(found.num_columns)]
    num_bytes = 0
    for idx, chunk in enumerate(_chunks(found)):
        if min(chunk.num_values, chunk.total_uncompressed_size) < 0:
            raise ValueError("its footer has negative sizes")
        num_bytes += max(chunk.num_values * widths[idx % len(widths)], chunk.total_uncompressed_size)
    _check(num_bytes)


def _width(column: pq.ColumnSchema) -> int:
    """The bytes in memory of one value of a `column`, less those of a text, with its places in lists and structs."""
    width = column.length if column.physical_type == "FIXED_LEN_BYTE_ARRAY" else WIDTHS.get(column.physical_type, 16)
    return width + OF_PLACE * (1 + column.max_repetition_level) + column.max_definition_level


def _repeated_texts(found: pq.FileMetaData, names: Collection[str]) -> Iterator[str]:
    """The columns of texts that might take too much where each value is the longest that there can be.

    Raises ValueError where that is in lists or structs, whose columns are not among the `names` of the table's.
    """
    num_bytes: dict[str, int] = {}
    for chunk in _chunks(found):
        if chunk.physical_type == "BYTE_ARRAY":
            longest = chunk.num_values * chunk.total_uncompressed_size
            num_bytes[chunk.path_in_schema] = num_bytes.get(chunk.path_in_schema, 0) + longest
    for name, longest in num_bytes.items():
        if longest > MAX_UNPACKED:
            if name not in names:
                raise ValueError(
                    f"column {on_one_line(name)} has texts in lists that may be too long, as no table of a run has"
                )
            yield name


def _written_out(table: pa.Table, names: list[str]) -> pa.Table:
    """`table` with texts in the columns `names` that were read as dictionaries; raises ValueError where too long."""
    for name in set(names) & set(table.schema.names):
        column = table[name]
        if not pa.types.is_dictionary(column.type):
            raise ValueError(f"column {on_one_line(name)} has texts that repeat, and its type is {column.type}")
        lengths = (pc.sum(pc.binary_length(part.dictionary).take(part.indices)).as_py() or 0 for part in column.chunks)
        _check(sum(lengths))
        idx = table.schema.get_field_index(name)
        field = table.schema.field(idx).with_type(column.type.value_type)
        table = table.set_column(idx, field, column.cast(field.type))
    return table


def _chunks(found: pq.FileMetaData) -> Iterator[pq.ColumnChunkMetaData]:
    for group_idx in range(found.num_row_groups):
        group = found.row_group(group_idx)
        yield from (group.column(idx) for idx in range(group.num_columns))


def _check(num_bytes: int) -> None:
    if num_bytes > MAX_UNPACKED:
        raise ValueError(
            f"its values would take {num_bytes / 2**30:.1f} GiB in memory, and a table of a run takes at most "
            f"{MAX_UNPACKED / 2**30:g} GiB"
        )
