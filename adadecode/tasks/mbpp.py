"""MBPP (arXiv 2108.07732): short Python programs to write from one sentence and three asserts.

Rows have `task_id`, `text` (`prompt` in the sanitised edition), `code` and `test_list`, and may have `test_setup_code` or
`test_imports`; they come from the hub's `google-research-datasets/mbpp`, full edition, test split (task ids 11 to 510), or
from a data file, such as the published `mbpp.jsonl`, whose first ten rows are those the paper shows as examples.

Plain prompt, the paper's, which ends in a newline:

    You are an expert Python programmer, and here is your task: {text} Your code should pass these tests:

    {test_list, an assert a line}
    [BEGIN]

Chat prompt: the same without `[BEGIN]`, then an empty line and `CHAT_INSTRUCTION`.

Worked examples (`--num-shots`) are rows of the split `prompt`: the plain prompt, the code and a line `[DONE]`.

The reference holds the tests, and as `prompt` what has to stand before the code, such as imports that the tests need; no
function is named. A score takes running what the model wrote: `adadecode score --allow-code-execution`
(`adadecode/scoring/mbpp.py`).
"""

from adadecode.errors import PromptError
from adadecode.records import Example
from adadecode.scoring.mbpp import SCORER
from adadecode.scoring.programs import CodeReference
from adadecode.settings import DataSettings
from adadecode.tasks.data_files import shown
from adadecode.tasks.rows import HubDataset, Row
from adadecode.tasks.shots import Shot
from adadecode.tasks.task import Task

FIELDS = ("task_id", "text", "prompt", "code", "test_list", "test_setup_code", "test_imports")
DONE = "[DONE]"  # ends a program in the paper's prompt
INSTRUCTION = "You are an expert Python programmer, and here is your task"
CHAT_INSTRUCTION = "Answer with the code in one Python code block."
REMEDY = "MBPP rows hold a unique `task_id`, `text` or `prompt`, and `test_list`; for other prompts use --task jsonl"


def example(row: Row, data: DataSettings) -> Example:
    """The example of one row; its task id 11 becomes the sample id `mbpp-11`."""
    task = _task(row)
    reference = CodeReference("\n".join(row.texts("test_list", REMEDY)), prompt=_setup(row)).to_text()
    return Example(f"mbpp-{_task_id(row)}", f"{task}\n[BEGIN]\n", f"{task}\n\n{CHAT_INSTRUCTION}", reference)


def shot(row: Row, data: DataSettings) -> Shot:
    """One row as a worked example: its code to `[DONE]` as in the paper, or in a Python code block."""
    code = row.text("code", REMEDY)
    return Shot(example(row, data), f"{code}\n{DONE}", f"```python\n{code}\n```")


def _task(row: Row) -> str:
    """The task as both prompts word it, to its last test."""
    text = row.text("prompt" if "text" not in row.fields and "prompt" in row.fields else "text", REMEDY)
    tests = "\n".join(row.texts("test_list", REMEDY))
    return f"{INSTRUCTION}: {text} Your code should pass these tests:\n\n{tests}"


def _task_id(row: Row) -> int:
    value = row.present("task_id", REMEDY)
    if not isinstance(value, int) or isinstance(value, bool):
        raise PromptError(f"{row.where}: field 'task_id' is {shown(value)}, not a whole number; {REMEDY}")
    return value


def _setup(row: Row) -> str:
    """What has to run before the code, lines that end in a newline: nothing for most rows."""
    setup, imports = row.value("test_setup_code"), row.value("test_imports")
    lines = [setup] if isinstance(setup, str) and setup else []
    return "".join(f"{line}\n" for line in (*(imports if isinstance(imports, list) else []), *lines))


TASK = Task(
    name="mbpp",
    description="MBPP programs to write from a sentence and tests",
    rows=HubDataset(
        "google-research-datasets/mbpp",
        "full",
        "test",
        revision="4bb6404fdc6cacfda99d4ac4205087b89d32030c",
        training_split="train",
        shots_split="prompt",
    ),
    size=500,
    fields=FIELDS,
    example=example,
    shot=shot,
    id_remedy=REMEDY,
    domain="code",
    licence="CC-BY-4.0",
    scorer=SCORER,
    stops=(DONE,),
)
