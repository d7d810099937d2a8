"""When drafting stops: by the confidence in the token alone, or in the whole chain of pending drafts."""

from dataclasses import dataclass

import pytest
import torch

from adadecode.engine.drafters import drafters_of
from adadecode.engine.generate import Request, generate
from adadecode.engine.policy import Policy
from adadecode.engine.round import Round, judge_again
from adadecode.engine.tally import Decoded
from adadecode.kernels.step import DecodeStep, Proposals, Segment
from adadecode.records import Generation
from tests.models import ScriptedExitHead, tiny_model

PROMPT = [11, 12, 13]
FIRST = len(PROMPT)
EXITS = (1, 2, 3)


@pytest.fixture(scope="module")
def model():
    return tiny_model(num_layers=4)


@pytest.fixture(scope="module")
def vanilla(model) -> Decoded:
    return generate(model, Request(PROMPT, 24, (), record_logits=True))


def right_at(vanilla: Decoded, position: int) -> int:
    return vanilla.generation.output_token_ids[position - FIRST + 1]


def sure_at_every_position(vanilla: Decoded, confidence: float, num_positions: int = 12) -> ScriptedExitHead:
    """The first exit proposes the right token with `confidence` at each of the first positions."""
    positions = range(FIRST, FIRST + num_positions)
    return ScriptedExitHead(EXITS, {p: {1: (right_at(vanilla, p), confidence)} for p in positions})


def decode(model, heads, vanilla, *, stop, gamma=0.5, max_new_tokens=8, reject=None, ngram=None) -> Generation:
    """The generation under rule `stop`, which has vanilla's tokens and bits."""
    policy = Policy(heads.exits, (gamma,) * len(heads.exits), 5, reject, ngram, stop)
    drafters = [*drafters_of(Policy(ngram=ngram), None), *heads.drafters(gamma)]
    found = generate(model, Request(PROMPT, max_new_tokens, (), record_logits=True), policy, drafters)
    assert found.generation.output_token_ids == vanilla.generation.output_token_ids[:max_new_tokens]
    assert torch.equal(found.logits, vanilla.logits[:max_new_tokens])
    return found.generation


def test_a_gamma_of_the_token_alone_is_exceeded_whatever_is_pending(model, vanilla):
    generation = decode(model, sure_at_every_position(vanilla, 0.7), vanilla, stop="token")
    assert generation.draft_depths[1:] == (1, 1, 1, 1, 1, 4, 4)


def test_a_gamma_of_the_chain_is_exceeded_by_all_pending_drafts_together(model, vanilla):
    """0.8 and 0.64 exceed 0.5, 0.512 does too, 0.41 does not: three drafts a round."""
    generation = decode(model, sure_at_every_position(vanilla, 0.8), vanilla, stop="chain", max_new_tokens=9)
    assert generation.draft_depths == (4, 1, 1, 1, 4, 1, 1, 1, 4)
    assert generation.num_rounds == 2


@pytest.mark.parametrize(("confidence", "num_drafts"), [(0.5, 0), (0.51, 1)])
def test_a_chain_of_one_draft_is_the_token(model, vanilla, confidence, num_drafts):
    heads = sure_at_every_position(vanilla, confidence, 1)
    assert decode(model, heads, vanilla, stop="chain", max_new_tokens=4).num_drafted == num_drafts


def test_no_exit_is_tested_whose_gamma_the_pending_drafts_are_no_longer_above(model, vanilla):
    """After a draft of 0.6 an exit with gamma 0.7 can draft nothing, however sure it is."""
    script = {FIRST: {1: (right_at(vanilla, FIRST), 0.6)}, FIRST + 1: {2: (right_at(vanilla, FIRST + 1), 1.0)}}
    heads = ScriptedExitHead(EXITS, script)
    first, *others = heads.drafters(0.5)
    for drafter in others:
        drafter.gamma = 0.7
    policy = Policy(EXITS, (0.5, 0.7, 0.7), 5, stop="chain")
    generation = generate(model, Request(PROMPT, 4), policy, [first, *others]).generation
    assert generation.drafted_per_exit == (1, 0, 0)
    assert [exit_layer for positions, exit_layer in heads.asked if positions[-1] == FIRST + 1] == [1]


def test_an_exit_that_never_fires_is_tested_all_the_same(model, vanilla):
    heads = sure_at_every_position(vanilla, 1.0)
    decode(model, heads, vanilla, stop="chain", gamma=1.0, max_new_tokens=4)
    assert len(heads.asked) == 2 * len(EXITS), "the last token has no room for a draft"


@dataclass
class ChainBehindADraft:
    """A drafter at boundary 0 that has nothing to say when a round begins, and `chain` once one draft is pending."""

    chain: list[tuple[int, float]]
    boundary: int = 0
    gamma: float = 0.3
    tests: tuple = ()

    def extend(self, token_ids: list[int]) -> None:
        """Does nothing: it knows its chain."""

    def propose(self, step: DecodeStep, round_: Round, segment: Segment, first_tested: int) -> Proposals:
        return self.chain if round_.num_drafts == 1 else []


@pytest.mark.parametrize(("stop", "num_drafted"), [("token", 3), ("chain", 2)])
def test_a_chain_of_ngrams_counts_with_the_draft_it_goes_on_from(model, vanilla, stop, num_drafted):
    """An exit's draft of 0.5, then n-grams of 0.8 and 0.4 together: 0.4 and 0.2 with it."""
    right = [right_at(vanilla, FIRST + i) for i in range(3)]
    heads = ScriptedExitHead((1,), {FIRST: {1: (right[0], 0.5)}})
    drafters = [ChainBehindADraft([(right[1], 0.8), (right[2], 0.4)]), *heads.drafters(0.4)]
    policy = Policy((1,), (0.4,), 5, None, 0.3, stop)
    generation = generate(model, Request(PROMPT, 5), policy, drafters).generation
    assert generation.output_token_ids == vanilla.generation.output_token_ids[:5]
    assert generation.num_drafted == generation.num_accepted == num_drafted


def parked() -> Round:
    """Slots 0 to 2 at layer 4 with drafts 7, 8 and 9 after them, slot 3 current at layer 4."""
    return Round(10, 3, [6, 7, 8, 9], [4, 4, 4, 4], [1, 1, 1], [0.5, 0.8, 0.5])


def test_the_chance_of_a_round_is_that_of_all_its_drafts():
    assert parked().chance == pytest.approx(0.2)
    assert Round(10, 3, [6], [0]).chance == 1.0


def test_a_deeper_head_judges_the_drafts_again():
    """It agrees with the first, proposes another token with 0.4 for the second, and with 0.1 for the third."""
    round_ = parked()
    judge_again(round_, 0, [(7, 0.9), (1, 0.4), (1, 0.1), (5, 1.0)])
    assert round_.confidences == pytest.approx([0.9, 0.6, 0.5])
    judge_again(round_, 2, [(9, 0.7), (5, 1.0)])
    assert round_.confidences == pytest.approx([0.9, 0.6, 0.7])


def test_a_draft_that_a_deeper_head_agrees_with_lets_the_chain_go_on(model, vanilla):
    """0.6 and 0.8 come to 0.48; with a deeper head's 0.95 for the first the chain exceeds 0.5 again."""
    right = [right_at(vanilla, FIRST + i) for i in range(3)]
    script = {FIRST: {1: (right[0], 0.6), 2: (right[0], 0.95)}, FIRST + 1: {1: (right[1], 0.8), 2: (right[1], 0.8)}}
    heads = ScriptedExitHead(EXITS, script)
    assert decode(model, heads, vanilla, stop="chain", reject=None, max_new_tokens=4).drafted_per_exit == (1, 0, 0)
    assert decode(model, heads, vanilla, stop="chain", reject=0.9, max_new_tokens=4).drafted_per_exit == (1, 1, 0)


def test_a_draft_that_falls_takes_its_doubt_along(model, vanilla):
    """A wrong draft of 0.55 is rejected; the token in its place begins a chain of its own."""
    right = [right_at(vanilla, FIRST + i) for i in range(3)]
    script = {
        FIRST: {1: ((right[0] + 1) % 97, 0.55), 2: (right[0], 0.9)},
        FIRST + 1: {1: (right[1], 0.8)},
    }
    generation = decode(model, ScriptedExitHead(EXITS, script), vanilla, stop="chain", reject=0.5, max_new_tokens=4)
    assert generation.drafted_per_exit == (2, 1, 0)
    assert generation.accepted_per_exit == (1, 1, 0)
