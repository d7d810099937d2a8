"""Which samples are evaluated together, the same for any number of workers, and which planned rows are there."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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
    return tuple(sorted(shards, key=lambda shard: -sum(map(_prompt_len, shard.examples))))


def _prompt_len(example: Example) -> int:
    """Characters of the plain prompt, or of a conversation that has none."""
    return len(example.prompt) or sum(len(message.content) for message in example.messages)


def plan_table(shards: Sequence[Shard]) -> pa.Table:
    """The plan as a table: one row per sample, with its shard and a hash of its prompt."""
    rows = [
        {
            "task": shard.task,
            "sample_id": example.sample_id,
            "shard": shard.shard_idx,
            "prompt_hash": _prompt_hash(example),
        }
        for shard in shards
        for example in shard.examples
    ]
    return pa.Table.from_pylist(rows, schema=PLAN)


def _prompt_hash(example: Example) -> str:
    """A hash of what is decoded and scored; without messages before the prompt that of version 0.1.0."""
    context = "".join(f"\0{message.role}\0{message.content}" for message in example.context)
    return short_hash(f"{example.prompt}\0{example.chat_prompt}\0{example.reference}{context}")


def plan_hash(table: pa.Table) -> str:
    """A hash of the whole plan: samples, prompts and their shards."""
    return short_hash(repr(table.to_pylist()))


def num_missing(plan: pa.Table, samples: pa.Table, methods: Sequence[str], repeats: int) -> int:
    """How many planned rows (samples x methods x repeats) are not among `samples`."""
    planned = pc.unique(_keys(plan))
    sample_codes = pc.index_in(_keys(samples), planned)
    method_codes = pc.index_in(samples["method"], pa.array(methods, pa.string()))
    codes = np.column_stack([_codes(sample_codes), _codes(method_codes), samples["repeat"].to_numpy()])
    counts = (codes >= 0).all(axis=1) & (codes[:, 2] < repeats)
    return len(planned) * len(methods) * repeats - len(np.unique(codes[counts], axis=0))


def num_unplanned(plan: pa.Table, samples: pa.Table, methods: Sequence[str], repeats: int) -> int:
    """How many rows of `samples` no plan asked for: another sample, method or repeat, or in another shard."""
    planned = pc.index_in(_keys(samples, "shard"), pc.unique(_keys(plan, "shard")))
    asked = (_codes(planned) >= 0) & np.isin(samples["method"].to_numpy(), list(methods))
    repeat = samples["repeat"].to_numpy()
    return int((~(asked & (repeat >= 0) & (repeat < repeats))).sum())


def _keys(table: pa.Table, *more: str) -> pa.ChunkedArray:
    columns = [table[name].cast(pa.string()) for name in ("task", "sample_id", *more)]
    return pc.binary_join_element_wise(*columns, "\0")


def _codes(indices: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(indices, -1).to_numpy()
