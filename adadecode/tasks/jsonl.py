"""Your own prompts: any .jsonl, .jsonl.gz or .parquet file with a column of texts.

Plain prompt and chat prompt are both the text as it stands. A row's `id` (text or a whole number, unique) becomes its
sample id; a row without one gets its 0-based number, such as `00012`. Ids are kept as they are, whatever characters they
have; where they are shown, control characters are escaped. Nothing is scored.
"""

from adadecode.errors import PromptError
from adadecode.records import Example
from adadecode.settings import DataSettings
from adadecode.tasks.data_files import shown
from adadecode.tasks.rows import Row
from adadecode.tasks.task import Task

ID_REMEDY = "make the ids distinct texts or whole numbers, or leave them out to have the rows numbered"
FIELD_REMEDY = "every row needs a prompt; name the column that holds it with --prompt-field"


def to_example(row: Row, data: DataSettings) -> Example:
    """The example of one row, its prompt taken from the column the settings name."""
    prompt = row.text(data.prompt_field, FIELD_REMEDY)
    return Example(_sample_id(row), prompt, prompt)


def _sample_id(row: Row) -> str:
    value = row.value("id")
    if value is None:
        return f"{row.idx:05d}"
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise PromptError(f"{row.where}: id {shown(value)} is not usable; {ID_REMEDY}")
    return row.text("id", ID_REMEDY)


TASK = Task(
    name="jsonl",
    description="your own prompts, not scored",
    rows=None,
    fields=("id",),
    example=to_example,
    id_remedy=ID_REMEDY,
)
