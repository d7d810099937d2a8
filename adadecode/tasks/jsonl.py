"""Your own prompts: any .jsonl, .jsonl.gz or .parquet file with a column of texts or of conversations.

Plain prompt and chat prompt are both the text as it stands. A list in the column `--prompt-field`, or in `messages` where
there is no column `prompt`, is a conversation: messages with a `role` and a `content`, the last a user's, which go through
the chat template as they stand. One of a single message is a prompt like any other.

A row's `id` (text or a whole number, unique) becomes its sample id; a row without one gets its 0-based number, such as
`00012`. Ids are kept as they are, whatever characters they have; where they are shown, control characters are escaped.
Nothing is scored.
"""

from adadecode.errors import PromptError
from adadecode.records import Example
from adadecode.settings import DataSettings
from adadecode.tasks.data_files import shown
from adadecode.tasks.messages import conversation
from adadecode.tasks.rows import Row
from adadecode.tasks.task import Task

ID_REMEDY = "make the ids distinct texts or whole numbers, or leave them out to have the rows numbered"
FIELD_REMEDY = "every row needs a prompt or `messages`; name the column that holds it with --prompt-field"
MESSAGES = "messages"


def to_example(row: Row, data: DataSettings) -> Example:
    """The example of one row, its prompt or conversation taken from the column the settings name."""
    field = data.prompt_field
    if field == "prompt" and field not in row.fields and MESSAGES in row.fields:
        field = MESSAGES
    if not isinstance(row.present(field, FIELD_REMEDY), list):
        prompt = row.text(field, FIELD_REMEDY)
        return Example(_sample_id(row), prompt, prompt)
    *context, last = conversation(row, field)
    return Example(_sample_id(row), "" if context else last.content, last.content, context=tuple(context))


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
    description="your own prompts",
    rows=None,
    has_prompt_field=True,
    fields=("id", MESSAGES),
    example=to_example,
    id_remedy=ID_REMEDY,
)
