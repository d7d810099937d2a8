"""Exit heads: what they propose, and that their exits fit the model."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adadecode.engine.policy import paper_exits
from adadecode.errors import ExitHeadsError
from adadecode.kernels.step import DecodeStep, Proposals, Segment
from adadecode.kernels.weights import ExitTest, Gate
from adadecode.model.decoder import DecoderModel
from adadecode.model.exit_heads import ExitHeads, check_exits
from adadecode.model.head_tensors import HeadTensors, original_heads
from tests.models import KERNELS_AND_DTYPES, random_gates, random_heads, random_transforms, shortlist_of, tiny_model

CLOSE = {torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.06}


def propose(heads: ExitHeads, exit_layer: int, step: DecodeStep, lo: int, hi: int) -> Proposals | None:
    """What `heads` propose for slots [lo, hi), which stand at `exit_layer` already."""
    return step.run_to_exit(Segment(lo, hi, exit_layer, exit_layer), exit_test(heads, exit_layer), lo)


def exit_test(heads: ExitHeads, exit_layer: int) -> ExitTest:
    return dict(zip(heads.exits, heads.tests, strict=True))[exit_layer]


def gate_at(heads: ExitHeads, exit_layer: int) -> Gate:
    gate = exit_test(heads, exit_layer).gate
    assert gate is not None
    return gate


def step_with_random_rows(model: DecoderModel, width: int = 8) -> DecodeStep:
    step = model.new_step(width, 20)
    step.hidden.copy_(torch.randn(width, model.width, generator=torch.Generator().manual_seed(1)))
    return step


@pytest.mark.parametrize(("kernels", "dtype"), KERNELS_AND_DTYPES)
@torch.inference_mode()
def test_a_proposal_is_the_argmax_with_its_softmax_probability_in_every_slot_asked_about(kernels, dtype):
    model = tiny_model(kernels=kernels, dtype=dtype)
    heads = random_heads(model, (2,))
    step = step_with_random_rows(model)
    probabilities = heads.logits(2, step.hidden).float().softmax(dim=-1)
    for lo, hi in ((0, 8), (3, 6), (7, 8)):
        proposals = propose(heads, 2, step, lo, hi)
        for row, (token_id, confidence) in zip(probabilities[lo:hi], proposals, strict=True):
            assert row[token_id] == pytest.approx(row.max().item(), rel=CLOSE[dtype])
            assert confidence == pytest.approx(row.max().item(), rel=CLOSE[dtype])


@pytest.mark.parametrize(("kernels", "dtype"), KERNELS_AND_DTYPES)
@torch.inference_mode()
def test_a_shortlist_proposes_the_full_heads_best_token_in_the_shortlist(kernels, dtype):
    model = tiny_model(kernels=kernels, dtype=dtype)
    transforms, token_ids = random_transforms(model, (1, 3)), [90, 3, 41, 42, 77, 5, 0]
    shortlist = shortlist_of(model, transforms, token_ids)
    heads = HeadTensors({e: (t,) for e, t in transforms.items()}, shortlist).on(model, "shortlist")
    step = step_with_random_rows(model)
    for exit_layer in (1, 3):
        over_shortlist = heads.logits(exit_layer, step.hidden).float()[:, token_ids].softmax(dim=-1)
        proposals = propose(heads, exit_layer, step, 0, 8)
        for row, (token_id, confidence) in zip(over_shortlist, proposals, strict=True):
            assert row[token_ids.index(token_id)] == pytest.approx(row.max().item(), rel=CLOSE[dtype])
            assert confidence == pytest.approx(row.max().item(), rel=CLOSE[dtype])


def test_a_shortlist_of_the_whole_vocabulary_proposes_what_the_full_head_does(model):
    transforms = random_transforms(model, (2,))
    tensors = HeadTensors({2: (transforms[2],)}, shortlist_of(model, transforms, range(97)))
    full, listed = tensors.on(model), tensors.on(model, "shortlist")
    step = step_with_random_rows(model)
    for ours, theirs in zip(propose(listed, 2, step, 0, 8), propose(full, 2, step, 0, 8), strict=True):
        assert ours == (theirs[0], pytest.approx(theirs[1], rel=1e-4))


@pytest.mark.parametrize(("kernels", "dtype"), KERNELS_AND_DTYPES)
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
@torch.inference_mode()
def test_a_gate_is_a_logistic_regression_on_the_normed_hidden_state(scale, kernels, dtype):
    model = tiny_model(kernels=kernels, dtype=dtype)
    gates = {e: gate * scale for e, gate in random_gates(model, (1, 2)).items()}
    heads = random_heads(model, (1, 2), gates=gates, gate=0.5)
    step = step_with_random_rows(model)
    for exit_layer in (1, 2):
        logits = model.final_norm(step.hidden).float() @ gates[exit_layer][:-1] + gates[exit_layer][-1]
        for slot, expected in enumerate(logits.sigmoid().tolist()):
            probability = step.probe(gate_at(heads, exit_layer), slot)
            assert probability == pytest.approx(expected, rel=CLOSE[dtype], abs=CLOSE[dtype])


@torch.inference_mode()
def test_a_gate_skips_the_test_of_a_slot_that_is_not_worth_it(model):
    gates = random_gates(model, (2,))
    step = step_with_random_rows(model)
    free = random_heads(model, (2,), gates=gates)
    gate = gate_at(random_heads(model, (2,), gates=gates, gate=0.5), 2)
    probabilities = [step.probe(gate, slot) for slot in range(8)]
    bar = sorted(probabilities)[3] + 1e-6
    gated = random_heads(model, (2,), gates=gates, gate=bar)
    for slot, probability in enumerate(probabilities):
        expected = propose(free, 2, step, slot, slot + 1) if probability > bar else None
        assert propose(gated, 2, step, slot, slot + 1) == expected
    assert propose(gated, 2, step, 0, 8) == propose(free, 2, step, 0, 8), "the others are tested anyway"
    assert sum(probability > bar for probability in probabilities) == 4


def test_a_gate_of_1_skips_every_test_and_a_gate_of_0_none(model):
    gates = random_gates(model, (1, 2, 3))
    step = step_with_random_rows(model)
    closed, opened = (random_heads(model, (1, 2, 3), gates=gates, gate=gate) for gate in (1.0, 0.0))
    for exit_layer in (1, 2, 3):
        for slot in range(8):
            assert propose(closed, exit_layer, step, slot, slot + 1) is None
            assert propose(opened, exit_layer, step, slot, slot + 1) is not None


@pytest.mark.parametrize("exits", [(), (0,), (4,), (1, 4), (2, 1), (2, 2)])
def test_check_exits_refuses_what_does_not_increase_within_the_model(exits):
    with pytest.raises(ExitHeadsError, match=r"1\.\.3 for a model of 4 layers"):
        check_exits(exits, 4)


def test_exit_heads_are_what_is_tested_at_each_exit(model):
    heads = ExitHeads(model, {1: ExitTest(model.weights.head), 3: ExitTest(model.weights.head)})
    assert heads.exits == (1, 3)
    step = step_with_random_rows(model)
    assert [token_id for token_id, _ in propose(heads, 3, step, 0, 8)] == step.verify(0, 8)[0]
    with pytest.raises(ExitHeadsError, match=r"exit layers \[4\] must increase and lie in 1\.\.3"):
        ExitHeads(model, {4: ExitTest(model.weights.head)})


@given(num_layers=st.integers(2, 40))
def test_the_papers_exits_fit_every_model(num_layers):
    exits = paper_exits(num_layers)
    check_exits(exits, num_layers)
    assert len(exits) == min(3, num_layers - 1)
    assert num_layers // 2 in exits
    for exit_layer, quarter in zip(exits, (1, 2, 3), strict=False):
        if num_layers >= 4:
            assert exit_layer == num_layers * quarter // 4


@pytest.mark.parametrize(("kernels", "dtype"), KERNELS_AND_DTYPES)
def test_original_heads_propose_what_the_models_own_head_says(kernels, dtype):
    model = tiny_model(dtype=dtype, kernels=kernels)
    heads = original_heads(model, (1, 3))
    assert (heads.exits, heads.content_hash) == ((1, 3), "original")
    step = model.new_step(8, 16)
    with torch.inference_mode():
        step.begin(0)
        step.put(0, [5, 6, 7])
        step.run(0, 3, 0, 1)
        proposed = propose(heads, 1, step, 0, 3)
        assert [token_id for token_id, _ in proposed] == step.verify(0, 3)[0], "the identity changes no bit"
        assert torch.equal(heads.logits(1, step.hidden), model.lm.lm_head(model.final_norm(step.hidden)))
