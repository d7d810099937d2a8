"""Data sets: what each task's prompts are, and how an output is scored.

A data set is one file of this room and one row of `TASKS`.
"""

from collections.abc import Iterable, Iterator
from itertools import islice

from adadecode.errors import TaskDataError, UsageError
from adadecode.records import Example
from adadecode.settings import DataSettings, Domain
from adadecode.tasks import demo, gsm8k, humaneval, jsonl
from adadecode.tasks.rows import Row
from adadecode.tasks.task import Task

TASKS = {task.name: task for task in (gsm8k.TASK, humaneval.TASK, jsonl.TASK, *demo.TASKS)}


def find_task(name: str) -> Task:
    """The task called `name`; raises UsageError when there is none."""
    if name not in TASKS:
        known = ", ".join(TASKS)
        raise UsageError(f"--task {name}: unknown task; use demo (both demo tasks) or one of {known}")
    return TASKS[name]


def expand_task(name: str) -> tuple[str, ...]:
    """The tasks `name` stands for: both demo tasks for `demo`, itself for any other."""
    return tuple(task.name for task in demo.TASKS) if name == "demo" else (find_task(name).name,)


def task_domain(task: str) -> Domain | None:
    """The domain of a task's prompts, by which the demo's exit heads are chosen; None when unknown."""
    return find_task(task).domain


def load_examples(task: str, data: DataSettings) -> list[Example]:
    """The examples of `task` that `data` names: of its test split, with distinct sample ids.

    Raises `UsageError` for an unknown task or a setting it does not use, `TaskDataError` for unusable data.
    """
    found = find_task(task)
    rows = islice(found.iterate(data), _num_read(data))
    return list(_after_offset(_with_distinct_ids(rows, found.id_remedy), task, data.offset))


def iterate_examples(task: str, data: DataSettings) -> Iterator[Example]:
    """Yields the examples of `task` that `data` names, to train on: they need not fit in memory.

    They are of the training split, and that sample ids are distinct is not checked. Raises UsageError for an unknown task
    or a setting it does not use, and TaskDataError for unusable data, when it gets there.
    """
    rows = islice(find_task(task).iterate(data, for_training=True), _num_read(data))
    yield from _after_offset((example for _, example in rows), task, data.offset)


def score(task: str, output_text: str, reference: str | None) -> float | None:
    """How good `output_text` is, by the task's metric: 1.0 has the answer. None for tasks that are not scored."""
    scored = find_task(task).score
    if scored is None:
        return None
    assert reference is not None, f"{task} example without a reference"
    return scored(output_text, reference)


def _num_read(data: DataSettings) -> int | None:
    """How many rows are looked at, so checked: those left out by the offset are, those past the limit are not."""
    return None if data.limit is None else data.offset + data.limit


def _with_distinct_ids(rows: Iterable[tuple[Row, Example]], remedy: str) -> Iterator[Example]:
    """Raises `TaskDataError` if two rows have one id: their results could not be told apart."""
    places: dict[str, str] = {}
    for row, example in rows:
        earlier = places.setdefault(example.sample_id, row.where)
        if earlier is not row.where:
            raise TaskDataError(f"{row.where}: id {example.sample_id!r} is taken by {earlier}; {remedy}")
        yield example


def _after_offset(examples: Iterable[Example], task: str, offset: int) -> Iterator[Example]:
    num_seen = 0
    for num_seen, example in enumerate(examples, start=1):
        if num_seen > offset:
            yield example
    if num_seen <= offset:
        raise UsageError(f"--offset {offset}: task {task} has {num_seen} samples; leave out fewer")
