"""GSM8K (arXiv 2110.14168): grade-school word problems whose worked answers end in `#### <number>`.

Rows have `question` and `answer`; they come from the hub's `openai/gsm8k`, test split, or from a data file.

Plain prompt, for base models, without a trailing space:

    Question: {question}
    Answer:

Chat prompt: the question, an empty line and `CHAT_INSTRUCTION`.
"""

import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

from adadecode.errors import TaskDataError
from adadecode.records import Example
from adadecode.tasks.rows import HubDataset, Row, iterate_rows, shown

HUB = HubDataset("openai/gsm8k", "main", "test")
CHAT_INSTRUCTION = "Reason step by step, and end your answer with `#### <number>`."
REMEDY = "GSM8K rows hold `question` and `answer`; for prompts of another form use --task jsonl"

# A minus right after a word character or a bracket subtracts: `10-3` ends in 3.
NUMBER = re.compile(r"(?:(?<![\w)])-)?\$?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)")
MARKED_NUMBER = re.compile(rf"####\s*({NUMBER.pattern})")


def load(data_file: Path | None, limit: int | None, split: str = "test") -> list[Example]:
    """The examples of `split` on the hub, or of `data_file`, numbered by row."""
    return list(iterate(data_file, limit, split))


def iterate(data_file: Path | None, limit: int | None, split: str = "test") -> Iterator[Example]:
    """The same one after another."""
    for row_idx, row in enumerate(iterate_rows(data_file or HUB._replace(split=split), limit)):
        yield to_example(row, f"gsm8k-{row_idx:05d}")


def to_example(row: Row, sample_id: str) -> Example:
    """The example of one row; its reference is the answer's final number, such as `1200` for `#### $1,200`."""
    question, answer = row.text("question", REMEDY), row.text("answer", REMEDY)
    reference = _marked_number(answer)
    if reference is None:
        raise TaskDataError(f"{row.where}: answer {shown(answer)} has no `#### <number>`; {REMEDY}")
    return Example(
        sample_id=sample_id,
        prompt=f"Question: {question}\nAnswer:",
        chat_prompt=f"{question}\n\n{CHAT_INSTRUCTION}",
        reference=reference,
    )


def score(output_text: str, reference: str) -> bool:
    """Whether the output's final number equals `reference` in value.

    That is the number after the last `####`, or the last number in the text where none is marked. A base model that
    has answered may go on to invent the next question of the plain format; its text does not count.
    """
    answer = output_text.strip().partition("\nQuestion:")[0]
    number = _marked_number(answer) or _last_number(answer)
    return number is not None and Decimal(number) == Decimal(reference)


def _marked_number(text: str) -> str | None:
    numbers = MARKED_NUMBER.findall(text)
    return _bare(numbers[-1]) if numbers else None


def _last_number(text: str) -> str | None:
    numbers = NUMBER.findall(text)
    return _bare(numbers[-1]) if numbers else None


def _bare(number: str) -> str:
    return number.replace(",", "").replace("$", "")
