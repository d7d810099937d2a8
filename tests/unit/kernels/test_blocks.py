"""Heads with a layer of their own: every kernel gives what that layer gives over the whole sequence."""

import random
from dataclasses import replace

import pytest
import torch

from adadecode.engine.drafters import drafters_of
from adadecode.engine.generate import Request, generate
from adadecode.engine.policy import Policy
from adadecode.kernels.layers import sequence_step
from adadecode.kernels.step import DecodeStep, Proposals, Segment, run_probe_test
from adadecode.kernels.weights import ExitTest, Gate
from adadecode.model.decoder import DecoderModel
from adadecode.model.exit_heads import ExitHeads
from tests.models import FAMILIES, KERNELS, KERNELS_AND_DTYPES, NATIVE_DTYPES, block_heads, needs_compiler, tiny_model

EXITS = (1, 3)
PROMPT = [(5 * i + 2) % 97 for i in range(21)]  # more than the W rows of a step
CLOSE = {torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}


def exit_tests(heads: ExitHeads) -> dict[int, ExitTest]:
    return dict(zip(heads.exits, heads.tests, strict=True))


@torch.inference_mode()
def confidences_of_the_sequence(model: DecoderModel, heads: ExitHeads, token_ids: list[int], exit_layer: int):
    """Probabilities `[T, K]` of the head at `exit_layer` after each of `token_ids`, computed over all of them at once."""
    weights = model.weights
    hidden = model.embed(torch.tensor(token_ids))
    for layer in weights.layers[:exit_layer]:
        hidden = sequence_step(layer, weights.shape, hidden, weights.rotaries[0])
    entered = heads.enter(exit_layer, hidden[None])[0]
    return heads.logits(exit_layer, entered).float().softmax(dim=-1)


def started(model: DecoderModel, heads: ExitHeads) -> DecodeStep:
    step = model.new_step(8, 60)
    step.prepare((*EXITS, model.num_layers), heads.tests)
    step.prefill(PROMPT)
    return step


def proposals_after(step: DecodeStep, heads: ExitHeads, first: int, token_ids: list[int]) -> dict[int, Proposals]:
    """What each exit proposes after `token_ids`, which stand from position `first` on and pass the layers together."""
    step.begin(first)
    step.put(0, token_ids)
    found, start, num_rows = {}, 0, len(token_ids)
    for exit_layer, test in exit_tests(heads).items():
        proposals = step.run_to_exit(Segment(0, num_rows, start, exit_layer), test, 0)
        assert proposals is not None
        found[exit_layer], start = proposals, exit_layer
    step.run(0, num_rows, start, 4)
    return found


@pytest.mark.parametrize(("kernels", "dtype"), KERNELS_AND_DTYPES)
@torch.inference_mode()
def test_a_block_sees_the_whole_sequence_in_every_kernel(kernels, dtype):
    """Wrong drafts stand where right tokens come later, in steps of one row and of several."""
    model = tiny_model(dtype=dtype, kernels=kernels)
    heads = block_heads(model, EXITS)
    step, rng = started(model, heads), random.Random(0)
    sequence = list(PROMPT)
    for num_rows in (1, 3, 2, 5, 1):
        token_ids = [rng.randrange(97) for _ in range(num_rows)]
        wrong = [rng.randrange(97) for _ in range(4)]
        proposals_after(step, heads, len(sequence), wrong)  # rejected: the columns are written anew
        found = proposals_after(step, heads, len(sequence), token_ids)
        sequence += token_ids
        for exit_layer in EXITS:
            expected = confidences_of_the_sequence(model, heads, sequence, exit_layer)[-num_rows:]
            for row, (token_id, confidence) in zip(expected, found[exit_layer], strict=True):
                assert confidence == pytest.approx(row.max().item(), rel=CLOSE[dtype])
                assert row[token_id].item() == pytest.approx(row.max().item(), rel=CLOSE[dtype])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kernels", KERNELS)
def test_rounds_with_blocks_keep_every_bit_of_vanilla(family, kernels):
    model = tiny_model(family, kernels=kernels)
    heads = block_heads(model, EXITS)
    policy = Policy(EXITS, (0.05, 0.1), max_drafts=5, reject=0.3)
    request = Request(PROMPT, 24, record_logits=True)
    vanilla = generate(model, request, Policy(rows=policy.width))
    early = generate(model, request, policy, drafters_of(policy, heads))
    assert early.generation.output_token_ids == vanilla.generation.output_token_ids
    assert torch.equal(early.logits, vanilla.logits)
    assert early.generation.num_drafted > early.generation.num_accepted > 0


@pytest.mark.parametrize(("kernels", "dtype"), NATIVE_DTYPES)
@torch.inference_mode()
def test_a_row_of_a_block_has_the_same_bits_alone_and_in_company(kernels, dtype):
    model = tiny_model(dtype=dtype, kernels=kernels)
    heads = block_heads(model, EXITS)
    together = proposals_after(started(model, heads), heads, len(PROMPT), [3, 1, 4, 1, 5])
    step = started(model, heads)
    for idx, token_id in enumerate([3, 1, 4, 1, 5]):
        alone = proposals_after(step, heads, len(PROMPT) + idx, [token_id])
        assert {e: [rows[idx]] for e, rows in together.items()} == alone


@pytest.mark.parametrize("kernels", KERNELS)
@torch.inference_mode()
def test_a_request_without_blocks_runs_none(kernels):
    """What was prepared for an earlier request on the same step leaves no trace."""
    model = tiny_model(kernels=kernels)
    heads = block_heads(model, EXITS)
    step = started(model, heads)
    rows = step.read_by(exit_tests(heads)[1].head)
    before = rows.clone()
    step.prepare((*EXITS, model.num_layers), ())
    step.prefill(PROMPT)
    step.begin(len(PROMPT))
    step.put(0, [1])
    step.run(0, 1, 0, 1)
    assert torch.equal(rows, before)
    with pytest.raises(KeyError):
        step.read_by(exit_tests(heads)[1].head)


@pytest.mark.parametrize("kernels", KERNELS)
@torch.inference_mode()
def test_other_heads_at_the_same_exits_take_their_place_and_never_stand_beside_them(kernels):
    model = tiny_model(kernels=kernels)
    first, second = block_heads(model, EXITS), block_heads(model, EXITS, seed=1)
    step = started(model, first)
    step.prepare((*EXITS, model.num_layers), second.tests)
    step.prefill(PROMPT)
    expected = proposals_after(started(model, second), second, len(PROMPT), [7, 8])
    assert proposals_after(step, second, len(PROMPT), [7, 8]) == expected
    with pytest.raises(ValueError, match="two blocks at exit layer 1"):
        step.prepare((), [*first.tests, *second.tests])


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_segment_a_block_a_gate_and_a_test_in_one_call_are_what_they_are_one_by_one(dtype):
    """Any slots pass, any of them are tested, and what each exit reads is the same afterwards."""
    model = tiny_model(kernels="native", dtype=dtype)
    heads = block_heads(model, EXITS)
    gate = Gate(torch.randn(model.width, generator=torch.Generator().manual_seed(0)), 0.1)
    tests = {e: replace(test, gate=gate, least=0.5) if e == 1 else test for e, test in exit_tests(heads).items()}
    together, apart = started(model, heads), started(model, heads)
    rng, num_skipped = random.Random(0), 0
    for _ in range(60):
        first, lo = rng.randrange(len(PROMPT), 50), rng.randrange(8)
        hi = rng.randrange(lo, 8) + 1
        token_ids = [rng.randrange(97) for _ in range(8)]
        for step in (together, apart):
            step.begin(first)
            step.put(0, token_ids)
        start = 0
        for exit_layer, test in tests.items():
            first_tested = rng.randrange(lo, hi)
            segment = Segment(lo, hi, start, exit_layer)
            found = together.run_to_exit(segment, test, first_tested)
            assert found == run_probe_test(apart, segment, test, first_tested)
            num_skipped += found is None
            assert torch.equal(together.read_by(test.head), apart.read_by(test.head))
            start = exit_layer
        for step in (together, apart):
            step.run(lo, hi, start, model.num_layers)
        assert together.verify(lo, hi) == apart.verify(lo, hi)
    assert num_skipped > 0, "no gate skipped a test"


@needs_compiler
@torch.inference_mode()
def test_a_block_that_was_not_prepared_is_refused():
    model = tiny_model(kernels="native")
    heads, others = block_heads(model, EXITS), block_heads(model, EXITS)
    step = started(model, heads)
    with pytest.raises(ValueError, match="the block of a head at exit layer 1 was not prepared"):
        step.run_to_exit(Segment(0, 1, 0, 1), exit_tests(others)[1], 0)
    with pytest.raises(ValueError, match="the block of a head at exit layer 2 was not prepared"):
        step.run_to_exit(Segment(0, 1, 0, 2), exit_tests(heads)[1], 0)
