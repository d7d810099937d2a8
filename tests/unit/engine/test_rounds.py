"""Scripted exit heads force every way a round can go."""

import itertools

import pytest
import torch

from adadecode.engine.generate import Request, generate
from adadecode.engine.policy import OneExit, Policy, make_policy, step_width
from adadecode.engine.tally import Decoded
from adadecode.errors import NonFiniteLogitsError, PromptTooLongError, UsageError
from adadecode.settings import DecodeSettings
from tests.models import KERNELS, KERNELS_AND_DTYPES, ScriptedExitHead, tiny_model

PROMPT = [11, 12, 13]
EXITS = (1, 2, 3)
WIDTH = 8


@pytest.fixture(scope="module", params=KERNELS)
def model(request):
    return tiny_model(num_layers=4, kernels=request.param)


@pytest.fixture(scope="module")
def vanilla(model) -> Decoded:
    return generate(model, Request(PROMPT, 24, (), record_logits=True))


def right_at(vanilla: Decoded, position: int) -> int:
    """The token vanilla emits after `position`."""
    return vanilla.generation.output_token_ids[position - len(PROMPT) + 1]


def decode(model, heads, *, max_new_tokens=24, max_drafts=5, eos=()) -> Decoded:
    policy = Policy(heads.exits, (0.5,) * len(heads.exits), max_drafts)
    return generate(model, Request(PROMPT, max_new_tokens, eos, record_logits=True), policy, heads.drafters())


PATTERNS = [p for n in range(1, 6) for p in itertools.product([True, False], repeat=n)]


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: "".join("ar"[not ok] for ok in p))
def test_every_accept_reject_pattern_ends_in_vanillas_tokens(model, vanilla, pattern):
    """The first round drafts `pattern` (right or wrong each), at exits that vary with the slot; no later round drafts."""
    first = len(PROMPT)
    script = {}
    for i, right in enumerate(pattern):
        token = right_at(vanilla, first + i)
        exit_layer = EXITS[(len(pattern) - i) % len(EXITS)]
        script[first + i] = {exit_layer: (token if right else (token + 1) % 97, 0.9)}
    result = decode(model, ScriptedExitHead(EXITS, script))
    accepted = pattern.index(False) if False in pattern else len(pattern)
    generation = result.generation
    assert generation.output_token_ids == vanilla.generation.output_token_ids
    assert torch.equal(result.logits, vanilla.logits)
    # A position after the rejected one is decoded again in a later round, where its script speaks once more.
    assert generation.num_drafted >= len(pattern)
    assert sum(generation.drafted_per_exit) == generation.num_drafted
    alone = decode(model, ScriptedExitHead(EXITS, script), max_new_tokens=len(pattern) + 2).generation
    depths = [EXITS[(len(pattern) - i) % len(EXITS)] for i in range(accepted)]
    assert alone.draft_depths[1 : accepted + 2] == (*depths, 4), "the first round takes exactly the accepted drafts"


@pytest.mark.parametrize("wrong_at", range(22))
def test_a_rejection_at_any_position_is_replaced_by_the_argmax(model, vanilla, wrong_at):
    script = {}
    for i in range(23):
        token = right_at(vanilla, len(PROMPT) + i)
        script[len(PROMPT) + i] = {2: (token if i != wrong_at else (token + 1) % 97, 0.9)}
    result = decode(model, ScriptedExitHead(EXITS, script))
    assert result.generation.output_token_ids == vanilla.generation.output_token_ids
    assert torch.equal(result.logits, vanilla.logits)
    was_drafted = wrong_at % 6 != 5  # the sixth token of a full round comes from the last layer
    num_dropped = result.generation.num_drafted - result.generation.num_accepted
    assert (num_dropped > 0) == was_drafted


@pytest.mark.parametrize("eos_at", range(1, 24))
@pytest.mark.parametrize("eos_drafted", [True, False])
def test_eos_at_any_position_ends_both_methods_alike(model, vanilla, eos_at, eos_drafted):
    eos = {vanilla.generation.output_token_ids[eos_at]}
    plain = generate(model, Request(PROMPT, 24, eos, record_logits=True))
    script = {}
    for i in range(23):
        token = right_at(vanilla, len(PROMPT) + i)
        script[len(PROMPT) + i] = {1: (token, 0.9)} if eos_drafted or token not in eos else {}
    result = decode(model, ScriptedExitHead(EXITS, script), eos=eos)
    assert result.generation.output_token_ids == plain.generation.output_token_ids
    assert result.generation.finish_reason == plain.generation.finish_reason == "eos"
    assert torch.equal(result.logits, plain.logits)
    assert not eos & set(result.generation.output_token_ids[:-1])


def test_nothing_is_drafted_past_a_confident_eos_even_a_wrong_one(model, vanilla):
    wrong_eos = next(t for t in range(97) if t not in vanilla.generation.output_token_ids)
    heads = ScriptedExitHead(EXITS, {len(PROMPT) + i: {1: (wrong_eos, 0.9), 2: (5, 0.9)} for i in range(23)})
    result = decode(model, heads, eos={wrong_eos})
    assert result.generation.output_token_ids == vanilla.generation.output_token_ids
    assert result.generation.num_drafted == 0
    assert {exit_layer for _, exit_layer in heads.asked} == {1}, "after a confident EOS no deeper exit is asked"


@pytest.mark.parametrize("max_new_tokens", range(1, 12))
@pytest.mark.parametrize("max_drafts", [0, 1, 5])
def test_max_new_tokens_is_exact_when_every_draft_is_right(model, vanilla, max_new_tokens, max_drafts):
    script = {len(PROMPT) + i: {1: (right_at(vanilla, len(PROMPT) + i), 0.9)} for i in range(23)}
    heads = ScriptedExitHead(EXITS, script)
    result = decode(model, heads, max_new_tokens=max_new_tokens, max_drafts=max_drafts)
    assert result.generation.output_token_ids == vanilla.generation.output_token_ids[:max_new_tokens]
    assert result.generation.finish_reason == "length"
    rounds = -(-(max_new_tokens - 1) // (max_drafts + 1))
    assert result.generation.num_rounds == rounds
    assert result.generation.num_accepted == max_new_tokens - 1 - rounds


def test_statistics_of_a_round_with_drafts_at_two_exits(model, vanilla):
    """Drafts at layers 3 and 1, then a full token: segments [0,3) [0,1) [0,1) [1,2) [2,3) [3,4) are run once each."""
    first = len(PROMPT)
    script = {first: {3: (right_at(vanilla, first), 0.9)}, first + 1: {1: (right_at(vanilla, first + 1), 0.9)}}
    generation = decode(model, ScriptedExitHead(EXITS, script), max_new_tokens=4).generation
    assert generation.num_rounds == 1
    assert generation.layers_run == 3 + 1 + 4
    assert generation.draft_depths == (4, 3, 1, 4)
    assert generation.drafted_per_exit == generation.accepted_per_exit == (1, 0, 1)
    assert generation.layers_per_token == pytest.approx(8 / 3)
    assert len(generation.step_gaps_s) == 1
    assert generation.decode_s == pytest.approx(sum(generation.step_gaps_s))


def test_the_exits_above_a_draft_are_asked_about_the_current_token_alone(model, vanilla):
    """Without early rejection nobody asks what a parked token's deeper heads say."""
    first = len(PROMPT)
    script = {first: {1: (right_at(vanilla, first), 0.9)}, first + 1: {2: (right_at(vanilla, first + 1), 0.9)}}
    heads = ScriptedExitHead(EXITS, script)
    decode(model, heads, max_new_tokens=4)
    current = [(positions[0], exit_layer) for positions, exit_layer in heads.asked if len(positions) == 1]
    assert len(current) == len(heads.asked)
    assert current == [(first, 1), (first + 1, 1), (first + 1, 2)], "max_new_tokens leaves room for two drafts"


def test_a_skipped_test_drafts_nothing_and_the_next_exit_is_asked(model, vanilla):
    first = len(PROMPT)
    heads = ScriptedExitHead(EXITS, {first: {1: None, 2: (right_at(vanilla, first), 0.9)}})
    generation = decode(model, heads, max_new_tokens=3).generation
    assert generation.output_token_ids == vanilla.generation.output_token_ids[:3]
    assert generation.drafted_per_exit == (0, 1, 0)
    assert [exit_layer for _, exit_layer in heads.asked] == [1, 2]


def test_one_output_token_has_no_tpot(model):
    generation = generate(model, Request(PROMPT, 1), Policy(rows=1)).generation
    assert generation.tpot_s is None
    assert generation.layers_per_token is None
    assert generation.ttft_s == generation.e2e_s > 0


@pytest.mark.parametrize("kernels", KERNELS)
def test_output_ends_where_the_context_does(kernels):
    model = tiny_model(context_len=20, kernels=kernels)
    for prompt_len in (1, 18, 19):
        result = generate(model, Request([4] * prompt_len, 50), Policy(rows=4))
        assert len(result.generation.output_token_ids) == 20 - prompt_len
        assert result.generation.finish_reason == "length"


@pytest.mark.parametrize("kernels", KERNELS)
def test_every_position_up_to_the_end_of_the_context_can_be_drafted(kernels):
    """The widest step at the last positions: most of its rows stand past the cache."""
    model = tiny_model(context_len=63, kernels=kernels)
    request = Request(PROMPT, 99, (), record_logits=True)
    plain = generate(model, request, Policy(rows=72))
    script = {i: {1: (right_at(plain, i), 0.9)} for i in range(len(PROMPT), 62)}
    heads = ScriptedExitHead(EXITS, script)
    policy = Policy(EXITS, (0.5,) * 3, 64)
    result = generate(model, request, policy, heads.drafters())
    assert policy.width == 72
    assert result.generation.num_rounds == 1
    assert len(result.generation.output_token_ids) == 60
    assert result.generation.output_token_ids == plain.generation.output_token_ids
    assert torch.equal(result.logits, plain.logits)


@pytest.mark.parametrize("prompt_len", [0, 20, 21])
def test_a_prompt_without_room_is_a_clear_error(prompt_len):
    model = tiny_model(context_len=20)
    with pytest.raises(PromptTooLongError, match=rf"has {prompt_len} tokens.*1 to 19"):
        generate(model, Request([4] * prompt_len, 5), Policy(rows=4))


@pytest.mark.parametrize(("kernels", "dtype"), KERNELS_AND_DTYPES)
def test_logits_that_are_not_finite_are_a_clear_error(kernels, dtype):
    model = tiny_model(dtype=dtype, kernels=kernels)
    with torch.no_grad():
        model.lm.lm_head.weight.fill_(torch.finfo(dtype).max)
    with pytest.raises(NonFiniteLogitsError, match="not finite; try --dtype float32"):
        generate(model, Request([4, 5], 5), Policy(rows=2))


@pytest.mark.parametrize("bad_id", [0, 50, 96])
@pytest.mark.parametrize("kernels", KERNELS)
def test_one_logit_that_is_nan_is_a_clear_error(kernels, bad_id):
    model = tiny_model(kernels=kernels)
    with torch.no_grad():
        model.lm.lm_head.weight[bad_id] = float("nan")
    with pytest.raises(NonFiniteLogitsError, match="at position 1 are not finite"):
        generate(model, Request([4, 5], 5), Policy(rows=2))


@pytest.mark.parametrize("kernels", KERNELS)
def test_logits_that_are_not_finite_after_the_prefill_are_a_clear_error_too(kernels):
    model = tiny_model(kernels=kernels)
    first_id = generate(model, Request([4, 5], 5), Policy(rows=2)).generation.output_token_ids[0]
    assert first_id not in (4, 5)
    with torch.no_grad():
        model.lm.model.embed_tokens.weight[first_id] = float("nan")
    with pytest.raises(NonFiniteLogitsError, match="at position 2 are not finite"):
        generate(model, Request([4, 5], 5), Policy(rows=2))


@pytest.mark.parametrize("kernels", KERNELS)
def test_ties_go_to_the_lowest_id(kernels):
    model = tiny_model(kernels=kernels)
    with torch.no_grad():
        model.lm.lm_head.weight.zero_()
    assert set(generate(model, Request([4, 5], 6), Policy(rows=3)).generation.output_token_ids) == {0}


def test_policy_names_the_exits_that_have_no_head():
    with pytest.raises(UsageError, match=r"--exits 2,5.*no heads at \[5\].*heads are at 2,3"):
        make_policy(DecodeSettings(exits=(2, 5)), (2, 3), 8)


def test_policy_takes_rejection_and_ngrams_from_the_settings():
    policy = make_policy(DecodeSettings(gamma=(0.5, 0.7), reject=0.6, ngram=0.4, max_drafts=3), (2, 3), 8)
    assert policy == Policy((2, 3), (0.5, 0.7), 3, 0.6, 0.4, layerskip=OneExit(2, 4))
    assert policy.draft_exits == (0, 2, 3)
    assert make_policy(DecodeSettings(), (2, 3), 8) == Policy((2, 3), (0.75, 0.75), 5, layerskip=OneExit(2, 4))


def test_width_is_a_multiple_of_eight():
    assert [step_width(n) for n in (0, 5, 7, 8, 15)] == [8, 8, 8, 16, 16]
    assert [Policy(max_drafts=n).width for n in (0, 8)] == [WIDTH, 16]


@pytest.mark.parametrize(("kernels", "dtype"), KERNELS_AND_DTYPES)
def test_a_wrong_draft_that_overflows_leaves_vanillas_bits(kernels, dtype):
    """A masked column has weight zero, but zero times NaN is NaN: the overflow must not reach the rows beside it."""
    model = tiny_model(dtype=dtype, kernels=kernels)
    vanilla = generate(model, Request(PROMPT, 24, (), record_logits=True))
    poison = next(t for t in range(97) if t not in (*PROMPT, *vanilla.generation.output_token_ids))
    with torch.no_grad():
        model.lm.model.embed_tokens.weight[poison] = float("inf")
    for wrong_at in range(5):
        script = {len(PROMPT) + i: {1: (right_at(vanilla, len(PROMPT) + i), 0.9)} for i in range(23)}
        script[len(PROMPT) + wrong_at] = {1: (poison, 0.9)}
        script[len(PROMPT) + wrong_at + 1] = {1: (5, 0.9)}
        result = decode(model, ScriptedExitHead(EXITS, script))
        assert result.generation.num_accepted < result.generation.num_drafted
        assert result.generation.output_token_ids == vanilla.generation.output_token_ids
        assert torch.equal(result.logits, vanilla.logits)
