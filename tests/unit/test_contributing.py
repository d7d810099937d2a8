"""What CONTRIBUTING says it takes to add a task and a method, done as written and evaluated with."""

import json
from pathlib import Path

import pytest

from adadecode.methods import METHODS
from adadecode.runs.folder import read_samples
from adadecode.tasks import TASKS
from tests.command_lines import FENCED_BLOCK

CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"
SUMS = [{"sum": "w1 w2", "result": "w3"}, {"sum": "w4 w5", "result": "w9"}]


@pytest.fixture
def added(monkeypatch):
    """The task and the method of the worked example, for one test."""
    monkeypatch.setattr("adadecode.tasks.TASKS", TASKS)  # put back what is set below
    for table, name in ((TASKS, "sums"), (METHODS, "hasty")):
        monkeypatch.setitem(table, name, None)
    example = CONTRIBUTING.read_text(encoding="utf-8").partition("<!-- worked example -->")[2]
    blocks = [block for language, block in FENCED_BLOCK.findall(example) if language == "python"]
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, str(CONTRIBUTING), "exec"), {})


def test_the_worked_example_adds_a_task_and_a_method_that_every_room_knows(added, cli, tiny, tmp_path):
    file = tmp_path / "sums.jsonl"
    file.write_text("\n".join(map(json.dumps, SUMS)))
    flags = tiny.flags(task="sums", data_file=file, methods="vanilla,adadecode,hasty", gamma=0.9)
    result = cli("eval", "--local", *flags, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert "parity 4/4, logits 4/4" in result.stdout
    rows = {(row["sample_id"], row["method"]): row for row in read_samples(tmp_path / "run").to_pylist()}
    assert {name for _, name in rows} == {"vanilla", "adadecode", "hasty"}
    for sample_id in ("sums-00000", "sums-00001"):
        hasty, ours = rows[sample_id, "hasty"], rows[sample_id, "adadecode"]
        assert hasty["parity"] == "exact"
        assert hasty["num_drafted"] > ours["num_drafted"]
        assert hasty["correct"] is ours["correct"] is False  # a random model
    assert "hasty" in cli("report", tmp_path / "run").stdout
    assert "sums" in cli("tasks").stdout


def test_both_are_gone_again():
    assert "sums" not in TASKS
    assert "hasty" not in METHODS
