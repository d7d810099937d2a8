"""Data sets: what each task's prompts are, and how an output is scored.

A task is known here by name; its file holds its prompt formats, its loading and its scoring.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adadecode.errors import UsageError
from adadecode.records import Example
from adadecode.tasks import demo, gsm8k, humaneval, jsonl

Domain = Literal["math", "code"]


@dataclass(frozen=True)
class Task:
    """What `adadecode tasks` says of a task. `domain` is None where the prompts may be of any kind."""

    description: str
    source: str
    domain: Domain | None


TASKS = {
    "gsm8k": Task("GSM8K grade-school word problems, scored by final number", f"{gsm8k.HUB} or --data-file", "math"),
    "humaneval": Task("HumanEval functions to complete, not scored", f"{humaneval.HUB} or --data-file", "code"),
    "jsonl": Task("your own prompts, not scored", "--data-file with the column --prompt-field", None),
    "demo-math": Task("24 word problems, scored by final number", "embedded", "math"),
    "demo-code": Task("24 functions to complete, not scored", "embedded", "code"),
}
DEMO_TASKS = ("demo-math", "demo-code")


def expand_task(name: str) -> tuple[str, ...]:
    """The tasks `name` stands for: both demo tasks for `demo`, itself for any other."""
    if name == "demo":
        return DEMO_TASKS
    _find(name)
    return (name,)


def task_domain(task: str) -> Domain | None:
    """The domain of a task's prompts, by which the demo's exit heads are chosen; None when unknown."""
    return _find(task).domain


def load_examples(
    task: str,
    *,
    data_file: Path | None,
    prompt_field: str = "prompt",
    offset: int = 0,
    limit: int | None = None,
    for_training: bool = False,
) -> list[Example]:
    """The first `limit` examples of `task` after `offset`, all when None, with distinct sample ids.

    From the hub come test splits, or training splits `for_training`. Raises `UsageError` for an unknown task or a
    setting it does not use, `TaskDataError` for unusable data.
    """
    _check_settings(task, data_file, prompt_field, for_training)
    last = None if limit is None else offset + limit
    match task:
        case "gsm8k":
            examples = gsm8k.load(data_file, last, "train" if for_training else "test")
        case "humaneval":
            examples = humaneval.load(data_file, last)
        case "demo-math":
            examples = demo.load_math(last)
        case "demo-code":
            examples = demo.load_code(last)
        case _:
            assert data_file is not None, task
            examples = jsonl.load(data_file, prompt_field, last)
    if offset >= len(examples):
        raise UsageError(f"--offset {offset}: task {task} has {len(examples)} samples; leave out fewer")
    return examples[offset:]


def iterate_examples(
    task: str, *, data_file: Path | None, prompt_field: str = "prompt", offset: int = 0, limit: int | None = None
) -> Iterator[Example]:
    """What `load_examples` gives `for_training`, one after another, so that they need not fit in memory.

    That sample ids are distinct is not checked. Raises as `load_examples` does, what the data is to blame for when it
    gets there.
    """
    if task in ("gsm8k", "jsonl"):
        _check_settings(task, data_file, prompt_field, for_training=True)
        last = None if limit is None else offset + limit
        examples = gsm8k.iterate(data_file, last, "train") if task == "gsm8k" else None
        if examples is None:
            assert data_file is not None, task
            examples = jsonl.iterate(data_file, prompt_field, last)
        yield from _after_offset(examples, task, offset)
    else:
        yield from load_examples(
            task, data_file=data_file, prompt_field=prompt_field, offset=offset, limit=limit, for_training=True
        )


def _after_offset(examples: Iterable[Example], task: str, offset: int) -> Iterator[Example]:
    num_seen = 0
    for num_seen, example in enumerate(examples, start=1):
        if num_seen > offset:
            yield example
    if num_seen <= offset:
        raise UsageError(f"--offset {offset}: task {task} has {num_seen} samples; leave out fewer")


def score(task: str, output_text: str, reference: str | None) -> bool | None:
    """Whether `output_text` has the example's answer; None for tasks that are not scored."""
    if task_domain(task) != "math":
        return None
    assert reference is not None, f"{task} example without a reference"
    return gsm8k.score(output_text, reference)


def _check_settings(task: str, data_file: Path | None, prompt_field: str, for_training: bool) -> None:
    """Raises UsageError for an unknown task, a setting it does not use, or one it lacks."""
    _find(task)
    if data_file is not None and task in DEMO_TASKS:
        raise UsageError(f"--data-file {data_file}: task {task} has embedded prompts; drop it, or use --task jsonl")
    if prompt_field != "prompt" and task != "jsonl":
        raise UsageError(f"--prompt-field {prompt_field}: task {task} has fixed fields; drop it, or use --task jsonl")
    if for_training and task == "humaneval" and data_file is None:
        raise UsageError("--data-file is missing: humaneval has no training split; train on prompts of your own")
    if task == "jsonl" and data_file is None:
        raise UsageError(
            "--data-file is missing: task jsonl reads your prompts from a .jsonl, .jsonl.gz or .parquet file"
        )


def _find(task: str) -> Task:
    if task not in TASKS:
        known = ", ".join(TASKS)
        raise UsageError(f"--task {task}: unknown task; use demo (both demo tasks) or one of {known}")
    return TASKS[task]
