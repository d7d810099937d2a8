"""HumanEval (arXiv 2107.03374): Python functions to complete from a signature and a docstring.

Rows have `task_id` and `prompt`; they come from the hub's `openai/openai_humaneval`, test split, or from a data file.

Plain prompt: the row's prompt as published. Chat prompt: `CHAT_INSTRUCTION`, then the prompt in a Python code block.

Nothing is scored: a score needs the model's code to be run, and a program that runs whatever a model writes has to be
sandboxed. The output texts are stored, so a harness that has a sandbox can score them.
"""

from pathlib import Path

from adadecode.records import Example
from adadecode.tasks.rows import HubDataset, Row, check_distinct, load_rows

HUB = HubDataset("openai/openai_humaneval", None, "test")
CHAT_INSTRUCTION = "Complete this Python function. Answer with the whole function in one Python code block."
REMEDY = "HumanEval rows hold a unique `task_id` and a `prompt`; for prompts of another form use --task jsonl"


def load(data_file: Path | None, limit: int | None) -> list[Example]:
    """The examples of the test split, or of `data_file`; `HumanEval/7` becomes the sample id `HumanEval-7`."""
    rows = load_rows(data_file or HUB, limit)
    sample_ids = [row.text("task_id", REMEDY).replace("/", "-") for row in rows]
    check_distinct(sample_ids, rows, REMEDY)
    return [to_example(row, sample_id) for row, sample_id in zip(rows, sample_ids, strict=True)]


def to_example(row: Row, sample_id: str) -> Example:
    """The example of one row; without a reference, as nothing is scored."""
    prompt = row.text("prompt", REMEDY)
    return Example(sample_id, prompt, chat_prompt=f"{CHAT_INSTRUCTION}\n\n```python\n{prompt.rstrip()}\n```")
