"""A row: in step with the schema, made of a generation, of an error, and of a sample that nobody survived."""

import subprocess
import sys
import types
from collections import Counter
from collections.abc import Sequence
from dataclasses import MISSING, fields
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, get_args, get_origin, get_type_hints

import pyarrow as pa
import pytest

from adadecode.evaluation.compare import Comparison
from adadecode.evaluation.rows import LOST, MAX_MESSAGE_LEN, SampleRow, commit_rows, lost_rows, turns
from adadecode.methods import METHODS, in_turn
from adadecode.records import Example, Generation, Rejected, Shard
from adadecode.report.schema import LOST_BY, SAMPLES
from adadecode.runs.folder import RunFolder, read_commits, read_samples
from adadecode.settings import EvalConfig

ADDED_BY_THE_COMMIT = {"run_id", "attempt"}
SHARD = Shard(3, "jsonl", (Example("s0", "w5", "w5"), Example("s1", "w6 w7", "w6 w7", "42")))
ARROW_OF = {str: [pa.string()], bool: [pa.bool_()], int: [pa.int32()], float: [pa.float64()]}
ARROW_OF |= {datetime: [pa.timestamp("us", "UTC")]}
ARROW_OF |= {
    Sequence[Rejected]: [pa.list_(pa.struct([(name, *ARROW_OF[of]) for name, of in get_type_hints(Rejected).items()]))]
}

GENERATION = Generation(
    output_token_ids=(5, 6, 7),
    finish_reason="length",
    ttft_s=0.5,
    e2e_s=2.5,
    step_gaps_s=(1.0, 1.0),
    num_rounds=2,
    layers_run=8,
    exits=(1, 2),
    drafted_per_exit=(1, 2),
    accepted_per_exit=(0, 1),
    draft_depths=(4, 2, 4),
)


def turn_of(method: str):
    (turn,) = turns((method,), SHARD, 1, 0, "w0")
    return turn


def generation_row(method: str) -> SampleRow:
    turn = turn_of(method)
    turn.prompt_token_ids = [6, 7]
    return turn.generation_row(GENERATION, text="w5 w6 w7", correct=None, logits_digest="ab", width=8)


def arrow_types(hint: Any) -> list[pa.DataType]:
    """The column types that hold a value of the annotation `hint`."""
    if isinstance(hint, types.UnionType):
        (hint,) = set(get_args(hint)) - {types.NoneType}
    if hint in ARROW_OF:
        return ARROW_OF[hint]
    if get_origin(hint) is not None and get_args(hint)[0] in (int, float):
        return [pa.list_(pa.int32())] if get_args(hint)[0] is int else [pa.list_(pa.float32())]
    return [pa.string()]  # a Literal


def test_a_row_has_the_columns_of_the_schema_in_its_order_and_types():
    columns = [field for field in SAMPLES if field.name not in ADDED_BY_THE_COMMIT]
    assert [field.name for field in fields(SampleRow)] == [column.name for column in columns]
    hints = get_type_hints(SampleRow)
    for column in columns:
        assert column.type in arrow_types(hints[column.name]), column


def test_what_the_schema_forbids_to_be_null_must_be_given():
    given = {field.name for field in fields(SampleRow) if field.default is MISSING}
    assert {field.name for field in SAMPLES if not field.nullable} - ADDED_BY_THE_COMMIT <= given
    assert not {field.name for field in fields(Comparison)} - {field.name for field in fields(SampleRow)}


def test_the_row_of_a_generation_has_its_numbers():
    row = generation_row("adadecode")
    assert (row.task, row.sample_id, row.method, row.repeat, row.shard) == ("jsonl", "s1", "adadecode", 0, 3)
    assert (row.status, row.finish_reason, row.error_type, row.parity) == ("ok", "length", None, None)
    assert (row.prompt_len, row.output_len, row.reference, row.lossy) == (2, 3, "42", False)
    assert (row.ttft_s, row.decode_s, row.e2e_s, row.tpot_s, row.layers_per_token) == (0.5, 2.0, 2.5, 1.0, 4.0)
    assert (row.num_drafted, row.num_accepted, row.exits) == (3, 1, (1, 2))


@pytest.mark.parametrize("method", METHODS)
def test_drafts_are_counted_only_where_there_can_be_some(method):
    row = generation_row(method)
    counted = [row.num_drafted, row.num_accepted, row.exits, row.drafted_per_exit, row.accepted_per_exit]
    assert {value is not None for value in [*counted, row.draft_depths]} == {METHODS[method].drafts}
    assert row.lossy is METHODS[method].is_lossy


def test_an_error_row_keeps_the_prompt_if_there_was_one_and_nothing_measured():
    turn = turn_of("vanilla")
    before = turn.error_row("TypeError", "no template")
    assert (before.status, before.finish_reason, before.error_type) == ("error", "error", "TypeError")
    assert (before.prompt_len, before.prompt_token_ids) == (None, None)
    turn.prompt_token_ids = [6, 7]
    after = turn.error_row("MemoryError", "x" * 2 * MAX_MESSAGE_LEN)
    assert (after.prompt_len, after.prompt_token_ids) == (2, [6, 7])
    assert after.error_message == "x" * MAX_MESSAGE_LEN
    known = {name for name, value in after.columns().items() if value is not None}
    assert known == {
        *("task", "sample_id", "method", "repeat", "turn", "shard", "status", "prompt_len", "prompt_token_ids"),
        *("finish_reason", "reference", "lossy", "order_idx", "worker_id", "started_at", "error_type"),
        "error_message",
    }


def test_a_turn_that_begins_again_has_the_later_time():
    turn = turn_of("vanilla")
    first = turn.started_at
    turn.begin()
    assert first <= turn.started_at <= datetime.now(UTC)
    assert turn.name == "jsonl/s1 vanilla"


@pytest.mark.parametrize("num_methods", [2, 3, 4])
def test_each_method_follows_each_other_as_often_as_the_other_follows_it(num_methods):
    methods = tuple(METHODS)[:num_methods]
    orders = [in_turn(methods, turn) for turn in range(2 * num_methods)]
    follows = Counter(pair for order in orders for pair in pairwise(order))
    assert all(num == follows[after, before] for (before, after), num in follows.items())


def test_a_lost_sample_is_an_error_row_for_each_method_and_repeat_in_the_order_of_their_turns():
    config = EvalConfig(model="tiny", task="jsonl", repeats=2, methods=("vanilla", "vanilla-w1"))
    rows = lost_rows(config, SHARD, 1, "out of time")
    assert [(row.repeat, row.order_idx, row.method) for row in rows] == [
        (repeat, order_idx, method)
        for repeat in range(2)
        for order_idx, method in enumerate(in_turn(config.methods, 3 + 1 + repeat))
    ]
    assert {(row.sample_id, row.worker_id, row.error_type) for row in rows} == {("s1", LOST_BY, LOST)}
    assert {row.error_message for row in rows} == {"the sample ended every worker that tried it: out of time"}


def test_committed_rows_are_read_back_with_their_run_and_attempt(tmp_path):
    folder = RunFolder.open(tmp_path / "run", "f00d", {})
    rows = [generation_row("vanilla"), turn_of("adadecode").error_row("ValueError", "bad")]
    outcome = commit_rows(folder, SHARD, rows, {"worker_id": "w0"})
    assert (outcome.num_samples, outcome.num_error_samples, outcome.num_output_tokens) == (1, 1, 3)
    (attempt,) = {commit["attempt"] for commit in read_commits(folder.location).values()}
    stored = {row["method"]: row for row in read_samples(folder.location).to_pylist()}
    for row in rows:
        found = stored[row.method]
        assert (found.pop("run_id"), found.pop("attempt")) == ("run", attempt)
        expected = {n: list(v) if isinstance(v, tuple) else v for n, v in row.columns().items()}
        assert found == expected


def test_a_shard_that_no_worker_survived_is_committed_by_the_driver(tmp_path):
    folder = RunFolder.open(tmp_path / "run", "f00d", {})
    config = EvalConfig(model="tiny", task="jsonl", methods=("vanilla",))
    rows = [row for sample_idx in range(2) for row in lost_rows(config, SHARD, sample_idx, "gone")]
    assert commit_rows(folder, SHARD, rows, None).num_error_samples == 2
    assert read_commits(folder.location)[3]["worker"] == {"worker_id": LOST_BY}


def test_rows_load_no_torch():
    """The driver of a cluster makes and commits rows, and decodes nothing."""
    code = "import sys, adadecode.evaluation.rows; assert not {'torch', 'transformers', 'ray'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
