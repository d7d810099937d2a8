"""A table of a known schema from a file's bytes, whatever somebody did to the file."""

import pyarrow as pa
import pyarrow.compute as pc

from adadecode.printable import on_one_line
from adadecode.runs.parquet import read_parquet


def typed_table(content: bytes, schema: pa.Schema) -> pa.Table:
    """The Parquet table in `content` with the columns of `schema` and their types, then what else is there once.

    A column that may be null and is missing, as in files of older versions, is null. Raises ValueError, which says why in
    one line, when the bytes are no such table.
    """
    table = unchecked_table(content, schema)
    check_values(table, schema)
    return table


def unchecked_table(content: bytes, schema: pa.Schema) -> pa.Table:
    """The same with values that `check_values` was not asked about: it costs as much for one file as for many at once."""
    try:
        table = read_parquet(content)
        if table.schema.equals(schema):
            return table
        columns = [_column(table, field) for field in schema]
    except (pa.ArrowException, OSError) as error:
        raise ValueError(on_one_line(error)) from error
    names = table.schema.names
    others = [field for field in table.schema if field.name not in schema.names and names.count(field.name) == 1]
    of_now = pa.schema([*schema, *others], table.schema.metadata)
    return pa.table(columns + [table[field.name] for field in others], of_now)


def check_values(table: pa.Table, schema: pa.Schema) -> None:
    """Raises ValueError where a column that `schema` names lacks values that it must hold, in one table or several."""
    for field in schema:
        if not field.nullable or pa.types.is_list(field.type):
            _check_column(table[field.name], field)


def _column(table: pa.Table, field: pa.Field) -> pa.ChunkedArray:
    """The column `field` names; raises ValueError where it must hold values and does not."""
    num_found = table.schema.names.count(field.name)
    if num_found > 1 or not (num_found or field.nullable):
        raise ValueError(f"column {field.name} is there {num_found} times")
    column = table[field.name] if num_found else pa.chunked_array([pa.nulls(table.num_rows, field.type)])
    _check_column(column, field)
    return column if column.type.equals(field.type) else column.cast(field.type)


def _check_column(column: pa.ChunkedArray, field: pa.Field) -> None:
    if column.null_count and not field.nullable:
        raise ValueError(f"column {field.name} has rows without a value")
    if pa.types.is_list(column.type) and _lacks_values(pc.list_flatten(column)):
        raise ValueError(f"column {field.name} has lists in which a value is missing")


def _lacks_values(values: pa.ChunkedArray) -> bool:
    """Whether a value is missing among those of lists, or a part of one."""
    parts = values.combine_chunks().flatten() if pa.types.is_struct(values.type) else []
    return bool(values.null_count or any(part.null_count for part in parts))
