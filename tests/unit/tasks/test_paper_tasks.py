"""MBPP, XSum and CNN/DailyMail: the prompts of their rows, what scoring will need, and rows that lack it."""

import json
from pathlib import Path

import pytest

from adadecode.errors import TaskDataError
from adadecode.records import Example
from adadecode.settings import DataSettings
from adadecode.tasks import iterate_found, load_examples
from tests.unit.tasks.test_tasks import write_jsonl

MBPP_ROW = {
    "task_id": 11,
    "text": "Write a function to add two numbers.",
    "code": "def add(a, b):\n    return a + b",
    "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"],
    "test_setup_code": "",
    "challenge_test_list": [],
}
XSUM_ROW = {"document": "It rained all day.\nStreets were wet.", "summary": "It rained.", "id": "1"}
CNN_ROW = {"article": "A dog ran.\n\nIt was seen.", "highlights": "Dog ran .\nIt was seen .", "id": "1"}


def load(task: str, tmp_path: Path, *rows: object) -> list[Example]:
    file = write_jsonl(tmp_path / "rows.jsonl", *rows)
    return load_examples(task, DataSettings(data_file=str(file)))


def refusal(task: str, tmp_path: Path, *rows: object) -> str:
    with pytest.raises(TaskDataError) as caught:
        load(task, tmp_path, *rows)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_mbpp_prompts_are_the_papers_and_the_reference_holds_the_tests(tmp_path):
    (example,) = load("mbpp", tmp_path, MBPP_ROW)
    task = (
        "You are an expert Python programmer, and here is your task: Write a function to add two numbers. Your code "
        "should pass these tests:\n\nassert add(1, 2) == 3\nassert add(0, 0) == 0"
    )
    assert example.sample_id == "mbpp-11"
    assert example.prompt == f"{task}\n[BEGIN]\n"
    assert example.chat_prompt == f"{task}\n\nAnswer with the code in one Python code block."
    tests = "assert add(1, 2) == 3\nassert add(0, 0) == 0"
    assert json.loads(example.reference) == {"prompt": "", "tests": tests, "entry_point": None}


def test_mbpp_takes_the_sanitised_edition_too(tmp_path):
    row = {"task_id": 2, "prompt": "Add.", "code": "", "test_list": ["assert f()"], "test_imports": ["import math"]}
    (example,) = load("mbpp", tmp_path, row)
    assert "here is your task: Add. Your code" in example.prompt
    assert json.loads(example.reference) == {"prompt": "import math\n", "tests": "assert f()", "entry_point": None}


def test_what_an_mbpp_test_needs_first_is_its_setup(tmp_path):
    (example,) = load("mbpp", tmp_path, {**MBPP_ROW, "test_setup_code": "class Node: pass"})
    assert json.loads(example.reference)["prompt"] == "class Node: pass\n"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"test_list": "assert f()"}, "field 'test_list' is 'assert f()', no list of texts"),
        ({"test_list": []}, "field 'test_list' is [], no list of texts"),
        ({"test_list": ["assert f()", 3]}, "text 1 of 'test_list' is 3, not text"),
        ({"task_id": "11"}, "field 'task_id' is '11', not a whole number"),
        ({"task_id": True}, "field 'task_id' is True, not a whole number"),
        ({"text": " "}, "field 'text' is ' ', which holds no text"),
    ],
)
def test_an_mbpp_row_that_cannot_be_used_is_named(changed, said, tmp_path):
    message = refusal("mbpp", tmp_path, MBPP_ROW, {**MBPP_ROW, "task_id": 12, **changed})
    assert f"rows.jsonl line 2: {said}; MBPP rows hold a unique `task_id`" in message


def test_xsum_prompts_and_reference(tmp_path):
    (example,) = load("xsum", tmp_path, XSUM_ROW)
    assert example.sample_id == "xsum-00000"
    assert example.prompt == "Article: It rained all day.\nStreets were wet.\nSummary:"
    assert example.chat_prompt.endswith("Streets were wet.\n\nSummarize this article in one sentence.")
    assert example.reference == "It rained."


def test_cnn_dm_prompts_and_reference(tmp_path):
    (example,) = load("cnn_dm", tmp_path, CNN_ROW)
    assert example.sample_id == "cnn_dm-00000"
    assert example.prompt == "Article: A dog ran.\n\nIt was seen.\nSummary:"
    assert example.chat_prompt.endswith("It was seen.\n\nSummarize this article in three or four sentences.")
    assert example.reference == "Dog ran .\nIt was seen ."


@pytest.mark.parametrize(
    ("task", "field"), [("mbpp", "text"), ("xsum", "document"), ("xsum", "summary"), ("cnn_dm", "article")]
)
def test_a_file_that_lacks_a_field_lists_those_it_has(task, field, tmp_path):
    row = {name: value for name, value in {**MBPP_ROW, **XSUM_ROW, **CNN_ROW}.items() if name != field}
    assert f"line 1: no field '{field}' among its fields ({', '.join(row)}); " in refusal(task, tmp_path, row)


@pytest.mark.parametrize(("task", "row"), [("mbpp", MBPP_ROW), ("xsum", XSUM_ROW), ("cnn_dm", CNN_ROW)])
def test_they_can_be_trained_on(task, row, tmp_path):
    file = write_jsonl(tmp_path / "rows.jsonl", row)
    assert list(iterate_found(task, DataSettings(data_file=str(file)))) == load(task, tmp_path, row)
