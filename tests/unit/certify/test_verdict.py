"""The test that tells a candidate that differs from a baseline that does."""

import numpy as np
import pytest

from adadecode.certify import verdict
from adadecode.certify.verdict import LEVEL, excess, permutation_p, verdict_of


def rows(*prompts: str) -> list[dict]:
    """A row for each letter of `prompts`, such as `aab aab`: the baseline's outputs in its passes, then the candidate's.

    A `-` is a row that failed, a `.` one that is missing.
    """
    return [
        {
            "task": "t",
            "sample_id": str(number),
            "method": side,
            "repeat": repeat,
            "status": "error" if letter == "-" else "ok",
            "output_token_ids": None if letter == "-" else [1, ord(letter)],
            "output_text": letter,
            "finish_reason": "length",
        }
        for number, prompt in enumerate(prompts)
        for side, letters in zip(("baseline", "candidate"), prompt.split(), strict=True)
        for repeat, letter in enumerate(letters)
        if letter != "."
    ]


@pytest.mark.parametrize(
    ("prompts", "outcome", "counts"),
    [
        (["aaa aaa"], "exact", (1, 0, 1, 0)),
        (["aaa aab"], "differs", (1, 1, 1, 0)),
        (["aaa aaa"] * 99 + ["aaa baa"], "differs", (100, 1, 100, 0)),
        (["aab aba"], "not more", (1, 1, 1, 1)),
        (["aab aba", "aba bba", "aaa aaa"], "not more", (3, 2, 3, 2)),
        (["aab aba", "aaa bbb", "aaa bbb", "aaa bbb", "aaa bbb"], "differs", (5, 5, 5, 1)),
        (["aaa ---"], "unproved", (0, 0, 1, 0)),
        (["--- aaa"], "unproved", (0, 0, 0, 0)),
        (["a-- aaa"], "unproved", (1, 0, 0, 0)),
        (["aa. a.a", "aaa aaa"], "exact", (2, 0, 2, 0)),
        ([], "unproved", (0, 0, 0, 0)),
    ],
)
def test_what_outputs_come_to(prompts, outcome, counts):
    found = verdict_of(rows(*prompts), 3)
    assert found.outcome == outcome, found
    assert (found.num_prompts, found.num_differ, found.num_repeated, found.num_unsteady) == counts
    assert (found.p_value is None) == (found.num_unsteady == 0)


def test_equal_ids_that_end_in_another_way_are_another_output():
    found = rows("aa aa")
    found[-1]["finish_reason"] = "eos"
    assert verdict_of(found, 2).outcome == "differs"


def test_texts_are_compared_where_a_row_of_the_prompt_has_no_ids():
    found = rows("aa aa")
    found[0]["output_token_ids"] = None
    assert verdict_of(found, 2).outcome == "exact"
    found[0]["output_text"] = found[1]["output_text"] = "b"
    assert verdict_of(found, 2).outcome == "differs"


def test_ids_of_one_pass_decide_where_another_pass_has_none():
    found = rows("aa ba")
    for row in found:
        row["output_text"] = "same"
    assert verdict_of(found, 2).outcome == "differs"
    found[3]["output_token_ids"] = None  # the candidate's of the other pass
    assert verdict_of(found, 2).outcome == "differs"


def test_the_excess_is_how_much_oftener_the_candidate_differs():
    outputs = np.array([[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 2, 2], [0, 0, 0, 1]])
    assert excess(outputs).tolist() == [0.0, 1.0, -0.5, 0.0, 0.5]


def test_the_p_value_is_the_share_of_ways_to_call_the_outputs_the_candidates():
    """Of `aaabbb` two of the twenty ways to choose three give as much: p is 1/10, and a tenth of that each further."""
    one = np.array([[0, 0, 0, 1, 1, 1]])
    assert permutation_p(one) == pytest.approx(0.1, abs=0.01)
    assert permutation_p(np.tile(one, (2, 1))) == pytest.approx(0.01, abs=0.004)
    assert permutation_p(np.tile(one, (9, 1))) <= 0.0002


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_servers_as_unsteady_as_their_baseline_are_called_different_as_often_as_the_level_says(share, monkeypatch):
    monkeypatch.setattr(verdict, "NUM_PERMUTATIONS", 199)
    draws, calls, num_runs = np.random.default_rng(1), 0, 400
    for _ in range(num_runs):
        calls += permutation_p((draws.random((20, 6)) < share).astype(np.int64)) <= LEVEL
    assert calls / num_runs <= LEVEL + 3 * (LEVEL * (1 - LEVEL) / num_runs) ** 0.5


def test_a_candidate_that_differs_on_a_tenth_of_the_prompts_is_found_beside_an_unsteady_baseline():
    draws = np.random.default_rng(2)
    outputs = (draws.random((100, 6)) < 0.02).astype(np.int64)
    outputs[:10, 3:] = 2
    assert permutation_p(outputs) <= LEVEL
