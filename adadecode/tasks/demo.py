"""The embedded prompts: 24 word problems in GSM8K's form and 24 functions in HumanEval's, written for this project.

Prompt formats and scoring are those of `gsm8k.py` and `humaneval.py`. Sample ids are `demo-math-000` and
`demo-code-000` and on.
"""

from adadecode.demo import PROMPTS_DIR
from adadecode.records import Example
from adadecode.scoring import humaneval as code_scoring
from adadecode.scoring.gsm8k import SCORER, STOPS
from adadecode.settings import DataSettings
from adadecode.tasks import gsm8k, humaneval
from adadecode.tasks.rows import Row
from adadecode.tasks.task import Task

LICENCE = "Apache-2.0"
NUM_PROMPTS = 24  # in each file
REMEDY = "the embedded prompts are damaged: reinstall adadecode"


def math_example(row: Row, data: DataSettings) -> Example:
    """The example of one word problem, numbered by row."""
    return gsm8k.to_example(row, f"demo-math-{row.idx:03d}")


def code_example(row: Row, data: DataSettings) -> Example:
    """The example of one function, under its row's own id."""
    return humaneval.to_example(row, row.text("id", REMEDY))


TASKS = (
    Task(
        name="demo-math",
        description="Embedded word problems",
        rows=PROMPTS_DIR / "math.jsonl",
        size=NUM_PROMPTS,
        fields=gsm8k.FIELDS,
        example=math_example,
        shot=gsm8k.shot,
        id_remedy=REMEDY,
        domain="math",
        licence=LICENCE,
        metric=gsm8k.METRIC,
        score=gsm8k.score,
        scorer=SCORER,
        stops=STOPS,
    ),
    Task(
        name="demo-code",
        description="Embedded functions to complete",
        rows=PROMPTS_DIR / "code.jsonl",
        size=NUM_PROMPTS,
        fields=("id", "prompt"),
        example=code_example,
        id_remedy=REMEDY,
        domain="code",
        licence=LICENCE,
        stops=code_scoring.STOPS,
    ),
)
