"""The tasks by name, their prompt formats and the embedded prompts."""

import ast
import dataclasses
import doctest
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from adadecode.demo import PROMPTS_DIR
from adadecode.errors import TaskDataError, UsageError
from adadecode.records import Example
from adadecode.runs.folder import read_samples
from adadecode.settings import DataSettings
from adadecode.tasks import TASKS, expand_task, find_task, iterate_found, load_examples, score, task_domain
from adadecode.tasks.rows import HubDataset
from adadecode.tasks.task import Task

GSM8K_ROW = {"question": "Ann has 3 pens and buys 4. How many has she?", "answer": "3+4=<<3+4=7>>7\n#### 7"}
HUMANEVAL_ROW = {"task_id": "HumanEval/7", "prompt": 'def f(x):\n    """Double x.\n    """\n', "test": "..."}


def write_jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(task: str, data_file: Path | None = None, **settings: object) -> list[Example]:
    return load_examples(task, settings_of(data_file, **settings))


def settings_of(data_file: Path | None = None, **settings: object) -> DataSettings:
    return DataSettings.model_validate({"data_file": None if data_file is None else str(data_file), **settings})


def test_demo_stands_for_both_demo_tasks_and_any_other_for_itself() -> None:
    assert expand_task("demo") == ("demo-math", "demo-code")
    assert [expand_task(name) for name in TASKS] == [(name,) for name in TASKS]


@pytest.mark.parametrize(
    "use",
    [
        expand_task,
        task_domain,
        load,
        lambda name: list(iterate_found(name, settings_of())),
        lambda name: score(name, "text", None),
    ],
)
def test_an_unknown_task_is_named_with_the_known_ones(use) -> None:
    with pytest.raises(UsageError) as caught:
        use("GSMK8")
    message = str(caught.value)
    assert "--task GSMK8: unknown task; did you mean gsm8k? use demo (both demo tasks) or one of" in message
    assert all(name in message for name in ["demo", *TASKS])


def test_domains() -> None:
    math, code = {"gsm8k", "demo-math"}, {"humaneval", "mbpp", "demo-code"}
    assert {name for name in TASKS if task_domain(name) == "math"} == math
    assert {name for name in TASKS if task_domain(name) == "code"} == code


@pytest.mark.parametrize("task", ["demo-math", "demo-code"])
def test_a_data_file_for_embedded_prompts_is_refused(task: str) -> None:
    with pytest.raises(UsageError, match=rf"--data-file rows\.jsonl: task {task} .* --task jsonl"):
        load(task, Path("rows.jsonl"))


def test_an_offset_leaves_out_the_first_samples_and_the_limit_counts_from_there(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", *({"prompt": f"p{i}"} for i in range(5)))
    assert [example.prompt for example in load("jsonl", file, offset=1, limit=2)] == ["p1", "p2"]
    assert load("jsonl", file, offset=3) == load("jsonl", file)[3:]
    assert list(iterate_found("jsonl", settings_of(file, offset=1, limit=2))) == load("jsonl", file)[1:3]
    with pytest.raises(UsageError, match="--offset 5: task jsonl has 5 samples; leave out fewer"):
        load("jsonl", file, offset=5, limit=1)
    with pytest.raises(UsageError, match="--offset 5: task jsonl has 5 samples; leave out fewer"):
        list(iterate_found("jsonl", settings_of(file, offset=5)))


@pytest.mark.parametrize("task", [name for name in TASKS if name != "jsonl"])
def test_a_prompt_field_for_a_task_with_fixed_fields_is_refused(task: str) -> None:
    with pytest.raises(UsageError, match=rf"--prompt-field text: task {task} .* --task jsonl"):
        load(task, prompt_field="text")


def test_gsm8k_prompts_ids_and_reference(tmp_path: Path) -> None:
    dollars = {**GSM8K_ROW, "answer": "#### $1,200."}
    path = write_jsonl(tmp_path / "test.jsonl", GSM8K_ROW, dollars)
    first, second = load("gsm8k", path)
    assert (first.sample_id, second.sample_id) == ("gsm8k-00000", "gsm8k-00001")
    assert first.prompt == "Question: Ann has 3 pens and buys 4. How many has she?\nAnswer:"
    assert first.chat_prompt.startswith("Ann has 3 pens and buys 4. How many has she?\n\nReason step by step")
    assert first.chat_prompt.endswith("`#### <number>`.")
    assert (first.reference, second.reference) == ("7", "1200")


def test_a_gsm8k_answer_without_its_final_number_is_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "test.jsonl", GSM8K_ROW, {**GSM8K_ROW, "answer": "It is 7."})
    with pytest.raises(TaskDataError, match=r"line 2: answer 'It is 7\.' has no `#### <number>`; .* --task jsonl"):
        load("gsm8k", path)


def test_a_gsm8k_row_without_a_question_is_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "test.jsonl", {"problem": "x", "answer": "#### 7"})
    with pytest.raises(TaskDataError, match=r"line 1: no field 'question' .* \(problem, answer\); .* --task jsonl"):
        load("gsm8k", path)


def test_humaneval_prompts_and_ids(tmp_path: Path) -> None:
    (example,) = load("humaneval", write_jsonl(tmp_path / "test.jsonl", HUMANEVAL_ROW))
    assert example.sample_id == "HumanEval-7"
    assert example.prompt == HUMANEVAL_ROW["prompt"]
    assert example.chat_prompt.startswith("Complete this Python function.")
    assert example.chat_prompt.endswith('```python\ndef f(x):\n    """Double x.\n    """\n```')
    assert example.reference is None


def test_a_humaneval_task_id_used_twice_is_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "test.jsonl", HUMANEVAL_ROW, HUMANEVAL_ROW)
    with pytest.raises(TaskDataError, match=r"line 2: id 'HumanEval-7' is taken by .* line 1; .* --task jsonl"):
        load("humaneval", path)


@pytest.mark.parametrize("task", ["demo-math", "demo-code"])
def test_embedded_prompts_are_24_distinct_ones_with_stable_ids(task: str) -> None:
    examples = load(task)
    assert [example.sample_id for example in examples] == [f"{task}-{idx:03d}" for idx in range(24)]
    assert len({example.prompt for example in examples}) == 24
    assert load(task, limit=3) == examples[:3]


def test_embedded_word_problems_are_worked_correctly() -> None:
    for line in (PROMPTS_DIR / "math.jsonl").read_text(encoding="utf-8").splitlines():
        answer = json.loads(line)["answer"]
        steps = re.findall(r"<<([-+*/().0-9]+)=([.0-9]+)>>", answer)
        assert len(steps) == answer.count("<<") > 0
        for expression, value in steps:
            assert eval(expression) == pytest.approx(float(value)), answer
        assert answer.endswith(f"#### {steps[-1][1]}")


def test_embedded_word_problems_score_their_own_answers() -> None:
    answers = [json.loads(line)["answer"] for line in (PROMPTS_DIR / "math.jsonl").read_text("utf-8").splitlines()]
    for example, answer in zip(load("demo-math"), answers, strict=True):
        assert score("demo-math", answer, example.reference) == 1.0


def test_embedded_functions_are_unfinished_python_with_an_example() -> None:
    for example in load("demo-code"):
        assert example.prompt.endswith('    """\n')
        function = ast.parse(example.prompt).body[-1]
        assert isinstance(function, ast.FunctionDef)
        assert len(function.body) == 1
        assert doctest.DocTestParser().get_examples(ast.get_docstring(function) or ""), example.prompt


def test_the_hub_gives_the_test_split_or_the_one_to_train_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, config: str | None, split: str, revision: str) -> list[dict[str, str]]:
        return [{**GSM8K_ROW, "question": f"{name} {config} {split} {revision[:8]}"}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    (tested,), (trained_on,) = load("gsm8k"), iterate_found("gsm8k", settings_of())
    assert tested.prompt == "Question: openai/gsm8k main test e53f0488\nAnswer:"
    assert trained_on.prompt == "Question: openai/gsm8k main train e53f0488\nAnswer:"


def test_humaneval_is_trained_on_only_from_a_data_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--data-file is missing: humaneval has no training split; train on prompts"):
        next(iterate_found("humaneval", settings_of()))
    file = write_jsonl(tmp_path / "train.jsonl", HUMANEVAL_ROW)
    assert list(iterate_found("humaneval", settings_of(file))) == load("humaneval", file)


def test_the_tasks_say_where_their_rows_come_from() -> None:
    assert {name: task.source for name, task in TASKS.items()} == {
        "gsm8k": "openai/gsm8k/main/test or --data-file",
        "humaneval": "openai/openai_humaneval/test or --data-file",
        "mbpp": "google-research-datasets/mbpp/full/test or --data-file",
        "xsum": "EdinburghNLP/xsum/test or --data-file",
        "cnn_dm": "abisee/cnn_dailymail/3.0.0/test or --data-file",
        "spec_bench": "--data-file",
        "jsonl": "--data-file with the column --prompt-field",
        "demo-math": "embedded",
        "demo-code": "embedded",
    }


def test_every_data_set_of_the_hub_is_read_at_a_pinned_commit() -> None:
    hub = [task.rows for task in TASKS.values() if isinstance(task.rows, HubDataset)]
    assert len(hub) >= 5
    for rows in hub:
        assert re.fullmatch("[0-9a-f]{40}", rows.revision), rows
        assert find_task("gsm8k").read_from(settings_of())["source"] == "openai/gsm8k/main/test"
    assert find_task("jsonl").read_from(settings_of(Path("p.jsonl"))) == {"source": "p.jsonl", "revision": None}
    assert find_task("demo-math").read_from(settings_of()) == {"source": "embedded", "revision": None}


def test_the_size_of_an_embedded_data_set_is_how_many_samples_it_has() -> None:
    embedded = [task for task in TASKS.values() if isinstance(task.rows, Path)]
    assert [task.size for task in embedded] == [len(load(task.name)) for task in embedded] == [24, 24]


def test_a_task_that_is_scored_names_its_metric() -> None:
    assert {name: task.metric for name, task in TASKS.items() if task.score is not None} == {
        "gsm8k": "final number",
        "demo-math": "final number",
    }
    with pytest.raises(AssertionError, match="nameless"):
        Task("nameless", "", None, (), find_task("jsonl").example, score=lambda text, reference: 1.0)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Task:
    """A data set of three rows, scored by how much of the reference an output has."""
    rows = [{"words": "w10 w20 w30", "count": 3}, {"words": "w11 w40", "count": 2}, {"words": "w90", "count": 1}]
    toy = Task(
        name="toy",
        description="words to go on with",
        rows=write_jsonl(tmp_path / "toy.jsonl", *rows),
        fields=("words", "count"),
        example=lambda row, data: Example(
            f"toy-{row.fields['count']}", row.text("words", "words!"), "", str(row.fields["count"])
        ),
        metric="share of the words",
        score=lambda text, reference: min(1.0, len(text.split()) / int(reference)),
    )
    monkeypatch.setitem(TASKS, "toy", toy)
    return toy


def test_a_task_is_one_value_in_the_table(toy: Task) -> None:
    assert [example.prompt for example in load("toy", limit=2)] == ["w10 w20 w30", "w11 w40"]
    assert [example.sample_id for example in iterate_found("toy", settings_of(offset=1))] == ["toy-2", "toy-1"]
    assert score("toy", "w1 w2", "4") == 0.5
    assert (expand_task("toy"), task_domain("toy"), toy.source) == (("toy",), None, "embedded")
    with pytest.raises(UsageError, match=r"--data-file rows\.jsonl: task toy has embedded prompts"):
        load("toy", Path("rows.jsonl"))


def test_a_run_decodes_and_scores_a_task_that_was_added_to_the_table(toy: Task, cli, tiny, tmp_path: Path) -> None:
    flags = tiny.flags(task="toy", data_file=None, max_new_tokens=2)
    assert cli("eval", "--local", *flags, "--out", tmp_path / "run").exit_code == 0
    rows = read_samples(tmp_path / "run").to_pylist()
    assert {row["sample_id"] for row in rows} == {"toy-1", "toy-2", "toy-3"}
    for row in rows:
        assert row["correct"] == (len(row["output_text"].split()) >= int(row["sample_id"][-1]))
    assert {row["correct"] for row in rows} == {True, False}, "an output half as good as can be is not correct"


def test_two_rows_of_one_id_are_refused_whatever_the_task(toy: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    same = dataclasses.replace(toy, example=lambda row, data: Example("same", "w10", ""))
    monkeypatch.setitem(TASKS, "toy", same)
    with pytest.raises(
        TaskDataError, match=r"line 2: id 'same' is taken by .* line 1; give every row an id of its own"
    ):
        load("toy")
    assert len(list(iterate_found("toy", settings_of()))) == 3, "training does not tell samples apart"
