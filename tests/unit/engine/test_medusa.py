"""Medusa heads in a round: which state they see, and what of their chain is drafted. Its bits are in test_rivals.py."""

from dataclasses import replace

import pytest
import torch

from adadecode.engine.decode import check_can_decode, decode
from adadecode.engine.generate import Request
from adadecode.engine.policy import Policy
from adadecode.errors import UsageError
from adadecode.kernels.sampling import Draw
from adadecode.kernels.step import Proposals
from adadecode.methods import METHODS
from adadecode.records import Generation
from tests.models import KERNELS, medusa_heads, tiny_model

MEDUSA = METHODS["medusa"]
PROMPT = [7, 8, 9] * 4


class Scripted:
    """Stands in for heads: notes the states it is asked of; round i proposes so many right tokens, then wrong ones."""

    def __init__(self, vanilla: tuple[int, ...], right: tuple[int, ...]) -> None:
        self.vanilla, self.right = vanilla, right
        self.states: list[torch.Tensor] = []
        self.starts = [0]  # where in the output the newest certain token of each round is

    def proposals(
        self, hidden: torch.Tensor, num_tokens: int, draw: Draw | None = None, position: int = 0
    ) -> Proposals:
        start, num_right = self.starts[-1], self.right[len(self.states) % len(self.right)]
        self.states.append(hidden)
        self.starts.append(start + num_right + 1)
        following = self.vanilla[start + 1 : start + 6]
        return [(token if i < num_right else token ^ 1, 0.9) for i, token in enumerate(following)][:num_tokens]


def medusa(model, heads, max_new_tokens: int = 30, *, gamma: float = 0.0, max_drafts: int = 5) -> Generation:
    policy = Policy(max_drafts=max_drafts, medusa_gamma=gamma)
    return decode(model, MEDUSA, Request(PROMPT, max_new_tokens, ()), policy, medusa=heads).generation


@pytest.mark.parametrize("kernels", KERNELS)
def test_every_round_asks_the_state_that_the_newest_certain_token_was_predicted_from(kernels):
    """The final head on each state gives that token: the prompt's last state first, then that of the last accepted slot."""
    model = tiny_model(kernels=kernels, seed=1)
    vanilla = decode(model, METHODS["vanilla"], Request(PROMPT, 40, ()), Policy(max_drafts=5)).generation
    scripted = Scripted(vanilla.output_token_ids, (2, 0, 5, 1, 4))
    generation = medusa(model, scripted)
    assert generation.output_token_ids == vanilla.output_token_ids[:30]
    assert generation.num_accepted == 30 - 1 - generation.num_rounds > 10
    predicted = [int(model.lm_head(state[None]).argmax()) for state in scripted.states]
    assert predicted == [vanilla.output_token_ids[start] for start in scripted.starts[: len(predicted)]]


def test_heads_that_add_nothing_propose_the_certain_token_again():
    model = tiny_model(seed=1)
    heads = medusa_heads(model, 3, noise=0.0)
    hidden = torch.randn(model.width, generator=torch.Generator().manual_seed(0))
    own = model.lm_head(hidden[None]).float().softmax(dim=-1).max(dim=-1)
    for token_id, confidence in heads.proposals(hidden, 3):
        assert token_id == int(own.indices)
        assert confidence == pytest.approx(float(own.values), rel=1e-5)
    assert len(heads.proposals(hidden, 2)) == 2
    assert len(heads.proposals(hidden, 9)) == 3, "no more than there are heads"


def test_a_temperature_makes_a_head_less_sure_and_changes_no_token():
    model = tiny_model(seed=1)
    heads = medusa_heads(model, 2)
    hidden = torch.randn(model.width, generator=torch.Generator().manual_seed(0))
    warm = replace(heads, temperatures=torch.tensor([4.0, 1.0]))
    (cold_id, cold), (_, same) = heads.proposals(hidden, 2)
    (warm_id, less), (_, still) = warm.proposals(hidden, 2)
    assert (warm_id, still) == (cold_id, same)
    assert less < cold


def test_a_chain_ends_where_all_of_it_is_no_longer_sure_enough():
    model = tiny_model(seed=1)
    heads = medusa_heads(model)
    loose, strict = medusa(model, heads), medusa(model, heads, gamma=0.02)
    assert 0 < strict.num_drafted < loose.num_drafted
    assert strict.output_token_ids == loose.output_token_ids
    assert medusa(model, heads, gamma=0.999).num_drafted == 0


def test_a_round_has_no_more_drafts_than_heads_or_room():
    model = tiny_model(seed=1)
    heads = medusa_heads(model, 4)
    few, many = medusa(model, heads, max_drafts=2), medusa(model, heads, max_drafts=7)
    assert few.num_drafted <= 2 * few.num_rounds
    assert 2 * many.num_rounds < many.num_drafted <= 4 * many.num_rounds
    assert few.exits == many.exits == (0,)


def test_medusa_without_heads_says_what_to_give():
    with pytest.raises(UsageError, match="--medusa-heads is missing: medusa drafts with them; give a folder"):
        check_can_decode(tiny_model(), [MEDUSA], Policy(max_drafts=3))
