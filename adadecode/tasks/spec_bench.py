"""Spec-Bench (arXiv 2401.07851): 480 questions in 13 categories, those of MT-bench in two turns.

Rows have `question_id`, `category` and `turns`; they come from a data file of that form, such as the project's
`question.jsonl`.

Plain prompt of the first turn, without a trailing space, and of a later one, after all that was said before:

    USER: {turn}
    ASSISTANT:

Chat prompt: the turn. A turn's prompt holds the turns before it, each with vanilla's answer, so that all methods continue
one conversation and each turn is compared by itself. Nothing is scored. Training, tuning and `bench` take first turns.
"""

from adadecode.errors import PromptError
from adadecode.records import Example
from adadecode.settings import DataSettings
from adadecode.tasks.data_files import shown
from adadecode.tasks.rows import Row
from adadecode.tasks.task import Task
from adadecode.tasks.turns import plain_turn

REMEDY = "rows of Spec-Bench hold a unique `question_id`, a `category` and `turns`; for other prompts use --task jsonl"


def example(row: Row, data: DataSettings) -> Example:
    """The example of one row; its question id 81 becomes the sample id `spec_bench-81`."""
    first, *later = row.texts("turns", REMEDY)
    return Example(
        f"spec_bench-{_question_id(row)}",
        prompt=plain_turn(first),
        chat_prompt=first,
        later_turns=tuple(later),
        category=row.text("category", REMEDY),
    )


def _question_id(row: Row) -> int:
    value = row.present("question_id", REMEDY)
    if not isinstance(value, int) or isinstance(value, bool):
        raise PromptError(f"{row.where}: field 'question_id' is {shown(value)}, not a whole number; {REMEDY}")
    return value


TASK = Task(
    name="spec_bench",
    description="Spec-Bench conversations, by category",
    rows=None,
    size=480,
    fields=("question_id", "category", "turns"),
    example=example,
    id_remedy=REMEDY,
    licence="Apache-2.0",
)
