"""Scoring: the final number of an output against the reference."""

import json
from pathlib import Path

import pytest

from adadecode.scoring.programs import CodeReference
from adadecode.settings import DataSettings
from adadecode.tasks import load_examples, score


@pytest.mark.parametrize(
    "output",
    [
        " 9 * 2 = $<<9*2=18>>18 a day.\n#### 18",
        "#### 18",
        "####18",
        "#### $18.",
        "#### 18.00",
        "#### 7\nNo, that was wrong.\n#### 18",
        "#### 18\nShe sold 9 eggs.",
        "The answer is 18.",
        "So 9 eggs make $18!",
        "20-2 is 18",
        "#### Step 2\nNow 9 * 2 is 18",
        "She makes 18 ####",
        "#### 18\n\nQuestion: Bob has 3 eggs.\nAnswer: 3\n#### 3",
    ],
)
def test_a_right_final_number_scores(output: str) -> None:
    assert score("gsm8k", output, "18") == 1.0


@pytest.mark.parametrize(
    "output",
    ["", "####", "no number at all", "#### 17", "18, or rather 17", "#### -18", "#### 180", "18\n#### 1.8"],
)
def test_a_wrong_or_missing_final_number_does_not_score(output: str) -> None:
    assert score("gsm8k", output, "18") == 0.0


@pytest.mark.parametrize(
    ("output", "reference"),
    [
        ("#### 1,234,567", "1234567"),
        ("#### -$1,200", "-1200"),
        ("It fell to -3", "-3"),
        ("10-3", "3"),
        ("#### .5", "0.5"),
    ],
)
def test_commas_dollars_signs_and_decimals_are_read_by_value(output: str, reference: str) -> None:
    assert score("gsm8k", output, reference) == 1.0


def test_demo_math_scores_as_gsm8k() -> None:
    assert score("demo-math", "#### 93", "93") == 1.0
    assert score("demo-math", "#### 39", "93") == 0.0


@pytest.mark.parametrize("task", ["humaneval", "jsonl", "demo-code"])
def test_tasks_without_answers_are_not_scored(task: str) -> None:
    assert score(task, "#### 18", None) is None


def test_a_humaneval_row_with_tests_has_them_as_its_reference(tmp_path: Path) -> None:
    rows = [
        {
            "task_id": "T/0",
            "prompt": "def f(x):\n",
            "entry_point": "f",
            "test": "def check(g):\n    assert g(1) == 1\n",
        },
        {"task_id": "T/1", "prompt": "def f(x):\n"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tested, untested = load_examples("humaneval", DataSettings(task="humaneval", data_file=str(file)))
    assert tested.reference is not None
    assert CodeReference.of(tested.reference) == CodeReference(
        "def check(g):\n    assert g(1) == 1\n\n\ncheck(f)", "def f(x):\n", "f"
    )
    assert untested.reference is None
