"""GSM8K (arXiv 2110.14168): grade-school word problems whose worked answers end in `#### <number>`.

Rows have `question` and `answer`; they come from the hub's `openai/gsm8k`, test split, or from a data file.

Plain prompt, for base models, without a trailing space:

    Question: {question}
    Answer:

Chat prompt: the question, an empty line and `CHAT_INSTRUCTION`.

Worked examples (`--num-shots`) are rows of the training split: each question, a space and its whole answer.
"""

import re
from decimal import Decimal

from adadecode.errors import PromptError
from adadecode.records import Example
from adadecode.scoring.gsm8k import SCORER, STOPS
from adadecode.settings import DataSettings
from adadecode.tasks.data_files import shown
from adadecode.tasks.rows import HubDataset, Row
from adadecode.tasks.shots import Shot
from adadecode.tasks.task import Task

FIELDS = ("question", "answer")
METRIC = "final number"
CHAT_INSTRUCTION = "Reason step by step, and end your answer with `#### <number>`."
REMEDY = "GSM8K rows hold `question` and `answer`; for prompts of another form use --task jsonl"

# A minus right after a word character or a bracket subtracts: `10-3` ends in 3.
NUMBER = re.compile(r"(?:(?<![\w)])-)?\$?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)")
MARKED_NUMBER = re.compile(rf"####\s*({NUMBER.pattern})")


def example(row: Row, data: DataSettings) -> Example:
    """The example of one row, numbered by row: `gsm8k-00000` and on."""
    return to_example(row, f"gsm8k-{row.idx:05d}")


def to_example(row: Row, sample_id: str) -> Example:
    """The example of one row; its reference is the answer's final number, such as `1200` for `#### $1,200`."""
    question, answer = row.text("question", REMEDY), row.text("answer", REMEDY)
    reference = _marked_number(answer)
    if reference is None:
        raise PromptError(f"{row.where}: answer {shown(answer)} has no `#### <number>`; {REMEDY}")
    return Example(
        sample_id=sample_id,
        prompt=f"Question: {question}\nAnswer:",
        chat_prompt=f"{question}\n\n{CHAT_INSTRUCTION}",
        reference=reference,
    )


def shot(row: Row, data: DataSettings) -> Shot:
    """One row as a worked example, its whole answer as published."""
    solved, answer = to_example(row, ""), row.text("answer", REMEDY)
    return Shot(solved, f" {answer}", answer)


def score(output_text: str, reference: str) -> float:
    """1.0 when the output's final number equals `reference` in value, else 0.0.

    That is the number after the last `####`, or the last number in the text where none is marked. A base model that
    has answered may go on to invent the next question of the plain format; its text does not count.
    """
    answer = output_text.strip().partition("\nQuestion:")[0]
    number = _marked_number(answer) or _last_number(answer)
    return float(number is not None and Decimal(number) == Decimal(reference))


def _marked_number(text: str) -> str | None:
    numbers = MARKED_NUMBER.findall(text)
    return _bare(numbers[-1]) if numbers else None


def _last_number(text: str) -> str | None:
    numbers = NUMBER.findall(text)
    return _bare(numbers[-1]) if numbers else None


def _bare(number: str) -> str:
    return number.replace(",", "").replace("$", "")


TASK = Task(
    name="gsm8k",
    description="GSM8K grade-school word problems",
    rows=HubDataset(
        "openai/gsm8k", "main", "test", revision="e53f048856ff4f594e959d75785d2c2d37b678ee", training_split="train"
    ),
    size=1319,
    fields=FIELDS,
    example=example,
    shot=shot,
    domain="math",
    licence="MIT",
    metric=METRIC,
    score=score,
    scorer=SCORER,
    stops=STOPS,
)
