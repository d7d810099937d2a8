"""Without verification every draft stays, right or wrong; all else is as in AdaDecode."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adadecode.bench.calls import RecordingModel
from adadecode.engine.drafters import drafters_of
from adadecode.engine.generate import Request, generate
from adadecode.engine.policy import Policy
from adadecode.engine.round import begin_round, verify
from adadecode.errors import NonFiniteLogitsError
from tests.models import KERNELS, KERNELS_AND_DTYPES, ScriptedExitHead, random_heads, tiny_model

PROMPT = [11, 12, 13]
FIRST = len(PROMPT)
EXITS = (1, 2, 3)
WIDTH = 8
WRONG = 90


def forced(model, output: tuple[int, ...]) -> tuple[list[int], torch.Tensor]:
    """What vanilla's steps predict after each prefix of `output`, and the logits `[n, V]` of that."""
    with torch.inference_mode():
        step = model.new_step(WIDTH, FIRST + len(output))
        logits = [step.prefill(PROMPT).logits]
        predicted = [int(logits[0].argmax())]
        for idx, token_id in enumerate(output[:-1]):
            round_ = begin_round(step, token_id, FIRST + idx, 0)
            step.run(*round_.pass_to(model.num_layers))
            predicted.append(verify(step, round_).next_id)
            logits.append(step.logits[0].clone())
        return predicted, torch.stack(logits)


def decode(model, heads, *, verified=False, max_new_tokens=24, max_drafts=5, eos=(), reject=None, ngram=None):
    policy = Policy(heads.exits, (0.5,) * len(heads.exits), max_drafts, reject, ngram, verified=verified)
    drafters = [*drafters_of(Policy(ngram=ngram), None), *heads.drafters()]
    return generate(model, Request(PROMPT, max_new_tokens, eos, record_logits=True), policy, drafters)


@pytest.fixture(scope="module", params=KERNELS)
def model(request):
    return tiny_model(num_layers=4, kernels=request.param)


@pytest.fixture(scope="module")
def vanilla(model) -> tuple[int, ...]:
    return generate(model, Request(PROMPT, 24, ())).generation.output_token_ids


def right(vanilla: tuple[int, ...]) -> ScriptedExitHead:
    """Drafts vanilla's token at every position, at exits that vary."""
    return ScriptedExitHead(EXITS, {FIRST + i: {EXITS[i % 3]: (vanilla[i + 1], 0.9)} for i in range(23)})


def test_when_every_draft_is_right_output_and_rounds_are_those_with_verification(model, vanilla):
    unseen = decode(model, right(vanilla)).generation
    seen = decode(model, right(vanilla), verified=True).generation
    assert unseen.output_token_ids == seen.output_token_ids == vanilla
    assert unseen.num_rounds == seen.num_rounds == 4
    assert unseen.layers_run == seen.layers_run
    assert unseen.draft_depths == seen.draft_depths
    assert unseen.accepted_per_exit == unseen.drafted_per_exit == seen.accepted_per_exit


@pytest.mark.parametrize(("kernels", "dtype"), KERNELS_AND_DTYPES)
def test_a_wrong_draft_stays_and_what_follows_is_vanillas_on_that_prefix_bit_for_bit(kernels, dtype):
    model = RecordingModel(tiny_model(num_layers=4, kernels=kernels, dtype=dtype))
    heads = ScriptedExitHead(EXITS, {FIRST + 4: {2: (WRONG, 0.9)}})
    generation = decode(model, heads, max_new_tokens=12).generation
    output, logits = generation.output_token_ids, model.step.logits[0].clone()
    assert (output[5], generation.draft_depths[5]) == (WRONG, 2)
    assert (generation.num_drafted, generation.num_accepted, generation.num_rounds) == (1, 1, 10)
    predicted, expected = forced(model, output)
    assert predicted[5] != WRONG
    assert [*output[:5], *output[6:]] == predicted[:5] + predicted[6:]
    assert torch.equal(logits, expected[-1]), "the keys and values of the wrong draft are those of all its layers"


def test_only_the_current_row_goes_through_the_last_head(model, vanilla):
    traced = RecordingModel(model)
    generation = decode(traced, right(vanilla)).generation
    verifications = [call for call in traced.step.calls.elements() if call.kind == "verify"]
    assert len(verifications) == generation.num_rounds
    assert {call.rows for call in verifications} == {1}


def test_there_are_no_logits_of_drafts_that_nobody_verified(model, vanilla):
    assert decode(model, right(vanilla)).logits is None


@pytest.mark.parametrize("max_new_tokens", range(1, 12))
@pytest.mark.parametrize("max_drafts", [0, 1, 5])
def test_max_new_tokens_is_exact_when_every_draft_is_wrong(model, max_new_tokens, max_drafts):
    heads = ScriptedExitHead(EXITS, {FIRST + i: {1: (WRONG, 0.9)} for i in range(23)})
    generation = decode(model, heads, max_new_tokens=max_new_tokens, max_drafts=max_drafts).generation
    assert len(generation.output_token_ids) == max_new_tokens
    assert generation.finish_reason == "length"
    assert generation.num_rounds == -(-(max_new_tokens - 1) // (max_drafts + 1))


@pytest.mark.parametrize("eos_at", range(1, 9))
def test_nothing_follows_an_eos(model, vanilla, eos_at):
    eos = {vanilla[eos_at]}
    end = vanilla.index(vanilla[eos_at]) + 1
    generation = decode(model, right(vanilla), eos=eos).generation
    assert generation.output_token_ids == vanilla[:end]
    assert generation.finish_reason == "eos"


def test_a_wrong_eos_is_not_drafted(model, vanilla):
    wrong_eos = next(t for t in range(97) if t not in vanilla)
    heads = ScriptedExitHead(EXITS, {FIRST + i: {1: (wrong_eos, 0.9)} for i in range(23)})
    generation = decode(model, heads, eos={wrong_eos}).generation
    assert generation.output_token_ids == vanilla
    assert generation.num_drafted == 0


def test_a_deeper_head_still_rejects_early(model, vanilla):
    heads = ScriptedExitHead(EXITS, {FIRST: {1: (WRONG, 0.9), 2: (vanilla[1], 0.9)}})
    generation = decode(model, heads, reject=0.5, max_new_tokens=3).generation
    assert generation.output_token_ids == vanilla[:3]
    assert (generation.drafted_per_exit, generation.accepted_per_exit) == ((1, 1, 0), (0, 1, 0))


@pytest.mark.parametrize("kernels", KERNELS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 5),
    gamma=st.sampled_from([0.0, 0.02, 0.1, 0.4]),
    max_drafts=st.integers(0, 7),
    reject=st.sampled_from([None, 0.02, 0.4]),
    ngram=st.sampled_from([None, 0.0, 0.4]),
)
def test_every_token_that_was_not_drafted_is_vanillas_on_its_prefix(kernels, seed, gamma, max_drafts, reject, ngram):
    model = tiny_model(num_layers=4, kernels=kernels, seed=seed)
    policy = Policy((1, 2), (gamma, gamma), max_drafts, reject, ngram, verified=False)
    heads = random_heads(model, (1, 2), seed)
    generation = generate(model, Request(PROMPT, 20), policy, drafters_of(policy, heads)).generation
    assert len(generation.output_token_ids) == 20
    assert generation.num_rounds == 19 - generation.num_accepted
    predicted, _ = forced(model, generation.output_token_ids)
    for idx, depth in enumerate(generation.draft_depths):
        if depth == model.num_layers:
            assert generation.output_token_ids[idx] == predicted[idx], idx


@pytest.mark.parametrize("kernels", KERNELS)
def test_logits_that_are_not_finite_are_a_clear_error(kernels):
    model = tiny_model(kernels=kernels)
    heads = ScriptedExitHead((1,), {2: {1: (5, 0.9)}})
    policy = Policy((1,), (0.5,), 1, rows=2, verified=False)
    with torch.no_grad():
        model.lm.model.embed_tokens.weight[5] = float("inf")
    with pytest.raises(NonFiniteLogitsError, match="at position 3 are not finite"):
        generate(model, Request([4, 6], 5), policy, heads.drafters())
