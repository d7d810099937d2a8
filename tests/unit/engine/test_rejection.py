"""Early rejection: a deeper head that is sure of another token drops a parked draft before verification."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adadecode.engine.drafters import drafters_of
from adadecode.engine.generate import Request, first_contradicted, generate
from adadecode.engine.policy import Policy
from adadecode.engine.round import Round, reject_after
from adadecode.engine.tally import Decoded
from tests.models import KERNELS, ScriptedExitHead, tiny_model

PROMPT = [11, 12, 13]
FIRST = len(PROMPT)
EXITS = (1, 2, 3)


def parked() -> Round:
    """Slots 0 to 2 at layer 4 with drafts 7, 8 and 9 after them, slot 3 current at layer 4."""
    return Round(10, 3, [6, 7, 8, 9], [4, 4, 4, 4], [1, 2, 2], [0.9, 0.8, 0.5])


def test_the_first_contradicted_slot_is_the_first_whose_draft_is_another_token():
    proposals = [(7, 0.9), (1, 0.9), (1, 0.9), (1, 0.9)]
    assert first_contradicted(parked(), 0, proposals, 0.5) == 1
    assert first_contradicted(parked(), 1, proposals[1:], 0.5) == 1
    assert first_contradicted(parked(), 2, proposals[2:], 0.5) == 2


def test_only_more_confidence_than_reject_contradicts():
    proposals = [(1, 0.5), (1, 0.6), (1, 0.9), (1, 0.9)]
    assert first_contradicted(parked(), 0, proposals, 0.5) == 1
    assert first_contradicted(parked(), 0, proposals, 0.6) == 2
    assert first_contradicted(parked(), 0, proposals, 0.9) is None
    assert first_contradicted(parked(), 0, proposals, None) is None


def test_the_current_slot_has_no_draft_to_contradict():
    assert first_contradicted(parked(), 3, [(1, 0.9)], 0.0) is None


def test_rejecting_drops_every_draft_after_the_slot_and_makes_it_current():
    round_ = parked()
    reject_after(round_, 1)
    assert (round_.token_ids, round_.layers_run, round_.draft_exits) == ([6, 7], [4, 4], [1])
    assert round_.dropped == [(1, 8, 2), (2, 9, 2)]
    assert (round_.confidences, round_.current) == ([0.9], 1)
    reject_after(round_, 0)
    assert (round_.token_ids, round_.dropped) == ([6], [(1, 8, 2), (2, 9, 2), (0, 7, 1)])


@pytest.fixture(scope="module", params=KERNELS)
def model(request):
    return tiny_model(num_layers=4, kernels=request.param)


@pytest.fixture(scope="module")
def vanilla(model) -> Decoded:
    return generate(model, Request(PROMPT, 24, (), record_logits=True))


def right_at(vanilla: Decoded, position: int) -> int:
    """The token vanilla emits after `position`."""
    return vanilla.generation.output_token_ids[position - FIRST + 1]


def wrong_at(vanilla: Decoded, position: int) -> int:
    return (right_at(vanilla, position) + 1) % 97


def decode(
    model, heads, *, reject, gamma=0.5, max_new_tokens=24, max_drafts=5, eos=(), ngram=None, stop="token"
) -> Decoded:
    policy = Policy(heads.exits, (gamma,) * len(heads.exits), max_drafts, reject, ngram, stop)
    drafters = [*drafters_of(Policy(ngram=ngram), None), *heads.drafters(gamma)]
    return generate(model, Request(PROMPT, max_new_tokens, eos, record_logits=True), policy, drafters)


def assert_vanillas(result: Decoded, vanilla: Decoded) -> None:
    num_tokens = len(result.generation.output_token_ids)
    assert result.generation.output_token_ids == vanilla.generation.output_token_ids[:num_tokens]
    assert torch.equal(result.logits, vanilla.logits[:num_tokens])


def test_a_contradicted_draft_is_dropped_at_once_and_the_other_token_drafted(model, vanilla):
    """Layer 1 drafts a wrong token, layer 2 the right one: segments [0,1) [0,1) [1,2), then [0,1) [1,2) [2,3) [3,4)."""
    script = {FIRST: {1: (wrong_at(vanilla, FIRST), 0.9), 2: (right_at(vanilla, FIRST), 0.9)}}
    result = decode(model, ScriptedExitHead(EXITS, script), reject=0.5, max_new_tokens=3)
    generation = result.generation
    assert_vanillas(result, vanilla)
    assert generation.num_rounds == 1
    assert generation.draft_depths == (4, 2, 4)
    assert generation.drafted_per_exit == (1, 1, 0), "the dropped draft was drafted"
    assert generation.accepted_per_exit == (0, 1, 0)
    assert generation.layers_run == 7


def test_without_early_rejection_the_same_draft_falls_at_verification(model, vanilla):
    script = {FIRST: {1: (wrong_at(vanilla, FIRST), 0.9), 2: (right_at(vanilla, FIRST), 0.9)}}
    generation = decode(model, ScriptedExitHead(EXITS, script), reject=None, max_new_tokens=3).generation
    assert generation.num_rounds == 2
    assert generation.drafted_per_exit == (1, 0, 0)
    assert generation.accepted_per_exit == (0, 0, 0)


@pytest.mark.parametrize("confidence", [0.0, 0.3, 0.6])
def test_nothing_is_dropped_unless_the_confidence_exceeds_reject(model, vanilla, confidence):
    script = {FIRST: {1: (right_at(vanilla, FIRST), 0.9), 2: (wrong_at(vanilla, FIRST), confidence)}}
    result = decode(model, ScriptedExitHead(EXITS, script), reject=0.6, max_new_tokens=3)
    assert_vanillas(result, vanilla)
    assert result.generation.draft_depths == (4, 1, 4)
    assert result.generation.drafted_per_exit == result.generation.accepted_per_exit == (1, 0, 0)


def test_a_draft_the_deeper_head_agrees_with_stays(model, vanilla):
    token_id = right_at(vanilla, FIRST)
    script = {FIRST: {1: (token_id, 0.9), 2: (token_id, 0.99), 3: (token_id, 1.0)}}
    result = decode(model, ScriptedExitHead(EXITS, script), reject=0.0, max_new_tokens=3)
    assert result.generation.draft_depths == (4, 1, 4)
    assert result.generation.num_drafted == 1


def test_a_contradicting_token_that_is_not_sure_enough_is_not_drafted(model, vanilla):
    """Above reject, below gamma: the token goes on alone from the layer where its draft fell."""
    script = {FIRST: {1: (wrong_at(vanilla, FIRST), 0.9), 2: (right_at(vanilla, FIRST), 0.4)}}
    result = decode(model, ScriptedExitHead(EXITS, script), reject=0.3, max_new_tokens=2 + 1)
    generation = result.generation
    assert_vanillas(result, vanilla)
    assert generation.drafted_per_exit == (1, 0, 0)
    assert generation.accepted_per_exit == (0, 0, 0)
    assert generation.draft_depths == (4, 4, 4)
    assert generation.layers_run == (1 + 1 + 1 + 1 + 1) + 4


def test_a_right_draft_that_is_wrongly_contradicted_costs_only_time(model, vanilla):
    script = {FIRST: {1: (right_at(vanilla, FIRST), 0.9), 3: (wrong_at(vanilla, FIRST), 0.9)}}
    result = decode(model, ScriptedExitHead(EXITS, script), reject=0.5)
    assert_vanillas(result, vanilla)
    assert result.generation.drafted_per_exit == (1, 0, 1)
    assert result.generation.num_accepted == 0


def test_the_drafts_after_a_contradicted_one_fall_with_it(model, vanilla):
    """Drafts at layer 1 after three positions; at layer 2 the second of them falls, and the third with it."""
    script = {FIRST + i: {1: (right_at(vanilla, FIRST + i), 0.9)} for i in (0, 2)}
    script[FIRST + 1] = {1: (wrong_at(vanilla, FIRST + 1), 0.9), 2: (right_at(vanilla, FIRST + 1), 0.9)}
    result = decode(model, ScriptedExitHead(EXITS, script), reject=0.5, max_new_tokens=5)
    assert_vanillas(result, vanilla)
    assert result.generation.draft_depths == (4, 1, 2, 1, 4)
    assert result.generation.drafted_per_exit == (4, 1, 0)
    assert result.generation.accepted_per_exit == (2, 1, 0)
    assert result.generation.num_rounds == 1


def test_the_earliest_contradiction_wins(model, vanilla):
    script = {
        FIRST + i: {1: (wrong_at(vanilla, FIRST + i), 0.9), 2: (right_at(vanilla, FIRST + i), 0.9 + i / 100)}
        for i in range(3)
    }
    result = decode(model, ScriptedExitHead(EXITS, script), reject=0.5, max_new_tokens=5)
    assert_vanillas(result, vanilla)
    assert result.generation.draft_depths == (4, 2, 2, 2, 4)


def test_every_token_that_comes_to_an_exit_is_asked_about_there(model, vanilla):
    """Three tokens: one parked at layer 2, the next at layer 1, the current one takes both along."""
    script = {
        FIRST: {2: (right_at(vanilla, FIRST), 0.9)},
        FIRST + 1: {1: (right_at(vanilla, FIRST + 1), 0.9)},
    }
    heads = ScriptedExitHead(EXITS, script)
    decode(model, heads, reject=0.5, max_new_tokens=4)
    current = [(positions[-1], exit_layer) for positions, exit_layer in heads.asked]
    assert current == [(FIRST, 1), (FIRST, 2), (FIRST + 1, 1), (FIRST + 2, 2), (FIRST + 2, 3)], "two drafts at most"
    companies = [set(positions) for positions, _ in heads.asked]
    assert companies[:3] == [{FIRST}, {FIRST}, {FIRST + 1}], "nobody is asked about at an exit below its own"
    assert companies[3] == {FIRST + 1, FIRST + 2}, "what waits at an exit was asked about there before"
    assert companies[4] == {FIRST, FIRST + 1, FIRST + 2}


def test_a_contradicting_eos_is_not_drafted_and_ends_drafting(model, vanilla):
    wrong_eos = next(t for t in range(97) if t not in vanilla.generation.output_token_ids)
    script = {FIRST: {1: (wrong_at(vanilla, FIRST), 0.9), 2: (wrong_eos, 0.9), 3: (right_at(vanilla, FIRST), 0.9)}}
    result = decode(model, ScriptedExitHead(EXITS, script), reject=0.5, max_new_tokens=3, eos={wrong_eos})
    assert_vanillas(result, vanilla)
    assert result.generation.drafted_per_exit == (1, 0, 0)
    assert result.generation.draft_depths == (4, 4, 4)


def test_a_rejection_before_a_confident_eos_opens_drafting_again(model, vanilla):
    """The EOS was proposed after a draft that fell."""
    wrong_eos = next(t for t in range(97) if t not in vanilla.generation.output_token_ids)
    script = {
        FIRST: {1: (wrong_at(vanilla, FIRST), 0.9), 2: (right_at(vanilla, FIRST), 0.9)},
        FIRST + 1: {1: (wrong_eos, 0.9), 2: (right_at(vanilla, FIRST + 1), 0.9)},
    }
    result = decode(model, ScriptedExitHead(EXITS, script), reject=0.5, max_new_tokens=4, eos={wrong_eos})
    assert_vanillas(result, vanilla)
    assert result.generation.draft_depths[:2] == (4, 2)


def test_a_rejection_at_max_drafts_makes_room_again(model, vanilla):
    script = {FIRST + i: {1: (right_at(vanilla, FIRST + i), 0.9)} for i in range(3)}
    script[FIRST] = {1: (wrong_at(vanilla, FIRST), 0.9), 3: (right_at(vanilla, FIRST), 0.9)}
    result = decode(model, ScriptedExitHead(EXITS, script), reject=0.5, max_drafts=2, max_new_tokens=4)
    assert_vanillas(result, vanilla)
    assert result.generation.draft_depths == (4, 3, 1, 4)
    assert result.generation.drafted_per_exit == (3, 0, 1)


def test_an_ngram_draft_falls_at_the_first_exit_that_contradicts_it():
    """A model that always says 0, after a prompt where 0 was followed by 9."""
    model = tiny_model(num_layers=4)
    with torch.no_grad():
        model.lm.lm_head.weight.zero_()
    heads = ScriptedExitHead(EXITS, {FIRST: {1: (0, 0.9)}})
    policy = Policy(EXITS, (0.5,) * 3, 1, 0.5, 0.2)
    drafters = [*drafters_of(Policy(ngram=0.2), None), *heads.drafters()]
    generation = generate(model, Request([0, 9, 4], 3), policy, drafters).generation
    assert generation.output_token_ids == (0, 0, 0)
    assert generation.draft_depths == (4, 1, 4)
    assert generation.exits == (0, 1, 2, 3)
    assert generation.drafted_per_exit == (1, 1, 0, 0)
    assert generation.accepted_per_exit == (0, 1, 0, 0)


PROPOSALS = st.one_of(st.none(), st.tuples(st.sampled_from(["right", "wrong", "other", "eos"]), st.floats(0.0, 1.0)))
SCRIPTS = st.lists(st.tuples(PROPOSALS, PROPOSALS, PROPOSALS), min_size=12, max_size=12)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    said=SCRIPTS,
    reject=st.one_of(st.none(), st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0])),
    gamma=st.sampled_from([0.0, 0.3, 0.6]),
    max_drafts=st.integers(0, 7),
    max_new_tokens=st.integers(1, 12),
    ngram=st.sampled_from([None, 0.2]),
    stop=st.sampled_from(["token", "chain"]),
)
def test_whatever_heads_say_and_contradict_the_tokens_and_bits_are_vanillas(
    model, vanilla, said, reject, gamma, max_drafts, max_new_tokens, ngram, stop
):
    eos = next(t for t in range(97) if t not in vanilla.generation.output_token_ids)
    script = {}
    for position, proposals in enumerate(said, FIRST):
        right = right_at(vanilla, position)
        token_ids = {"right": right, "wrong": (right + 1) % 97, "other": (right + 2) % 97, "eos": eos}
        script[position] = {
            exit_layer: proposal and (token_ids[proposal[0]], proposal[1])
            for exit_layer, proposal in zip(EXITS, proposals, strict=True)
        }
    result = decode(
        model,
        ScriptedExitHead(EXITS, script),
        reject=reject,
        gamma=gamma,
        max_drafts=max_drafts,
        max_new_tokens=max_new_tokens,
        eos={eos},
        ngram=ngram,
        stop=stop,
    )
    generation = result.generation
    assert_vanillas(result, vanilla)
    assert len(generation.output_token_ids) == len(generation.draft_depths) == max_new_tokens
    assert generation.num_rounds == max_new_tokens - 1 - generation.num_accepted
    assert generation.layers_run >= 4 * generation.num_rounds
    for drafted, accepted in zip(generation.drafted_per_exit, generation.accepted_per_exit, strict=True):
        assert 0 <= accepted <= drafted
    if max_drafts == 0:
        assert generation.num_drafted == 0
