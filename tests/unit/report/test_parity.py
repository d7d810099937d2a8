import math

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adadecode.errors import RunFolderError
from adadecode.report.parity import classify, first_difference, recompute_parity, stored_disagreements
from adadecode.report.schema import VERIFY

TOKENS = st.lists(st.integers(0, 3), max_size=8)

SECOND_TOKEN = {"first_diff_idx": 1, "vanilla_token_id": 6, "method_token_id": 9}  # of 5, 6, 7 and 5, 9, 7


@pytest.mark.parametrize(
    ("a", "b", "position"),
    [
        ([], [], None),
        ([1, 2, 3], [1, 2, 3], None),
        ([1, 2, 3], [1, 9, 3], 1),
        ([1, 2, 3], [1, 2], 2),
        ([], [4], 0),
        ((4, 5), [4, 6, 7], 1),
    ],
)
def test_first_difference_by_hand(a, b, position):
    assert first_difference(a, b) == position


@settings(deadline=None)
@given(TOKENS, TOKENS)
def test_first_difference_is_the_length_of_the_common_prefix(a, b):
    position = first_difference(a, b)
    assert position == first_difference(b, a)
    assert (position is None) == (a == b)
    if position is not None:
        assert a[:position] == b[:position]
        assert a[position : position + 1] != b[position : position + 1]


@settings(deadline=None)
@given(TOKENS, st.lists(st.integers(0, 3), min_size=1))
def test_a_prefix_differs_at_its_own_length(a, rest):
    assert first_difference(a, a + rest) == len(a)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("float16", 0.0625), ("bfloat16", 0.5)])
def test_near_tie_ends_at_the_tolerance_of_the_dtype(dtype, tolerance):
    assert classify(3, tolerance, dtype) == "near_tie"
    assert classify(3, tolerance * 1.01, dtype) == "mismatch"


def test_equal_outputs_are_exact_whatever_the_margin():
    assert classify(None, None, "float32") == "exact"
    assert classify(None, 9.0, "float32") == "exact"


@pytest.mark.parametrize("margin", [None, math.nan])
def test_a_margin_that_is_not_known_excuses_nothing(margin):
    assert classify(0, margin, "bfloat16") == "mismatch"


@pytest.fixture
def verify_one(samples_table):
    """The one VERIFY row of a table."""

    def verify_rows(*rows):
        table = recompute_parity(samples_table(*rows))
        assert table.schema == VERIFY
        (only,) = table.to_pylist()
        return only

    return verify_rows


def test_equal_outputs_and_digests_are_exact(verify_one, row):
    found = verify_one(row("vanilla", logits_digest="aa"), row("adadecode", logits_digest="aa", logits_equal=True))
    assert found == dict.fromkeys(VERIFY.names) | {
        "task": "demo",
        "sample_id": "s0",
        "method": "adadecode",
        "repeat": 0,
        "turn": 0,
        "parity": "exact",
        "logits_equal": True,
        "consistency": 1.0,
    }


@pytest.mark.parametrize(
    ("output", "consistency"),
    [
        ([5, 6, 7], 1.0),
        ([5, 9, 7], 2 / 3),
        ([9, 9, 9], 0.0),
        ([5, 6], 2 / 3),
        ([5, 6, 7, 8], 0.75),
        ([6, 7, 5], 0.0),
    ],
    ids=str,
)
def test_consistency_is_the_share_of_vanillas_tokens_over_the_longer_output(verify_one, row, output, consistency):
    found = verify_one(row("vanilla", output_token_ids=[5, 6, 7]), row("adadecode-unverified", output_token_ids=output))
    assert found["consistency"] == pytest.approx(consistency)


def test_without_vanillas_output_there_is_no_consistency(verify_one, row, error_row):
    assert verify_one(error_row("vanilla"), row("adadecode-unverified"))["consistency"] is None


def test_logits_are_not_judged_when_a_digest_is_missing(verify_one, row):
    assert verify_one(row("vanilla"), row("adadecode", logits_digest="aa"))["logits_equal"] is None


def test_unequal_digests_beside_equal_tokens_are_exact_with_unequal_logits(verify_one, row):
    found = verify_one(row("vanilla", logits_digest="aa"), row("vanilla-w1", logits_digest="bb", logits_equal=False))
    assert (found["parity"], found["logits_equal"]) == ("exact", False)


def test_a_stored_near_tie_keeps_its_class_and_margins(verify_one, row):
    stored = {"parity": "near_tie", "first_diff_idx": 1, "vanilla_margin": 0.25, "method_margin": 0.125}
    found = verify_one(row("vanilla"), row("vanilla-w1", output_token_ids=[5, 9, 7], **stored))
    assert (found["parity"], found["first_diff_idx"]) == ("near_tie", 1)
    assert (found["vanilla_token_id"], found["method_token_id"]) == (6, 9)
    assert (found["vanilla_margin"], found["method_margin"]) == (0.25, 0.125)


@pytest.mark.parametrize("margin", [None, 0.75])
def test_a_stored_near_tie_without_a_small_margin_is_a_mismatch(verify_one, row, margin):
    stored = {"parity": "near_tie", "first_diff_idx": 1, "vanilla_margin": margin}
    assert verify_one(row("vanilla"), row("vanilla-w1", output_token_ids=[5, 9, 7], **stored))["parity"] == "mismatch"


def test_a_near_tie_stored_for_another_position_is_a_mismatch_without_margins(verify_one, row):
    stored = {"parity": "near_tie", "first_diff_idx": 2, "vanilla_margin": 0.25}
    found = verify_one(row("vanilla"), row("vanilla-w1", output_token_ids=[5, 9, 7], **stored))
    assert (found["parity"], found["first_diff_idx"], found["vanilla_margin"]) == ("mismatch", 1, None)


def test_a_shorter_output_differs_where_it_ends(verify_one, row):
    found = verify_one(row("vanilla"), row("adadecode", output_token_ids=[5, 6], parity="mismatch", first_diff_idx=2))
    assert (found["parity"], found["first_diff_idx"]) == ("mismatch", 2)
    assert (found["vanilla_token_id"], found["method_token_id"]) == (7, None)


@pytest.mark.parametrize("parity", ["exact", None])
def test_another_finish_reason_is_a_mismatch_at_no_position(verify_one, row, parity):
    found = verify_one(row("vanilla"), row("adadecode", finish_reason="eos", parity=parity))
    assert (found["parity"], found["first_diff_idx"]) == ("mismatch", None)


@pytest.mark.parametrize(
    ("method_values", "shown"),
    [
        ({"output_token_ids": [5, 9, 7]}, "parity is stored as exact and recomputed as mismatch"),
        ({"parity": "near_tie", "first_diff_idx": 1}, "parity is stored as near_tie and recomputed as mismatch"),
        ({"parity": "mismatch", "first_diff_idx": 1}, "first_diff_idx is stored as 1 and recomputed as null"),
        ({"parity": "mismatch", "vanilla_token_id": 6}, "vanilla_token_id is stored as 6 and recomputed as null"),
        ({"logits_digest": "bb", "logits_equal": True}, "logits_equal is stored as True and recomputed as False"),
        ({"logits_digest": "aa", "logits_equal": False}, "logits_equal is stored as False and recomputed as True"),
    ],
)
def test_a_stored_claim_that_the_row_contradicts_is_a_mismatch_and_is_named(samples_table, row, method_values, shown):
    samples = samples_table(row("vanilla", logits_digest="aa"), row("adadecode", "s0", **method_values))
    verify = recompute_parity(samples)
    assert verify["parity"].to_pylist() == ["mismatch"]
    (line,) = stored_disagreements(samples, verify)
    assert line.startswith("demo/s0 adadecode repeat 0: ")
    assert shown in line


@pytest.mark.parametrize("name", ["vanilla_token_id", "method_token_id"])
def test_a_token_claimed_at_the_first_difference_that_is_not_there_is_named(samples_table, row, name):
    claims = {"parity": "mismatch", **SECOND_TOKEN, name: 8}
    samples = samples_table(row("vanilla"), row("adadecode", output_token_ids=[5, 9, 7], **claims))
    (line,) = stored_disagreements(samples, recompute_parity(samples))
    assert line == f"demo/s0 adadecode repeat 0: {name} is stored as 8 and recomputed as {SECOND_TOKEN[name]}"


def test_a_row_without_an_ok_vanilla_partner_has_no_parity(samples_table, row, error_row):
    samples = samples_table(
        row("adadecode", "alone"), error_row("vanilla", "failed"), row("adadecode", "failed"), row("vanilla", "other")
    )
    verify = recompute_parity(samples)
    assert verify["sample_id"].to_pylist() == ["alone", "failed"]
    assert verify["parity"].to_pylist() == [None, None]
    assert len(stored_disagreements(samples, verify)) == 2  # `exact` was claimed and nothing confirms it


def test_error_rows_are_skipped(samples_table, row, error_row):
    assert recompute_parity(samples_table(row("vanilla"), error_row("adadecode"))).num_rows == 0


def test_partners_share_task_sample_and_repeat(samples_table, row):
    outputs = {("a", "s0", 0): [1, 1], ("a", "s0", 1): [2, 2], ("a", "s1", 0): [3, 3], ("b", "s0", 0): [4, 4]}
    rows = [
        row(method, sample_id, task=task, repeat=repeat, output_token_ids=ids)
        for method in ("adadecode", "vanilla")
        for (task, sample_id, repeat), ids in outputs.items()
    ]
    verify = recompute_parity(samples_table(*rows))
    assert verify["parity"].to_pylist() == ["exact"] * 4


def test_chunks_and_slices_do_not_move_the_ids(samples_table, row):
    samples = samples_table(
        row("vanilla", "skipped", output_token_ids=[8, 8, 8, 8]), row("vanilla"), row("adadecode"), row("vanilla-w1")
    )
    chunked = pa.concat_tables([samples.slice(1, 1), samples.slice(2)])
    assert recompute_parity(chunked)["parity"].to_pylist() == ["exact", "exact"]


def test_a_row_stored_twice_is_refused(samples_table, row):
    with pytest.raises(RunFolderError, match="1 of 3 rows repeat"):
        recompute_parity(samples_table(row("vanilla"), row("adadecode"), row("adadecode")))


def test_honest_samples_have_no_disagreements(samples_table, row, error_row):
    samples = samples_table(
        row("vanilla", logits_digest="aa"),
        row("adadecode", logits_digest="aa", logits_equal=True),
        row("vanilla-w1", output_token_ids=[5, 9, 7], parity="mismatch", **SECOND_TOKEN, vanilla_margin=2.0),
        error_row("adadecode", "s1"),
    )
    assert stored_disagreements(samples, recompute_parity(samples)) == []


def test_an_empty_table_has_nothing_to_verify(samples_table):
    verify = recompute_parity(samples_table())
    assert verify.num_rows == 0
    assert stored_disagreements(samples_table(), verify) == []
