"""Draws of decode steps: those of `draw_rows` from the logits at hand, whichever kernels, slots and company."""

import math
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adadecode.kernels import native
from adadecode.kernels.native import NativeStep
from adadecode.kernels.sampling import Draw, draw_rows
from adadecode.kernels.step import DecodeStep, Segment
from adadecode.kernels.weights import ExitTest, Head
from tests.models import KERNELS_AND_DTYPES, needs_compiler, tiny_model

DRAWS = (
    Draw(1.0, key=3),
    Draw(0.7, top_k=5, key=1 << 40),
    Draw(1.5, top_p=0.9, key=4, first_position=3),
    Draw(0.9, top_k=40, top_p=0.7, min_p=0.2, key=(1 << 64) - 1, first_position=9),
)
ANY_DRAW = st.builds(
    Draw,
    st.sampled_from([0.05, 0.3, 0.7, 1.0, 1.5, 20.0]),
    st.sampled_from([0, 0, 1, 2, 7, 50, 10_000]),
    st.sampled_from([1.0, 1.0, 1e-9, 0.1, 0.5, 0.9, 0.999, 1 - 1e-9]),
    st.sampled_from([0.0, 0.0, 0.01, 0.3, 1.0]),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 12),
)


def places(draw: Draw, first_position: int, lo: int, hi: int) -> torch.Tensor:
    return torch.arange(lo, hi) + first_position + 1 - draw.first_position


@needs_compiler
@given(
    ANY_DRAW,
    st.sampled_from([1, 5, 8, 64, 97, 1000, 3001]),
    st.sampled_from([0.0, 0.01, 0.5, 3.0, 30.0]),
    st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from([1, 2, 3]),
    st.integers(0, 1 << 30),
)
@example(Draw(1.0, top_p=0.9, key=1), 3001, 0.0, False, torch.float32, 2, 1)
@settings(max_examples=12, deadline=None)
@torch.inference_mode()
def test_native_kernels_draw_what_torch_does_from_the_same_logits(
    draw, num_outputs, spread, is_shortlist, dtype, threads, seed
):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = tiny_model(kernels="native", num_layers=1, dtype=dtype)
        step = model.new_step(8, 30)
        generator = torch.Generator().manual_seed(seed)
        step.hidden.copy_(torch.randn(step.hidden.shape, generator=generator))
        step.begin(12)
        step.draw_by(draw)
        ids, tops = step.verify(1, 6)
        drawn = draw_rows(step.logits[1:6], draw, places(draw, 12, 1, 6))
        assert (ids, tops) == (drawn.token_ids.tolist(), drawn.logits.tolist())

        # a matrix with one column in use: equal numbers there are equal logits
        matrix = torch.zeros(num_outputs, model.width, dtype=dtype)
        matrix[:, 3] = (torch.randn(num_outputs, generator=generator) * spread * 4).round() / 4
        names = torch.randperm(2 * num_outputs, generator=generator)[:num_outputs] if is_shortlist else None
        proposals, logits = proposals_and_logits(step, Head((matrix,), names), 5)
        drawn = draw_rows(logits, draw, places(draw, 12, 0, 5), names)
        assert proposals == list(zip(drawn.token_ids.tolist(), drawn.probabilities.tolist(), strict=True))
    finally:
        torch.set_num_threads(before)


@needs_compiler
@torch.inference_mode()
def test_native_kernels_tell_outputs_next_to_the_end_of_top_p_apart():
    """Outputs of two sizes, whose bounds are off by unlike shares: top-p keeps 500 of the first, 480 of the second."""
    model = tiny_model(kernels="native", num_layers=1)
    step = model.new_step(32, 40)
    assert isinstance(step, NativeStep)
    step.hidden.fill_(1.0)
    matrix = torch.zeros(1500, model.width)
    matrix[500:, 3] = -0.386  # 1000 outputs of 0.68 times the chance of each of the first 500
    head, logits = Head((matrix / model.weights.norm[3],)), torch.zeros(32, 1500)
    nearest = 0
    for key in range(40):
        draw = Draw(1.0, top_p=0.7, key=key)
        step.draw_by(draw)
        step.begin(5)
        step._run_head(head, 0, 32, logits.data_ptr(), None)
        drawn = draw_rows(logits, draw, places(draw, 5, 0, 32))
        assert step._ids[:] == drawn.token_ids.tolist()
        nearest = max(nearest, *step._ids)
    assert 970 < nearest < 985, "a draw next to the end"


def proposals_and_logits(step: DecodeStep, head: Head, num_rows: int) -> tuple[list[tuple[int, float]], torch.Tensor]:
    """What `head` proposes for the first rows of a native step, and from which logits."""
    assert isinstance(step, NativeStep)
    logits = torch.zeros(num_rows, len(head.matrices[-1]), dtype=step.hidden.dtype)
    step._run_head(head, 0, num_rows, logits.data_ptr(), step._probabilities)
    return step._proposals(num_rows), logits


@pytest.mark.parametrize(("kernels", "dtype"), KERNELS_AND_DTYPES)
@pytest.mark.parametrize("draw", [DRAWS[3], *(pytest.param(draw, marks=pytest.mark.slow) for draw in DRAWS[:3])])
@torch.inference_mode()
def test_a_row_draws_the_same_in_every_slot_and_beside_any_rows(kernels, dtype, draw):
    model = tiny_model(kernels=kernels, dtype=dtype)
    head = Head((model.weights.head.matrices[0][:50].contiguous(),), torch.randperm(model.vocab_size)[:50])
    seen = set()
    for slot in (0, 3, 7):
        for lo, hi in {(0, 8), (slot, slot + 1)}:
            step = model.new_step(8, 40)
            step.prefill(list(range(1, 10)))
            step.draw_by(draw)
            step.begin(20 - slot)  # the slot stands at position 20, alone as far as it can see but for the prompt
            step.hidden.copy_(torch.randn(step.hidden.shape, generator=torch.Generator().manual_seed(slot + hi)))
            step.hidden[slot] = torch.linspace(-1, 1, model.width)
            ids, tops = step.verify(lo, hi)
            [(draft, chance)] = step.test(head, slot, slot + 1)
            assert (draft, chance) == step.test(head, lo, hi)[slot - lo]
            seen.add((ids[slot - lo], tops[slot - lo], draft, chance))
    assert len(seen) == 1


@pytest.mark.parametrize("num_stages", [1, 2])
@pytest.mark.parametrize(("kernels", "dtype"), [*KERNELS_AND_DTYPES, ("transformers", torch.float32)])
@torch.inference_mode()
def test_a_prompt_is_followed_by_what_is_drawn_from_its_logits_or_by_their_argmax(
    kernels, dtype, num_stages, monkeypatch
):
    if num_stages > 1 and kernels != "eager":
        pytest.skip("one device has one stage")
    monkeypatch.setattr(native, "BLOCK_LEN", 3)  # so that the prompt is run in two parts
    model, prompt = tiny_model(kernels=kernels, dtype=dtype, num_stages=num_stages), [1, 2, 3, 4]
    step = model.new_step(8, 40)
    plain = step.prefill(prompt)
    assert (plain.token_id, plain.top) == (int(plain.logits.argmax()), float(plain.logits.max()))
    drawn = set()
    for draw in (*DRAWS, *(Draw(1.5, key=key, first_position=4) for key in range(8))):
        step.draw_by(draw)
        step.begin(20)  # where it stood before makes no difference
        token_id, top, logits = step.prefill(prompt)
        expected = draw_rows(plain.logits[None], draw, places(draw, 3, 0, 1))
        assert (token_id, top) == (int(expected.token_ids), float(expected.logits))
        assert torch.equal(logits, plain.logits)
        drawn.add(token_id)
    assert len(drawn) > 3
    step.draw_by(None)
    assert step.prefill(prompt)[:2] == plain[:2]
    for broken_by, bad in ((None, math.nan), (DRAWS[0], math.nan), (DRAWS[0], math.inf)):
        broken = tiny_model(kernels=kernels, dtype=dtype)
        for weight in (broken.weights.norm, broken.lm.model.norm.weight):
            weight[0] = bad
        step = broken.new_step(8, 40)
        step.draw_by(broken_by)
        assert torch.tensor(step.prefill(prompt).top).isnan()


@pytest.mark.parametrize(("kernels", "dtype"), KERNELS_AND_DTYPES)
@torch.inference_mode()
def test_run_to_exit_verify_and_test_draw_alike_and_the_argmax_is_back_afterwards(kernels, dtype):
    model = tiny_model(kernels=kernels, dtype=dtype)
    head = model.weights.head
    test = ExitTest(head, None, 0.0)

    def play(step: DecodeStep) -> tuple[Any, Any]:
        step.prepare((2, model.num_layers), [test])
        step.begin(4)
        step.put(0, [5, 6, 7])
        step.run(0, 3, 0, 2)
        through = step.run_to_exit(Segment(0, 3, 2, model.num_layers), test, 1)
        assert through == step.test(head, 1, 3)
        return through, step.verify(0, 3)

    plain, other = model.new_step(8, 40), model.new_step(8, 40)
    for step in (plain, other):
        step.prefill([1, 2, 3, 4])
    greedy = play(plain)
    for draw in DRAWS:
        other.draw_by(draw)
        (proposals, (ids, tops)) = play(other)
        drawn = draw_rows(other.logits[:3], draw, places(draw, 4, 0, 3))
        assert ids == drawn.token_ids.tolist()
        assert tops == drawn.logits.tolist()
        if dtype is torch.float32:  # no rounding of logits stands between a test and a verification
            assert [token_id for token_id, _ in proposals] == ids[1:]
    other.draw_by(None)
    assert play(other) == greedy


@pytest.mark.parametrize(("kernels", "dtype"), KERNELS_AND_DTYPES)
@torch.inference_mode()
def test_a_row_that_is_not_finite_is_told_alone(kernels, dtype):
    step = tiny_model(kernels=kernels, num_layers=1, dtype=dtype).new_step(8, 20)
    step.hidden.fill_(1.0)
    step.hidden[1, 3] = float("nan")
    step.begin(4)
    for draw in DRAWS:
        step.draw_by(draw)
        _, tops = step.verify(0, 3)
        assert [top == top for top in tops] == [True, False, True]
