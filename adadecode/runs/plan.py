"""Which samples are evaluated together: stable ids into shards, the same for any number of workers."""

from collections.abc import Mapping, Sequence

import pyarrow as pa

from adadecode.files import short_hash
from adadecode.records import Example, Shard
from adadecode.report.schema import PLAN


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
    return tuple(sorted(shards, key=lambda shard: -sum(len(example.prompt) for example in shard.examples)))


def plan_table(shards: Sequence[Shard]) -> pa.Table:
    """The plan as a table: one row per sample, with its shard and a hash of its prompt."""
    rows = [
        {
            "task": shard.task,
            "sample_id": example.sample_id,
            "shard": shard.shard_idx,
            "prompt_hash": short_hash(f"{example.prompt}\0{example.chat_prompt}\0{example.reference}"),
        }
        for shard in shards
        for example in shard.examples
    ]
    return pa.Table.from_pylist(rows, schema=PLAN)


def plan_hash(table: pa.Table) -> str:
    """A hash of the whole plan: samples, prompts and their shards."""
    return short_hash(repr(table.to_pylist()))
