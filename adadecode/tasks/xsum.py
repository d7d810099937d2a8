"""XSum (arXiv 1808.08745): BBC articles, each with a summary of one sentence.

Rows have `document` and `summary`; they come from the hub's `EdinburghNLP/xsum`, test split, or from a data file.

Plain prompt, without a trailing space, as papers on self-speculative decoding have it:

    Article: {document}
    Summary:

Chat prompt: the article, an empty line and `CHAT_INSTRUCTION`. The reference is the summary, by which
ROUGE scores an output (`adadecode/scoring/rouge.py`).

Worked examples (`--num-shots`) are rows of the training split: each plain prompt, a space and the summary.
"""

from adadecode.records import Example
from adadecode.scoring.rouge import SCORER
from adadecode.settings import DataSettings
from adadecode.tasks.rows import HubDataset, Row
from adadecode.tasks.shots import Shot
from adadecode.tasks.task import Task

CHAT_INSTRUCTION = "Summarize this article in one sentence."
REMEDY = "XSum rows hold `document` and `summary`; for prompts of another form use --task jsonl"


def example(row: Row, data: DataSettings) -> Example:
    """The example of one row, numbered by row: `xsum-00000` and on."""
    document = row.text("document", REMEDY)
    return Example(
        sample_id=f"xsum-{row.idx:05d}",
        prompt=f"Article: {document}\nSummary:",
        chat_prompt=f"{document}\n\n{CHAT_INSTRUCTION}",
        reference=row.text("summary", REMEDY),
    )


def shot(row: Row, data: DataSettings) -> Shot:
    """One row as a worked example, answered by its summary."""
    summary = row.text("summary", REMEDY)
    return Shot(example(row, data), f" {summary}", summary)


TASK = Task(
    name="xsum",
    description="XSum articles to summarise in a sentence",
    rows=HubDataset(
        "EdinburghNLP/xsum", None, "test", revision="7d4d486c2f8ef850b1a11aead99b894ff3dd7da9", training_split="train"
    ),
    size=11334,
    fields=("document", "summary"),
    example=example,
    shot=shot,
    scorer=SCORER,
)
