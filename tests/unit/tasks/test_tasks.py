"""The tasks by name, their prompt formats and the embedded prompts."""

import ast
import doctest
import json
import re
from functools import partial
from pathlib import Path

import pytest

from adadecode.demo import PROMPTS_DIR
from adadecode.errors import TaskDataError, UsageError
from adadecode.tasks import TASKS, expand_task, load_examples, score, task_domain

GSM8K_ROW = {"question": "Ann has 3 pens and buys 4. How many has she?", "answer": "3+4=<<3+4=7>>7\n#### 7"}
HUMANEVAL_ROW = {"task_id": "HumanEval/7", "prompt": 'def f(x):\n    """Double x.\n    """\n', "test": "..."}


def write_jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_demo_stands_for_both_demo_tasks_and_any_other_for_itself() -> None:
    assert expand_task("demo") == ("demo-math", "demo-code")
    assert [expand_task(name) for name in TASKS] == [(name,) for name in TASKS]


@pytest.mark.parametrize(
    "use",
    [
        expand_task,
        task_domain,
        lambda name: load_examples(name, data_file=None),
        lambda name: score(name, "text", None),
    ],
)
def test_an_unknown_task_is_named_with_the_known_ones(use) -> None:
    with pytest.raises(UsageError) as caught:
        use("mbpp")
    message = str(caught.value)
    assert "--task mbpp: unknown task" in message
    assert all(name in message for name in ["demo", *TASKS])


def test_domains() -> None:
    domains = {"gsm8k": "math", "humaneval": "code", "jsonl": None, "demo-math": "math", "demo-code": "code"}
    assert {name: task_domain(name) for name in TASKS} == domains


@pytest.mark.parametrize("task", ["demo-math", "demo-code"])
def test_a_data_file_for_embedded_prompts_is_refused(task: str) -> None:
    with pytest.raises(UsageError, match=rf"--data-file rows\.jsonl: task {task} .* --task jsonl"):
        load_examples(task, data_file=Path("rows.jsonl"))


def test_an_offset_leaves_out_the_first_samples_and_the_limit_counts_from_there(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", *({"prompt": f"p{i}"} for i in range(5)))
    load = partial(load_examples, "jsonl", data_file=file)
    assert [example.prompt for example in load(offset=1, limit=2)] == ["p1", "p2"]
    assert load(offset=3) == load()[3:]
    with pytest.raises(UsageError, match="--offset 5: task jsonl has 5 samples; leave out fewer"):
        load(offset=5, limit=1)


@pytest.mark.parametrize("task", [name for name in TASKS if name != "jsonl"])
def test_a_prompt_field_for_a_task_with_fixed_fields_is_refused(task: str) -> None:
    with pytest.raises(UsageError, match=rf"--prompt-field text: task {task} .* --task jsonl"):
        load_examples(task, data_file=None, prompt_field="text")


def test_gsm8k_prompts_ids_and_reference(tmp_path: Path) -> None:
    dollars = {**GSM8K_ROW, "answer": "#### $1,200."}
    path = write_jsonl(tmp_path / "test.jsonl", GSM8K_ROW, dollars)
    first, second = load_examples("gsm8k", data_file=path)
    assert (first.sample_id, second.sample_id) == ("gsm8k-00000", "gsm8k-00001")
    assert first.prompt == "Question: Ann has 3 pens and buys 4. How many has she?\nAnswer:"
    assert first.chat_prompt.startswith("Ann has 3 pens and buys 4. How many has she?\n\nReason step by step")
    assert first.chat_prompt.endswith("`#### <number>`.")
    assert (first.reference, second.reference) == ("7", "1200")


def test_a_gsm8k_answer_without_its_final_number_is_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "test.jsonl", GSM8K_ROW, {**GSM8K_ROW, "answer": "It is 7."})
    with pytest.raises(TaskDataError, match=r"line 2: answer 'It is 7\.' has no `#### <number>`; .* --task jsonl"):
        load_examples("gsm8k", data_file=path)


def test_a_gsm8k_row_without_a_question_is_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "test.jsonl", {"problem": "x", "answer": "#### 7"})
    with pytest.raises(TaskDataError, match=r"line 1: no field 'question' .* \(problem, answer\); .* --task jsonl"):
        load_examples("gsm8k", data_file=path)


def test_humaneval_prompts_and_ids(tmp_path: Path) -> None:
    (example,) = load_examples("humaneval", data_file=write_jsonl(tmp_path / "test.jsonl", HUMANEVAL_ROW))
    assert example.sample_id == "HumanEval-7"
    assert example.prompt == HUMANEVAL_ROW["prompt"]
    assert example.chat_prompt.startswith("Complete this Python function.")
    assert example.chat_prompt.endswith('```python\ndef f(x):\n    """Double x.\n    """\n```')
    assert example.reference is None


def test_a_humaneval_task_id_used_twice_is_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "test.jsonl", HUMANEVAL_ROW, HUMANEVAL_ROW)
    with pytest.raises(TaskDataError, match=r"line 2: id 'HumanEval-7' is taken by .* line 1; .* --task jsonl"):
        load_examples("humaneval", data_file=path)


@pytest.mark.parametrize("task", ["demo-math", "demo-code"])
def test_embedded_prompts_are_24_distinct_ones_with_stable_ids(task: str) -> None:
    examples = load_examples(task, data_file=None)
    assert [example.sample_id for example in examples] == [f"{task}-{idx:03d}" for idx in range(24)]
    assert len({example.prompt for example in examples}) == 24
    assert load_examples(task, data_file=None, limit=3) == examples[:3]


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
    for example, answer in zip(load_examples("demo-math", data_file=None), answers, strict=True):
        assert score("demo-math", answer, example.reference) is True


def test_embedded_functions_are_unfinished_python_with_an_example() -> None:
    for example in load_examples("demo-code", data_file=None):
        assert example.prompt.endswith('    """\n')
        function = ast.parse(example.prompt).body[-1]
        assert isinstance(function, ast.FunctionDef)
        assert len(function.body) == 1
        assert doctest.DocTestParser().get_examples(ast.get_docstring(function) or ""), example.prompt
