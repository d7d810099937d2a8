"""Parity of two generations, from their token ids and logits."""

import pytest
import torch

from adadecode.engine.tally import Decoded
from adadecode.evaluation.compare import Comparison, compare, logits_digest
from adadecode.records import Generation

VOCAB = 10


def decoded(
    token_ids: list[int], *, margin: float = 5.0, finish_reason: str = "length", dtype=torch.float32, logits=True
) -> Decoded:
    """A generation whose logits prefer each of `token_ids` by `margin`."""
    generation = Generation(
        output_token_ids=tuple(token_ids),
        finish_reason=finish_reason,
        ttft_s=0.1,
        e2e_s=0.2,
        step_gaps_s=(0.1,),
        num_rounds=1,
        layers_run=4,
        exits=(),
        drafted_per_exit=(),
        accepted_per_exit=(),
        draft_depths=(4,) * len(token_ids),
    )
    rows = torch.zeros(len(token_ids), VOCAB)
    rows[torch.arange(len(token_ids)), token_ids] = margin
    return Decoded(generation, rows.to(dtype) if logits else None)


def test_equal_outputs_and_bits_are_exact():
    assert compare(decoded([1, 2, 3]), decoded([1, 2, 3]), "float32") == Comparison(
        parity="exact",
        logits_equal=True,
        first_diff_idx=None,
        vanilla_token_id=None,
        method_token_id=None,
        vanilla_margin=None,
        method_margin=None,
    )


def test_equal_tokens_with_other_bits_are_exact_but_not_equal_in_logits():
    found = compare(decoded([1, 2, 3]), decoded([1, 2, 3], margin=5.0000005), "float32")
    assert (found.parity, found.logits_equal, found.first_diff_idx) == ("exact", False, None)


def test_bits_count_not_values():
    vanilla, other = decoded([1, 2]), decoded([1, 2])
    other.logits[0, 5] = -0.0
    assert torch.equal(vanilla.logits, other.logits), "minus zero equals zero as a number"
    assert compare(vanilla, other, "float32").logits_equal is False
    assert logits_digest(vanilla.logits) != logits_digest(other.logits)


def test_logits_of_another_dtype_are_not_equal():
    other = decoded([1, 2], dtype=torch.float16)
    assert compare(decoded([1, 2]), other, "float32").logits_equal is False


def test_logits_that_were_not_recorded_are_not_compared():
    for vanilla, other in (({"logits": False}, {}), ({}, {"logits": False})):
        found = compare(decoded([1, 2], **vanilla), decoded([1, 3], **other), "float32")
        assert found.logits_equal is None
        assert found.parity == "mismatch"


def test_the_first_difference_comes_with_both_tokens_and_both_margins():
    found = compare(decoded([1, 2, 3, 4], margin=0.25), decoded([1, 2, 7, 4], margin=2.0), "float32")
    assert found == Comparison(
        parity="mismatch",
        logits_equal=False,
        first_diff_idx=2,
        vanilla_token_id=3,
        method_token_id=7,
        vanilla_margin=0.25,
        method_margin=2.0,
    )


def test_an_output_that_is_a_prefix_differs_where_it_ends():
    found = compare(decoded([1, 2, 3]), decoded([1, 2]), "float32")
    assert (found.parity, found.first_diff_idx) == ("mismatch", 2)
    assert (found.vanilla_token_id, found.method_token_id, found.method_margin) == (3, None, None)
    found = compare(decoded([1, 2]), decoded([1, 2, 3]), "float32")
    assert (found.parity, found.first_diff_idx) == ("mismatch", 2)
    assert (found.vanilla_token_id, found.method_token_id, found.vanilla_margin) == (None, 3, None)


def test_an_output_that_is_cut_short_at_a_near_tie_is_no_near_tie():
    found = compare(decoded([1, 2, 3], margin=0.0), decoded([1, 2]), "float32")
    assert (found.parity, found.vanilla_margin) == ("mismatch", 0.0)


def test_another_finish_reason_is_a_mismatch():
    found = compare(decoded([1, 2]), decoded([1, 2], finish_reason="eos"), "float32")
    assert (found.parity, found.first_diff_idx, found.logits_equal) == ("mismatch", None, True)


@pytest.mark.parametrize(
    ("margin", "near_in"),
    [
        (0.0, {"float32", "float16", "bfloat16"}),
        (0.0009, {"float32", "float16", "bfloat16"}),
        (0.0625, {"float16", "bfloat16"}),
        (0.5, {"bfloat16"}),
        (0.75, set()),
    ],
)
def test_a_near_tie_is_one_by_vanillas_margin_and_the_dtype(margin, near_in):
    vanilla, other = decoded([1, 2, 3], margin=margin), decoded([1, 4, 3], margin=9.0)
    near = {d for d in ("float32", "float16", "bfloat16") if compare(vanilla, other, d).parity == "near_tie"}
    assert near == near_in


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_digests_are_equal_exactly_when_the_bits_are(dtype):
    logits = torch.randn(7, 11, generator=torch.Generator().manual_seed(0)).to(dtype)
    digest = logits_digest(logits)
    assert digest == logits_digest(logits.clone())
    assert digest == logits_digest(torch.stack(list(logits.T)).T), "memory layout does not matter"
    assert len(digest) == 32
    bits = logits.view(torch.int16 if dtype.itemsize == 2 else torch.int32)
    for idx in range(logits.numel()):
        changed = bits.clone()
        changed.view(-1)[idx] ^= 1
        assert logits_digest(changed.view(dtype)) != digest


def test_logits_that_were_not_recorded_have_no_digest():
    assert logits_digest(None) is None
