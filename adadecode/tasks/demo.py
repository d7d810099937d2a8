"""The embedded prompts: 24 word problems in GSM8K's form and 24 functions in HumanEval's, written for this project.

Prompt formats and scoring are those of `gsm8k.py` and `humaneval.py`.
"""

from adadecode.demo import PROMPTS_DIR
from adadecode.records import Example
from adadecode.tasks import gsm8k, humaneval
from adadecode.tasks.rows import load_rows

REMEDY = "the embedded prompts are damaged: reinstall adadecode"


def load_math(limit: int | None) -> list[Example]:
    """The word problems, `demo-math-000` and on."""
    rows = load_rows(PROMPTS_DIR / "math.jsonl", limit)
    return [gsm8k.to_example(row, f"demo-math-{row_idx:03d}") for row_idx, row in enumerate(rows)]


def load_code(limit: int | None) -> list[Example]:
    """The functions, under the ids of their rows: `demo-code-000` and on."""
    rows = load_rows(PROMPTS_DIR / "code.jsonl", limit)
    return [humaneval.to_example(row, row.text("id", REMEDY)) for row in rows]
