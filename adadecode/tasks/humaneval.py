"""HumanEval (arXiv 2107.03374): Python functions to complete from a signature and a docstring.

Rows have `task_id` and `prompt`; they come from the hub's `openai/openai_humaneval`, test split, or from a data file.

Plain prompt: the row's prompt as published. Chat prompt: `CHAT_INSTRUCTION`, then the prompt in a Python code block.

Nothing is scored: a score needs the model's code to be run, and a program that runs whatever a model writes has to be
sandboxed. The output texts are stored, so a harness that has a sandbox can score them.
"""

from adadecode.records import Example
from adadecode.settings import DataSettings
from adadecode.tasks.rows import HubDataset, Row
from adadecode.tasks.task import Task

CHAT_INSTRUCTION = "Complete this Python function. Answer with the whole function in one Python code block."
REMEDY = "HumanEval rows hold a unique `task_id` and a `prompt`; for prompts of another form use --task jsonl"


def example(row: Row, data: DataSettings) -> Example:
    """The example of one row; its task id `HumanEval/7` becomes the sample id `HumanEval-7`."""
    return to_example(row, row.text("task_id", REMEDY).replace("/", "-"))


def to_example(row: Row, sample_id: str) -> Example:
    """The example of one row; without a reference, as nothing is scored."""
    prompt = row.text("prompt", REMEDY)
    return Example(sample_id, prompt, chat_prompt=f"{CHAT_INSTRUCTION}\n\n```python\n{prompt.rstrip()}\n```")


TASK = Task(
    name="humaneval",
    description="HumanEval functions to complete, not scored",
    rows=HubDataset("openai/openai_humaneval", None, "test", revision="7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544"),
    size=164,
    fields=("task_id", "prompt"),
    example=example,
    id_remedy=REMEDY,
    domain="code",
    licence="MIT",
)
