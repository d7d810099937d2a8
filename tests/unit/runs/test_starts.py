"""The starts of a run: what run.json keeps of each, and what of an old run's first can be known."""

import pytest

from adadecode.runs.starts import new_start, start_lines, starts_of
from adadecode.settings import EvalConfig


def test_a_start_keeps_the_command_its_placement_and_no_password():
    start = new_start(
        EvalConfig(threads=3, local=True), "adadecode eval --out s3://key:secret@bucket/a@b --address x:1"
    )
    assert start["command"] == "adadecode eval --out s3://HIDDEN@bucket/a@b --address x:1"
    assert (start["placement"]["threads"], start["placement"]["local"]) == (3, True)
    assert "kernels" not in start["placement"], "which is no placement: it decides the results"
    assert new_start(EvalConfig(), None)["command"] is None


def test_of_an_old_run_the_first_start_is_known_by_its_other_entries():
    run = {
        "created_at": "2026-11-25",
        "config": {"threads": 2, "local": True, "task": "demo"},
        "provenance": {"adadecode": "0.1.0", "git_sha": "0123456789abcdef"},
    }
    assert start_lines(run) == [
        "start 1, 2026-11-25: command not stored (threads=2, local=True; adadecode 0.1.0, revision 0123456789ab)"
    ]
    assert starts_of(run | {"starts": []}) == [], "a new run, which has computed nothing yet"


def test_of_many_starts_the_first_and_the_last_have_lines():
    start = new_start(EvalConfig(), "adadecode eval")
    lines = start_lines({"starts": [start] * 7})
    assert [line.partition(",")[0] for line in lines] == ["start 1", "and 4 more starts", "start 6", "start 7"]
    assert len(start_lines({"starts": [start] * 3})) == 3


@pytest.mark.parametrize("starts", [None, "x", 5, {}, ["x", None]])
def test_what_is_no_start_has_no_line(starts):
    assert start_lines({"starts": starts}) == []


def test_a_start_that_says_little_has_what_it_says():
    assert start_lines({"starts": [{}]}) == ["start 1, None: command not stored (; adadecode unknown)"]
    (line,) = start_lines({"provenance": 5, "config": "x", "created_at": "then"})
    assert line == "start 1, then: command not stored (; adadecode unknown)"
