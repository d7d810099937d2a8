"""Data sets: what each task's prompts are, and how an output is scored.

A data set is one file of this room and one row of `TASKS`.
"""

import difflib
import heapq
from collections.abc import Iterable, Iterator
from itertools import islice

from adadecode.errors import PromptError, TaskDataError, UsageError
from adadecode.files import short_hash
from adadecode.records import Example
from adadecode.settings import DataSettings, Domain, EvalConfig
from adadecode.tasks import cnn_dm, demo, gsm8k, humaneval, jsonl, mbpp, spec_bench, xsum
from adadecode.tasks.data_files import shown
from adadecode.tasks.rows import Row
from adadecode.tasks.task import Found, Task

TASKS = {
    task.name: task
    for task in (
        gsm8k.TASK,
        humaneval.TASK,
        mbpp.TASK,
        xsum.TASK,
        cnn_dm.TASK,
        spec_bench.TASK,
        jsonl.TASK,
        *demo.TASKS,
    )
}


def find_task(name: str) -> Task:
    """The task called `name`; raises UsageError, with the one that was probably meant, when there is none."""
    if name not in TASKS:
        known = ", ".join(TASKS)
        meant = difflib.get_close_matches(name.lower().replace("-", "_"), [*TASKS, "demo"], n=1)
        close = f"did you mean {meant[0]}? " if meant else ""
        raise UsageError(f"--task {name}: unknown task; {close}use demo (both demo tasks) or one of {known}")
    return TASKS[name]


def expand_task(name: str) -> tuple[str, ...]:
    """The tasks `name` stands for: both demo tasks for `demo`, itself for any other."""
    return tuple(task.name for task in demo.TASKS) if name == "demo" else (find_task(name).name,)


def task_domain(task: str) -> Domain | None:
    """The domain of a task's prompts, by which the demo's exit heads are chosen; None when unknown."""
    return find_task(task).domain


def load_examples(task: str, data: DataSettings) -> list[Example]:
    """The examples of `task` that `data` names: of its test split, with distinct sample ids.

    Raises `UsageError` for an unknown task or a setting it does not use, `TaskDataError` for unusable data, also as the
    PromptError of the first row that cannot be used.
    """
    return [_usable(found) for found in _iterate_distinct(task, data)]


def load_found(task: str, data: DataSettings) -> list[Found]:
    """What `load_examples` gives, and for a row that cannot be used the error that says why, at its place."""
    return list(_iterate_distinct(task, data))


def iterate_found(task: str, data: DataSettings) -> Iterator[Found]:
    """Yields the examples of `task` that `data` names, to train on: they need not fit in memory, unless they are shuffled.

    For a row that cannot be used it yields the error that says why. They are of the training split, and that sample ids
    are distinct is not checked. Raises UsageError for an unknown task or a setting it does not use, and TaskDataError for
    unusable data, when it gets there.
    """
    yield from _chosen(find_task(task).iterate(data, for_training=True), task, data)


def stops_of(config: EvalConfig, task: str) -> tuple[str, ...]:
    """The strings that end an output of `task`; raises UsageError where the task's own are wanted and it has none."""
    if not config.task_stops:
        return config.stop_strings or ()
    own = find_task(task).stops
    if not own:
        those = ", ".join(name for name, found in TASKS.items() if found.stops)
        raise UsageError(f"--task-stops: task {task} has no stop strings of its own ({those} do); give --stop-strings")
    return tuple(dict.fromkeys((*(config.stop_strings or ()), *own)))


def score(task: str, output_text: str, reference: str | None) -> float | None:
    """How good `output_text` is, by the task's metric: 1.0 has the answer. None for tasks that are not scored."""
    scored = find_task(task).score
    if scored is None:
        return None
    assert reference is not None, f"{task} example without a reference"
    return scored(output_text, reference)


def _iterate_distinct(task: str, data: DataSettings) -> Iterator[Found]:
    found = find_task(task)
    return _chosen(found.iterate(data), task, data, found.id_remedy)


def _usable(found: Found) -> Example:
    if isinstance(found, PromptError):
        raise found
    return found


def _chosen(
    rows: Iterable[tuple[Row, Found]], task: str, data: DataSettings, id_remedy: str | None = None
) -> Iterator[Found]:
    """What the rows give that `data` chooses, shuffled first where it says so.

    With `id_remedy` the ids of the rows that are looked at must be distinct: those left out by the offset are, and
    unless they are shuffled those past the limit are not.
    """
    num_read = None if data.limit is None else data.offset + data.limit
    seen = rows if data.shuffle_seed is not None else islice(rows, num_read)
    distinct = seen if id_remedy is None else _with_distinct_ids(seen, id_remedy)
    in_order = distinct if data.shuffle_seed is None else _shuffled(distinct, data.shuffle_seed, num_read)
    return _after_offset((found for _, found in in_order), task, data.offset)


def _shuffled(rows: Iterable[tuple[Row, Found]], seed: int, num_read: int | None) -> Iterable[tuple[Row, Found]]:
    """The first `num_read` of `rows` in the order of `seed`, all when None: by a hash, the same on every machine."""

    def key(placed: tuple[Row, Found]) -> str:
        return short_hash(f"{seed} {placed[0].idx}")

    return sorted(rows, key=key) if num_read is None else heapq.nsmallest(num_read, rows, key)


def _with_distinct_ids(rows: Iterable[tuple[Row, Found]], remedy: str) -> Iterator[tuple[Row, Found]]:
    """Raises `TaskDataError` if two rows have one id: their results could not be told apart."""
    places: dict[str, str] = {}
    for row, found in rows:
        if isinstance(found, Example):
            earlier = places.setdefault(found.sample_id, row.where)
            if earlier is not row.where:
                raise TaskDataError(f"{row.where}: id {shown(found.sample_id)} is taken by {earlier}; {remedy}")
        yield row, found


def _after_offset(rows: Iterable[Found], task: str, offset: int) -> Iterator[Found]:
    num_seen = 0
    for num_seen, found in enumerate(rows, start=1):
        if num_seen > offset:
            yield found
    if num_seen <= offset:
        raise UsageError(f"--offset {offset}: task {task} has {num_seen} samples; leave out fewer")
