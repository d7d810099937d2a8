"""HumanEval (arXiv 2107.03374): Python functions to complete from a signature and a docstring.

Rows have `task_id`, `prompt`, `entry_point` and `test`; they come from the hub's `openai/openai_humaneval`, test split, or
from a data file.

Plain prompt: the row's prompt as published. Chat prompt: `CHAT_INSTRUCTION`, then the prompt in a Python code block.

A score takes running what the model wrote, so `eval` gives none and `adadecode score --allow-code-execution` does
(`adadecode/scoring/humaneval.py`). Rows without `entry_point` and `test` are decoded and have no score.
"""

from adadecode.records import Example
from adadecode.scoring.humaneval import SCORER, STOPS
from adadecode.scoring.programs import CodeReference
from adadecode.settings import DataSettings
from adadecode.tasks.rows import HubDataset, Row
from adadecode.tasks.task import Task

CHAT_INSTRUCTION = "Complete this Python function. Answer with the whole function in one Python code block."
REMEDY = "HumanEval rows hold a unique `task_id` and a `prompt`; for prompts of another form use --task jsonl"


def example(row: Row, data: DataSettings) -> Example:
    """The example of one row; its task id `HumanEval/7` becomes the sample id `HumanEval-7`."""
    return to_example(row, row.text("task_id", REMEDY).replace("/", "-"))


def to_example(row: Row, sample_id: str) -> Example:
    """The example of one row; its reference holds the tests, and is missing where the row has none."""
    prompt = row.text("prompt", REMEDY)
    reference = None
    if row.value("test") is not None and row.value("entry_point") is not None:
        name = row.text("entry_point", REMEDY)
        reference = CodeReference(f"{row.text('test', REMEDY)}\n\ncheck({name})", prompt, name).to_text()
    return Example(sample_id, prompt, f"{CHAT_INSTRUCTION}\n\n```python\n{prompt.rstrip()}\n```", reference)


TASK = Task(
    name="humaneval",
    description="HumanEval functions to complete",
    rows=HubDataset("openai/openai_humaneval", None, "test", revision="7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544"),
    size=164,
    fields=("task_id", "prompt", "entry_point", "test"),
    example=example,
    id_remedy=REMEDY,
    domain="code",
    licence="MIT",
    scorer=SCORER,
    stops=STOPS,
)
