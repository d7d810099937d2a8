"""The n-gram drafter beside a store: what it proposes then, and that outputs stay vanilla's and drafts the same."""

from dataclasses import replace

import pytest
import torch

from adadecode.engine.drafters import drafters_of
from adadecode.engine.generate import Request, generate
from adadecode.engine.ngram import NgramDrafter, confidence_of, likelier
from adadecode.engine.policy import Policy
from tests.models import KERNELS, random_heads, store_of, tiny_model

PROMPT = [11, 12, 13]
EXITS = (1, 2, 3)


@pytest.fixture(scope="module", params=KERNELS)
def model(request):
    return tiny_model(num_layers=4, kernels=request.param)


class Said:
    """A store that says one thing after each of some tokens."""

    longest = 1

    def __init__(self, said: dict[int, tuple[int, float]]) -> None:
        self.said = said

    def successor(self, token_ids: list[int]) -> tuple[int, float] | None:
        assert len(token_ids) >= 1
        return self.said.get(token_ids[-1])


def beside(said: dict[int, tuple[int, float]], token_ids: list[int], gamma: float = 0.0) -> NgramDrafter:
    """A drafter over `token_ids` beside a store."""
    drafter = NgramDrafter(gamma, Said(said))
    drafter.extend(token_ids)
    return drafter


def test_a_store_proposes_where_the_sequence_has_nothing():
    drafter = beside({3: (9, 0.5), 9: (8, 0.5)}, [1, 2, 3])
    assert drafter.chain([], 5) == [(9, 0.5), (8, 0.25)]
    assert drafter.successor() == (9, 0.5)
    assert beside({3: (9, 0.5), 9: (8, 0.5)}, [1, 2, 3], gamma=0.25).chain([], 5) == [(9, 0.5)]


def test_a_store_is_asked_about_pending_drafts_and_remembers_none():
    drafter = beside({7: (9, 0.5)}, [1, 2, 3])
    assert drafter.chain([7], 5) == [(9, 0.5)]
    assert drafter.chain([], 5) == []


def test_where_the_store_has_nothing_a_proposal_is_as_sure_as_without():
    token_ids = [1, 2, 3, 1]
    assert beside({}, token_ids).chain([], 1) == [(2, confidence_of(1, 1, False))]


def test_two_that_say_the_same_are_surer_than_either():
    alone, stored = confidence_of(1, 1, False), 0.5
    ((token_id, together),) = beside({1: (2, stored)}, [1, 2, 3, 1]).chain([], 1)
    assert token_id == 2
    assert together > max(alone, stored)


def test_of_two_that_differ_the_likelier_is_taken_and_is_less_sure_than_alone():
    token_ids, alone = [1, 2, 3, 1], confidence_of(1, 1, False)
    assert alone < 0.5
    ((token_id, chance),) = beside({1: (9, 0.9)}, token_ids).chain([], 1)
    assert (token_id, chance < 0.9) == (9, True)
    ((token_id, chance),) = beside({1: (9, 0.3)}, token_ids).chain([], 1)
    assert (token_id, chance < alone) == (2, True)


@pytest.mark.parametrize("repeated", [1e-9, 0.001, 0.3, 0.7, 0.999, 1.0])
@pytest.mark.parametrize("stored", [1e-9, 0.001, 0.3, 0.7, 0.999, 1.0])
def test_what_is_likelier_is_always_a_probability_and_grows_with_its_own(repeated, stored):
    for token_id in (5, 6):
        found = likelier((5, repeated), (token_id, stored))
        assert found is not None
        assert 0.0 < found[1] < 1.0
        surer = likelier((5, min(1.0, repeated * 1.5)), (token_id, stored))
        assert surer is not None
        assert surer[0] != 5 or found[0] != 5 or surer[1] >= found[1]


@pytest.fixture(scope="module")
def store(model):
    return store_of(model, [PROMPT])


def test_a_store_of_these_outputs_drafts_them_and_every_bit_is_vanillas(model, store):
    heads = random_heads(model, EXITS).with_store(store)
    policy = Policy(EXITS, (0.9,) * 3, 5, ngram=0.2)
    with_it, without = (
        generate(model, Request(PROMPT, 24, (), record_logits=True), one, drafters_of(one, heads))
        for one in (policy, replace(policy, ngram_store=False))
    )
    vanilla = generate(model, Request(PROMPT, 24, (), record_logits=True))
    for result in (with_it, without):
        assert result.generation.output_token_ids == vanilla.generation.output_token_ids
        assert torch.equal(result.logits, vanilla.logits)
    assert with_it.generation.accepted_per_exit[0] >= 15, "of 23 tokens"
    assert with_it.generation.accepted_per_exit[0] > without.generation.accepted_per_exit[0]
    assert with_it.generation.num_rounds < without.generation.num_rounds


def test_what_was_decoded_before_changes_no_draft(model, store):
    """Nothing is added to a store: tables must not depend on who decoded what before."""
    heads, policy = random_heads(model, EXITS).with_store(store), Policy(EXITS, (0.5,) * 3, 5, ngram=0.2)

    def drafts(prompt: list[int]) -> tuple[int, ...]:
        return generate(model, Request(prompt, 24), policy, drafters_of(policy, heads)).generation.draft_depths

    alone = drafts(PROMPT)
    for other in ([5, 9, 11], [12, 13, 40], [*PROMPT, 7]):
        drafts(other)
    assert drafts(PROMPT) == alone
