"""Which samples are evaluated together, the same for any number of workers, and which planned rows are there."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adadecode.files import short_hash
from adadecode.records import Example, Shard
from adadecode.report.schema import PLAN

LEAST_SIZE, MOST_SHARDS, LARGEST_SIZE = 4, 2000, 64
HASHED_ROWS = 10_000  # of a plan at a time


def default_shard_size(num_samples: int) -> int:
    """How many of a run's `num_samples` are a shard where nobody said how many.

    LEAST_SIZE, more where that would be over MOST_SHARDS, never over LARGEST_SIZE (docs/scaling.md has the reasons). It
    depends on no number of workers, as the plan does not.
    """
    return min(LARGEST_SIZE, max(LEAST_SIZE, -(-num_samples // MOST_SHARDS)))


def make_plan(examples_by_task: Mapping[str, Sequence[Example]], shard_size: int) -> tuple[Shard, ...]:
    """Shards of at most `shard_size` examples of one task each, in data-set order, numbered from 0 over all tasks."""
    chunks = [
        (task, tuple(examples[start : start + shard_size]))
        for task, examples in examples_by_task.items()
        for start in range(0, len(examples), shard_size)
    ]
    return tuple(Shard(shard_idx, task, chunk) for shard_idx, (task, chunk) in enumerate(chunks))


def longest_first(shards: Sequence[Shard]) -> tuple[Shard, ...]:
    """`shards` in the order in which they are given out: by characters of their prompts, the longest first."""
    return tuple(sorted(shards, key=lambda shard: -sum(map(_prompt_len, shard.examples))))


def _prompt_len(example: Example) -> int:
    """Characters of the plain prompt, or of a conversation that has none, and of what is said later."""
    first = len(example.prompt) or sum(len(message.content) for message in example.messages)
    return first + sum(map(len, example.later_turns))


def plan_table(shards: Sequence[Shard]) -> pa.Table:
    """The plan as a table: one row per sample, with its shard, a hash of its prompt, and how many turns it has."""
    planned = [(shard, example) for shard in shards for example in shard.examples]
    columns = {
        "task": [shard.task for shard, _ in planned],
        "sample_id": [example.sample_id for _, example in planned],
        "shard": [shard.shard_idx for shard, _ in planned],
        "prompt_hash": [_prompt_hash(example) for _, example in planned],
        "num_turns": [example.num_turns for _, example in planned],
    }
    return pa.table(columns, schema=PLAN)


def _prompt_hash(example: Example) -> str:
    """A hash of what is decoded and scored; of a single prompt without messages before it that of version 0.1.0."""
    context = "".join(f"\0{message.role}\0{message.content}" for message in example.context)
    later = "".join(f"\0{said}" for said in example.later_turns)
    category = "" if example.category is None else f"\0{example.category}"
    return short_hash(f"{example.prompt}\0{example.chat_prompt}\0{example.reference}{context}{later}{category}")


def plan_hash(table: pa.Table) -> str:
    """A hash of the whole plan: samples, prompts and their shards; without later turns that of version 0.1.0."""
    of_before = table if pc.any(pc.greater(table["num_turns"], 1)).as_py() else table.drop_columns(["num_turns"])
    return short_hash(*_shown(of_before))


def _shown(table: pa.Table) -> Iterator[str]:
    """`repr(table.to_pylist())` in pieces: the rows of millions of samples need not be in memory at once."""
    for idx, batch in enumerate(table.to_batches(HASHED_ROWS)):
        yield (", " if idx else "[") + repr(batch.to_pylist())[1:-1]
    yield "]" if table.num_rows else "[]"


def num_planned(plan: pa.Table, methods: Sequence[str], repeats: int) -> int:
    """How many rows a run of `plan` comes to: turns of its samples x methods x repeats."""
    return sum(_num_turns(plan).values()) * len(methods) * repeats


def num_missing(plan: pa.Table, samples: pa.Table, methods: Sequence[str], repeats: int) -> int:
    """How many planned rows (turns of samples x methods x repeats) are not among `samples`."""
    num_turns = _num_turns(plan)
    sample_codes = _codes(pc.index_in(_keys(samples), pa.array(num_turns, pa.string())))
    method_codes = _codes(pc.index_in(samples["method"], pa.array(methods, pa.string())))
    turn, repeat = (samples[name].to_numpy() for name in ("turn", "repeat"))
    codes = np.column_stack([sample_codes, method_codes, turn, repeat])
    turns_of_row = np.array([0, *num_turns.values()])[sample_codes + 1]  # 0 of a sample that is not planned
    counts = (codes >= 0).all(axis=1) & (repeat < repeats) & (turn < turns_of_row)
    return num_planned(plan, methods, repeats) - len(np.unique(codes[counts], axis=0))


def num_unplanned(plan: pa.Table, samples: pa.Table, methods: Sequence[str], repeats: int) -> int:
    """How many rows of `samples` no plan asked for: another sample, turn, method or repeat, or in another shard."""
    num_turns = _num_turns(plan, "shard")
    sample_codes = _codes(pc.index_in(_keys(samples, "shard"), pa.array(num_turns, pa.string())))
    asked = (sample_codes >= 0) & np.isin(samples["method"].to_numpy(), list(methods))
    turn, repeat = (samples[name].to_numpy() for name in ("turn", "repeat"))
    turns_of_row = np.array([0, *num_turns.values()])[sample_codes + 1]
    return int((~(asked & (repeat >= 0) & (repeat < repeats) & (turn >= 0) & (turn < turns_of_row))).sum())


def _num_turns(plan: pa.Table, *more: str) -> dict[str, int]:
    """How many turns each planned sample has, by its key."""
    return dict(zip(_keys(plan, *more).to_pylist(), plan["num_turns"].to_pylist(), strict=True))


def _keys(table: pa.Table, *more: str) -> pa.ChunkedArray:
    columns = [table[name].cast(pa.string()) for name in ("task", "sample_id", *more)]
    return pc.binary_join_element_wise(*columns, "\0")


def _codes(indices: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(indices, -1).to_numpy()
