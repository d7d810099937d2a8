"""Sharding: stable ids into shards, whatever computes them, and which planned rows are there."""

import json
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adadecode.files import short_hash
from adadecode.records import Example
from adadecode.report.schema import PLAN, SAMPLES
from adadecode.runs.plan import (
    default_shard_size,
    longest_first,
    make_plan,
    num_missing,
    num_planned,
    num_unplanned,
    plan_hash,
    plan_table,
)
from adadecode.runs.run import plan_run
from adadecode.settings import EvalConfig
from tests.folders import write_prompts


def examples(num: int, task: str = "a") -> list[Example]:
    return [Example(f"{task}-{i}", f"prompt {i}", f"chat {i}", str(i)) for i in range(num)]


def hash_of(by_task: dict[str, list[Example]], shard_size: int = 2) -> str:
    return plan_hash(plan_table(make_plan(by_task, shard_size)))


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    shard_size=st.integers(1, 15),
)
def test_every_sample_is_planned_once_in_order_in_shards_of_one_task(sizes, shard_size):
    by_task = {f"task{i}": examples(size, f"task{i}") for i, size in enumerate(sizes)}
    shards = make_plan(by_task, shard_size)
    assert [shard.shard_idx for shard in shards] == list(range(len(shards)))
    for task, expected in by_task.items():
        of_task = [shard.examples for shard in shards if shard.task == task]
        assert [example for chunk in of_task for example in chunk] == expected
        assert all(len(chunk) == shard_size for chunk in of_task[:-1])
        assert 1 <= len(of_task[-1]) <= shard_size


@given(st.integers(0, 10**8))
def test_a_run_of_any_size_has_few_shards_and_none_that_is_long(num_samples):
    size = default_shard_size(num_samples)
    num_shards = -(-num_samples // size)
    assert 4 <= size <= 64
    assert num_shards <= 2000 or size == 64
    assert size == 4 or num_shards > 1000, "not so few that many workers would wait for the last"
    assert size <= default_shard_size(num_samples + 1)


def test_what_is_not_given_is_settled_as_if_it_were(tiny, tmp_path):
    common = {"model": str(tiny.model), "task": "jsonl"}
    for num_samples, size in ((5, 4), (8000, 4), (8001, 5)):
        file = write_prompts(tmp_path / f"{num_samples}.jsonl", ["w5"] * num_samples)
        left_out, given = (
            EvalConfig(data_file=str(file), **common),
            EvalConfig(data_file=str(file), shard_size=size, **common),
        )
        settled, shards, plan = plan_run(left_out)
        assert (settled, len(shards)) == (given, -(-num_samples // size))
        assert settled.fingerprint() == given.fingerprint(), (
            "that of a run of an earlier version, where 4 was the default"
        )
        assert plan.equals(plan_run(given)[2])


def test_a_run_that_goes_on_keeps_its_plan_where_no_size_is_given(tiny, tmp_path):
    common = {"model": str(tiny.model), "task": "jsonl", "data_file": str(tiny.prompts)}
    for stored, size in ({"shard_size": 3}, 3), ({"shard_size": True}, 4), ({}, 4), (None, 4):
        (tmp_path / "run.json").write_text(json.dumps({"run_id": "run", "fingerprint": "f00d", "config": stored}))
        assert plan_run(EvalConfig(**common), tmp_path)[0].shard_size == size
    assert plan_run(EvalConfig(**common, shard_size=2), tmp_path)[0].shard_size == 2
    assert plan_run(EvalConfig(**common), tmp_path / "none")[0].shard_size == 4


def test_the_plan_table_has_a_row_per_sample_with_its_shard():
    table = plan_table(make_plan({"a": examples(3), "b": examples(1, "b")}, 2))
    assert table.schema == PLAN
    assert table["sample_id"].to_pylist() == ["a-0", "a-1", "a-2", "b-0"]
    assert table["shard"].to_pylist() == [0, 0, 1, 2]
    hashes = table["prompt_hash"].to_pylist()
    assert hashes[0] == hashes[3], "of the prompt alone"
    assert len(set(hashes)) == 3


def test_the_hash_is_the_same_on_every_machine_and_day():
    """A literal, since a hash that moves between versions would refuse to finish a run that is half done."""
    assert hash_of({"a": examples(3)}) == "b4df49d4dafd5f50"


@pytest.mark.parametrize("num_samples", [0, 1, 4, 5, 9])
def test_the_hash_of_a_plan_in_pieces_is_that_of_the_whole(num_samples, monkeypatch):
    table = plan_table(make_plan({"a": examples(num_samples)}, 2))
    monkeypatch.setattr("adadecode.runs.plan.HASHED_ROWS", 4)
    assert plan_hash(table) == short_hash(repr(table.drop_columns(["num_turns"]).to_pylist()))


@pytest.mark.parametrize("field", ["sample_id", "prompt", "chat_prompt", "reference"])
@pytest.mark.parametrize("idx", range(3))
def test_the_hash_changes_with_anything_of_any_sample(field, idx):
    changed = examples(3)
    changed[idx] = replace(changed[idx], **{field: "other"})
    assert hash_of({"a": changed}) != hash_of({"a": examples(3)})


def test_the_hash_changes_with_order_number_task_and_shard_size():
    plans = [
        hash_of({"a": examples(4)}),
        hash_of({"a": examples(4)[::-1]}),
        hash_of({"a": examples(3)}),
        hash_of({"b": examples(4)}),
        hash_of({"a": examples(4)}, shard_size=3),
    ]
    assert len(set(plans)) == len(plans)


def test_plan_and_fingerprint_do_not_depend_on_workers_threads_or_ray(tiny):
    common = {"model": str(tiny.model), "task": "jsonl", "data_file": str(tiny.prompts), "shard_size": 2}
    placements = [
        {"workers": 1, "threads": 1},
        {"workers": 7},
        {"local": True},
        {"address": "ray://head:10001"},
    ]
    configs = [EvalConfig(**common, **placement) for placement in placements]
    assert len({plan_hash(plan_run(config)[2]) for config in configs}) == 1
    assert len({config.fingerprint(plan="x") for config in configs}) == 1


def test_the_fingerprint_changes_with_every_setting_that_decides_results():
    base = EvalConfig()
    changed = [
        {"model": "x"},
        {"heads": "x"},
        {"task": "gsm8k"},
        {"limit": 3},
        {"methods": ("vanilla",)},
        {"decode": {"gamma": 0.5}},
        {"decode": {"max_new_tokens": 5}},
        {"dtype": "float32"},
        {"device": "cuda"},
        {"prompt_field": "question"},
        {"repeats": 2},
        {"check_logits": False},
    ]
    prints = [base.fingerprint(), base.fingerprint(plan="x"), *(EvalConfig(**c).fingerprint() for c in changed)]
    assert len(set(prints)) == len(prints)


def test_shards_with_the_longest_prompts_go_first_and_equal_ones_in_order():
    samples = [Example(str(i), "x" * length, "") for i, length in enumerate((3, 9, 5, 5, 1, 13))]
    shards = make_plan({"jsonl": samples}, 2)  # of 12, 10 and 14 characters
    assert [shard.shard_idx for shard in longest_first(shards)] == [2, 0, 1]
    alike = make_plan({"jsonl": samples[2:4]}, 1)
    assert longest_first(alike) == alike


METHODS = ("vanilla", "adadecode")


def rows_of(*shard_idxs: int) -> list[dict]:
    """The key columns of two samples of each shard, a row per method."""
    return [
        {"task": "jsonl", "sample_id": f"{shard_idx}-{i}", "turn": 0, "method": method, "repeat": 0, "shard": shard_idx}
        for shard_idx in shard_idxs
        for i in (1, 0)
        for method in METHODS
    ]


def samples(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SAMPLES)


def test_missing_are_the_planned_rows_that_no_commit_holds():
    plan = pa.table({"task": ["jsonl"] * 4, "sample_id": ["0-0", "0-1", "1-0", "1-1"], "num_turns": [1] * 4})
    assert num_missing(plan, samples([]), METHODS, 1) == 8
    assert num_missing(plan, samples(rows_of(0)), METHODS, 1) == 4
    assert num_missing(plan, samples(rows_of(0)), METHODS, 3) == 20
    both = samples(rows_of(0, 1))
    assert num_missing(plan, both, METHODS, 1) == 0
    assert num_missing(plan.slice(0, 1), both, METHODS, 1) == 0, "rows of no plan count for nothing"


def test_every_turn_of_a_sample_is_planned():
    plan = pa.table({"task": ["jsonl"] * 2, "sample_id": ["0-0", "0-1"], "shard": [0, 0], "num_turns": [3, 1]})
    assert num_planned(plan, METHODS, 2) == 16
    rows = rows_of(0)
    assert num_missing(plan, samples(rows), METHODS, 1) == 4
    later = [row | {"turn": turn} for turn in (1, 2) for row in rows]
    assert num_missing(plan, samples(rows + later), METHODS, 1) == 0
    assert num_unplanned(plan, samples(rows + later), METHODS, 1) == 4, "of the sample that has one turn"


def test_the_hash_of_a_conversation_changes_with_any_of_its_turns():
    talk = [replace(example, later_turns=("then", "and"), category="c") for example in examples(2)]
    changed = [{"later_turns": ("then",)}, {"later_turns": ("then", "or")}, {"category": "d"}, {"later_turns": ()}]
    prints = {hash_of({"a": [replace(talk[0], **change), talk[1]]}) for change in [{}, *changed]}
    assert len(prints) == 5


@pytest.mark.parametrize("changed", [{"sample_id": "x"}, {"method": "other"}, {"repeat": 1}, {"turn": 1}, {"shard": 7}])
def test_rows_that_were_never_planned_are_counted(changed):
    plan = pa.table({"task": ["jsonl"] * 2, "sample_id": ["0-0", "0-1"], "shard": [0, 0], "num_turns": [1, 1]})
    first, *others = rows_of(0)
    assert num_unplanned(plan, samples([first | changed, *others]), METHODS, 1) == 1
    assert num_unplanned(plan, samples([first, *others]), METHODS, 1) == 0
