"""CNN/DailyMail 3.0.0 (arXiv 1704.04368): news articles, each with highlights of three or four sentences.

Rows have `article` and `highlights`; they come from the hub's `abisee/cnn_dailymail`, test split, or from a data file.

Plain prompt, without a trailing space, as papers on self-speculative decoding have it:

    Article: {article}
    Summary:

Chat prompt: the article, an empty line and `CHAT_INSTRUCTION`. The reference is the highlights, by which
ROUGE scores an output (`adadecode/scoring/rouge.py`).

Worked examples (`--num-shots`) are rows of the training split: each plain prompt, a space and the highlights.
"""

from adadecode.records import Example
from adadecode.scoring.rouge import SCORER
from adadecode.settings import DataSettings
from adadecode.tasks.rows import HubDataset, Row
from adadecode.tasks.shots import Shot
from adadecode.tasks.task import Task

CHAT_INSTRUCTION = "Summarize this article in three or four sentences."
REMEDY = "CNN/DailyMail rows hold `article` and `highlights`; for prompts of another form use --task jsonl"


def example(row: Row, data: DataSettings) -> Example:
    """The example of one row, numbered by row: `cnn_dm-00000` and on."""
    article = row.text("article", REMEDY)
    return Example(
        sample_id=f"cnn_dm-{row.idx:05d}",
        prompt=f"Article: {article}\nSummary:",
        chat_prompt=f"{article}\n\n{CHAT_INSTRUCTION}",
        reference=row.text("highlights", REMEDY),
    )


def shot(row: Row, data: DataSettings) -> Shot:
    """One row as a worked example, answered by its highlights."""
    summary = row.text("highlights", REMEDY)
    return Shot(example(row, data), f" {summary}", summary)


TASK = Task(
    name="cnn_dm",
    description="CNN/DailyMail articles to summarise",
    rows=HubDataset(
        "abisee/cnn_dailymail",
        "3.0.0",
        "test",
        revision="96df5e686bee6baa90b8bee7c28b81fa3fa6223d",
        training_split="train",
    ),
    size=11490,
    fields=("article", "highlights"),
    example=example,
    shot=shot,
    licence="Apache-2.0",
    scorer=SCORER,
)
