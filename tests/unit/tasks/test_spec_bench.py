"""Spec-Bench: conversations decoded turn by turn, rows and parity per turn, categories in the summary."""

import json
import shutil

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from adadecode.errors import TaskDataError
from adadecode.evaluation import worker as evaluation_worker
from adadecode.evaluation.capacity import plan_capacity, read_rates
from adadecode.evaluation.rows import UNANSWERED, lost_rows
from adadecode.records import Message, Shard
from adadecode.runs.folder import read_run, read_samples
from adadecode.runs.run import plan_run
from adadecode.settings import DataSettings, EvalConfig, build_settings
from adadecode.tasks import load_examples
from adadecode.tasks.turns import at_turn
from tests.folders import undo_shard
from tests.planting import plant
from tests.unit.tasks.test_tasks import write_jsonl

ROWS = [
    {"question_id": 81, "category": "writing", "turns": ["w10 w20", "w30 w5"]},
    {"question_id": 82, "category": "qa", "turns": ["w11 w40"]},
    {"question_id": 83, "category": "writing", "turns": ["w12", "w13", "w14"]},
]


@pytest.fixture
def file(tmp_path):
    return write_jsonl(tmp_path / "question.jsonl", *ROWS)


@pytest.fixture(scope="module")
def run(cli, tiny, tmp_path_factory):
    """A finished run of the three conversations with two methods under the parity contract, two repeats."""
    folder = tmp_path_factory.mktemp("spec")
    file = write_jsonl(folder / "question.jsonl", *ROWS)
    flags = tiny.flags(task="spec_bench", data_file=file, repeats=2)
    result = cli("eval", "--local", *flags, "--out", folder / "run")
    assert result.exit_code == 0, result.stderr
    return folder / "run", flags, result


def test_a_sample_has_its_turns_and_category(file):
    first, second, third = load_examples("spec_bench", DataSettings(data_file=str(file)))
    assert (first.sample_id, first.category, first.num_turns) == ("spec_bench-81", "writing", 2)
    assert (first.prompt, first.chat_prompt, first.later_turns) == (
        "USER: w10 w20\nASSISTANT:",
        "w10 w20",
        ("w30 w5",),
    )
    assert (second.num_turns, third.num_turns) == (1, 3)


def test_a_later_turn_holds_what_was_said_and_answered_before(file):
    third = load_examples("spec_bench", DataSettings(data_file=str(file), system_prompt="Brief."))[2]
    assert at_turn(third, ()) == third
    last = at_turn(third, (" one", " two"))
    assert last.prompt == ("Brief.\n\nUSER: w12\nASSISTANT: one\n\nUSER: w13\nASSISTANT: two\n\nUSER: w14\nASSISTANT:")
    assert last.messages == (
        Message("system", "Brief."),
        Message("user", "w12"),
        Message("assistant", " one"),
        Message("user", "w13"),
        Message("assistant", " two"),
        Message("user", "w14"),
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"turns": []}, "field 'turns' is [], no list of texts"),
        ({"turns": ["a", ""]}, "text 1 of 'turns' is '', which holds no text"),
        ({"question_id": "81"}, "field 'question_id' is '81', not a whole number"),
        ({"category": None}, "field 'category' is None, not text"),
    ],
)
def test_a_row_that_is_no_conversation_is_named(changed, said, tmp_path):
    file = write_jsonl(tmp_path / "q.jsonl", ROWS[0] | changed)
    with pytest.raises(TaskDataError) as caught:
        load_examples("spec_bench", DataSettings(data_file=str(file)))
    assert f"line 1: {said}; rows of Spec-Bench hold" in str(caught.value)


def test_a_file_without_turns_lists_its_fields(tmp_path, usage_error):
    file = write_jsonl(tmp_path / "q.jsonl", {"question_id": 1, "category": "qa", "prompt": "w1"})
    line = usage_error("tasks", "spec_bench", "--data-file", file)
    assert "line 1: no field 'turns' among its fields (question_id, category, prompt)" in line


def test_every_turn_is_a_row_of_each_method_with_its_own_tokens_clocks_and_parity(run):
    rows = read_samples(run[0]).to_pylist()
    assert len(rows) == 6 * 3 * 2  # turns, methods, repeats
    assert {(row["sample_id"], row["turn"]) for row in rows} == {
        *(("spec_bench-81", turn) for turn in range(2)),
        ("spec_bench-82", 0),
        *(("spec_bench-83", turn) for turn in range(3)),
    }
    for row in rows:
        assert row["status"] == "ok"
        assert row["e2e_s"] > row["ttft_s"] > 0
        assert row["category"] == ("qa" if row["sample_id"] == "spec_bench-82" else "writing")
        assert row["parity"] == (None if row["method"] == "vanilla" else "exact")
    assert "parity 12/12, logits 12/12" in run[2].stdout


def test_a_turns_prompt_is_the_conversation_with_vanillas_answers(run, tiny):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.model)
    rows = {
        (row["turn"], row["method"]): row
        for row in read_samples(run[0]).to_pylist()
        if row["sample_id"] == "spec_bench-83" and row["repeat"] == 0
    }
    text = "USER: w12\nASSISTANT:"
    for turn, said in enumerate(["w13", "w14", None]):
        for method in ("vanilla", "vanilla-w1", "adadecode"):
            assert rows[turn, method]["prompt_token_ids"] == tokenizer(text).input_ids
        text += f"{rows[turn, 'vanilla']['output_text']}\n\nUSER: {said}\nASSISTANT:"


def test_categories_are_rows_of_the_summary_and_count_for_nothing_else(run, cli):
    summary = pq.read_table(run[0] / "summary.parquet")
    lines = [(row["category"], row["method"], row["n"]) for row in summary.to_pylist()]
    assert lines == [
        *((None, method, 12) for method in ("vanilla", "vanilla-w1", "adadecode")),
        *(("writing", method, 10) for method in ("vanilla", "vanilla-w1", "adadecode")),
        *(("qa", method, 2) for method in ("vanilla", "vanilla-w1", "adadecode")),
    ]
    shown = run[2].stdout
    assert "- writing" in shown
    assert "- qa" in shown
    assert cli("report", run[0].parent).stdout.count("spec_bench") == 1
    verify = pq.read_table(run[0] / "verify.parquet")
    assert verify.filter(pc.field("category") == "writing").num_rows == 10 * 2
    assert max(verify["turn"].to_pylist()) == 2


def test_verify_judges_every_turn(run, cli):
    result = cli("verify", run[0])
    assert result.exit_code == 0, result.stdout
    assert "parity 12/12" in result.stdout


def test_a_run_of_conversations_is_finished_where_it_ended(run, cli, tiny, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run[0], copy)
    undo_shard(copy, 1)
    unfinished = cli("verify", copy)
    assert unfinished.exit_code == 4
    assert "18 planned rows are missing" in unfinished.stderr  # three turns, three methods, two repeats
    again = cli("eval", "--local", *run[1], "--out", copy)
    assert again.exit_code == 0, again.stderr
    assert "1 done before, 1 to do" in again.stdout + again.stderr
    ours, theirs = (
        {
            (row["sample_id"], row["turn"], row["method"], row["repeat"]): row["output_token_ids"]
            for row in read_samples(folder).to_pylist()
        }
        for folder in (copy, run[0])
    )
    assert ours == theirs


def test_a_turn_taken_from_the_rows_is_missing_and_one_too_many_is_refused(run):
    from adadecode.runs.plan import num_missing, num_unplanned

    plan, samples = pq.read_table(run[0] / "plan.parquet"), read_samples(run[0])
    methods = ("vanilla", "vanilla-w1", "adadecode")
    assert plan["num_turns"].to_pylist() == [2, 1, 3]
    assert num_missing(plan, samples, methods, 2) == num_unplanned(plan, samples, methods, 2) == 0
    assert num_missing(plan, samples.filter(pc.field("turn") < 2), methods, 2) == 6
    assert num_unplanned(plan, samples, methods, 1) == 18, "of the second repeat"


@pytest.mark.parametrize(
    ("changed", "exit_code", "said"),
    [
        ({"turn": None}, 2, "column turn has rows without a value"),
        ({"turn": 7}, 3, "rows: 1 committed rows are not in the plan"),
        (
            {"category": "poetry"},
            3,
            "category is not that of the sample's other rows: 1 rows, first spec_bench/spec_bench-83",
        ),
        (
            {"category": None},
            3,
            "category is not that of the sample's other rows: 1 rows, first spec_bench/spec_bench-83",
        ),
        ({"output_token_ids": [5], "output_len": 1}, 3, "spec_bench/spec_bench-83 turn 2 adadecode repeat 1"),
    ],
)
def test_a_turn_or_category_that_was_altered_is_found(run, cli, tmp_path, changed, exit_code, said):
    def alter(rows):
        last = {"sample_id": "spec_bench-83", "turn": 2, "method": "adadecode", "repeat": 1}
        (row,) = (row for row in rows if all(row[name] == value for name, value in last.items()))
        row |= changed

    copy = tmp_path / "run"
    shutil.copytree(run[0], copy)
    plant(copy, alter)
    result = cli("verify", copy)
    assert result.exit_code == exit_code, result.output
    assert said in result.stdout + result.stderr


def test_plan_counts_the_rows_of_all_turns(cli, tiny, file):
    result = cli("plan", *tiny.flags(task="spec_bench", data_file=file, repeats=2))
    assert "3 samples of 6 turns in all x 3 methods x 2 repeats = 36 rows; plan hash " in result.stdout


def test_rates_of_a_conversation_are_of_all_its_turns(run, tiny, file):
    rates = read_rates(run[0])
    rows = [row for row in read_samples(run[0]).to_pylist() if row["method"] == "vanilla" and row["repeat"] == 0]
    config = build_settings(EvalConfig, None, {"task": "spec_bench", "data_file": str(file), "model": str(tiny.model)})
    _, shards, plan = plan_run(config)
    capacity = plan_capacity(shards, plan, config, rates, (1,))
    assert capacity.num_same == 3
    assert capacity.tokens["vanilla"] == sum(row["output_len"] for row in rows)


def test_turns_after_one_that_vanilla_failed_at_are_error_rows(cli, tiny, tmp_path):
    """A prompt that leaves no room in the context fails for every method, and what comes after it has no prompt."""
    long = " ".join(["w7"] * 5000)
    file = write_jsonl(tmp_path / "q.jsonl", *ROWS[:2], {**ROWS[2], "turns": ["w12", long, "w14", "w15"]})
    flags = tiny.flags(task="spec_bench", data_file=file, max_errors="100%")
    result = cli("eval", "--local", *flags, "--out", tmp_path / "run")
    assert "first: spec_bench/spec_bench-83 turn 1: the prompt has " in result.stdout
    errors = [row for row in read_samples(tmp_path / "run").to_pylist() if row["status"] == "error"]
    found = {(row["turn"], row["error_type"]) for row in errors}
    assert found == {(1, "PromptTooLongError"), (2, UNANSWERED), (3, UNANSWERED)}
    assert len(errors) == 9
    assert "vanilla failed at turn 1" in next(row["error_message"] for row in errors if row["turn"] == 3)
    assert result.exit_code == 0, result.stderr
    assert cli("verify", tmp_path / "run").exit_code == 0
    assert read_run(tmp_path / "run")["status"] == "complete"


def test_an_exception_in_one_method_leaves_the_conversation_to_the_others(cli, tiny, tmp_path, monkeypatch, file):
    decode_prompt = evaluation_worker.decode_prompt

    def failing(worker, method, task, prompt_ids, max_new_tokens=None, *, key=None):
        if method == "vanilla-w1" and max_new_tokens is None:
            raise ValueError("no such luck")
        return decode_prompt(worker, method, task, prompt_ids, max_new_tokens, key=key)

    monkeypatch.setattr(evaluation_worker, "decode_prompt", failing)
    flags = tiny.flags(task="spec_bench", data_file=file, max_errors="100%")
    cli("eval", "--local", *flags, "--out", tmp_path / "run")
    rows = read_samples(tmp_path / "run").to_pylist()
    assert {row["method"] for row in rows if row["status"] == "error"} == {"vanilla-w1"}
    assert sum(row["parity"] == "exact" for row in rows) == 6


def test_a_lost_conversation_has_an_error_row_for_each_turn(file):
    shard = Shard(0, "spec_bench", tuple(load_examples("spec_bench", DataSettings(data_file=str(file)))))
    config = EvalConfig(task="spec_bench", methods=("vanilla", "adadecode"), repeats=2)
    rows = lost_rows(config, shard, 2, "gone")
    assert sorted({(row.turn, row.method, row.repeat) for row in rows}) == sorted(
        (turn, method, repeat) for turn in range(3) for method in ("vanilla", "adadecode") for repeat in range(2)
    )
    assert len(rows) == 12


def test_a_chat_model_gets_the_conversation_through_its_template(cli, tiny, chat_model, tmp_path, file):
    flags = tiny.flags(task="spec_bench", data_file=file, model=chat_model)
    assert cli("eval", "--local", *flags, "--out", tmp_path / "run").exit_code == 0
    rows = read_samples(tmp_path / "run").to_pylist()
    first, second = (
        next(r for r in rows if (r["sample_id"], r["turn"], r["method"]) == ("spec_bench-81", turn, "vanilla"))
        for turn in (0, 1)
    )
    assert first["prompt_len"] == 1 + 3 + 1  # w3, the user's turn, the model's
    answer_len = len(first["output_text"].split())
    assert second["prompt_len"] == 1 + 3 + (1 + answer_len) + 3 + 1


def test_tasks_shows_what_is_said_later(cli, file):
    lines = cli("tasks", "spec_bench", "--data-file", file, "-n", 1).stdout.splitlines()
    assert lines == [
        "spec_bench spec_bench-81, plain prompt, writing, 2 turns",
        "  USER: w10 w20",
        "  ASSISTANT:",
        "then: w30 w5",
    ]


def test_what_is_stored_of_a_turn_is_json_like_any_row(run):
    (commit, *_) = sorted((run[0] / "commits").iterdir())
    outcome = json.loads(commit.read_text())["outcome"]
    assert (outcome["num_samples"], outcome["num_error_samples"]) == (2, 0)
    assert outcome["num_exact"] == outcome["num_owed"] == 3 * 2
