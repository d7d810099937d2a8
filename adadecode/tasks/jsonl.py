"""Your own prompts: any .jsonl, .jsonl.gz or .parquet file with a column of texts.

Plain prompt and chat prompt are both the text as it stands. A row's `id` (text or a whole number, unique) becomes its
sample id; a row without one gets its 0-based number, such as `00012`. Nothing is scored.
"""

from collections.abc import Iterator
from pathlib import Path

from adadecode.errors import TaskDataError
from adadecode.records import Example
from adadecode.tasks.rows import Row, check_distinct, iterate_rows, load_rows, shown

ID_REMEDY = "make the ids distinct texts or whole numbers, or leave them out to have the rows numbered"
FIELD_REMEDY = "every row needs a prompt; name the column that holds it with --prompt-field"


def load(data_file: Path, prompt_field: str, limit: int | None) -> list[Example]:
    """One example per row of `data_file`, its prompt taken from `prompt_field`."""
    rows = load_rows(data_file, limit)
    sample_ids = [_sample_id(row, row_idx) for row_idx, row in enumerate(rows)]
    check_distinct(sample_ids, rows, ID_REMEDY)
    prompts = [row.text(prompt_field, FIELD_REMEDY) for row in rows]
    return [Example(*texts) for texts in zip(sample_ids, prompts, prompts, strict=True)]


def iterate(data_file: Path, prompt_field: str, limit: int | None) -> Iterator[Example]:
    """The same one after another; that the ids are distinct is not checked."""
    for row_idx, row in enumerate(iterate_rows(data_file, limit)):
        prompt = row.text(prompt_field, FIELD_REMEDY)
        yield Example(_sample_id(row, row_idx), prompt, prompt)


def _sample_id(row: Row, row_idx: int) -> str:
    value = row.fields.get("id")
    if value is None:
        return f"{row_idx:05d}"
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise TaskDataError(f"{row.where}: id {shown(value)} is not usable; {ID_REMEDY}")
    return row.text("id", ID_REMEDY)
