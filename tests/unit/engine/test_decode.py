"""A row of methods.py is all that decides how a request is decoded."""

import pytest
import torch

from adadecode.engine.decode import decode
from adadecode.engine.generate import Request
from adadecode.engine.policy import OneExit, Policy
from adadecode.engine.tally import Decoded
from adadecode.kernels.step import DecodeStep
from adadecode.methods import METHODS, Method
from adadecode.model.decoder import DecoderModel
from tests.models import medusa_heads, random_heads, tiny_lm, tiny_model

POLICY = Policy((1, 2), (0.1, 0.1), 9, ngram=0.2, layerskip=OneExit(3, 4), skipped=(2, 3))
REQUEST = Request([7, 8, 9] * 4, 40, record_logits=True)


class WatchedDecoder(DecoderModel):
    """Notes the width of every decode step."""

    def __init__(self) -> None:
        super().__init__(tiny_lm(eos_token_id=[3, 9]), "eager")
        self.widths: list[int] = []

    def new_step(self, width: int, num_positions: int) -> DecodeStep:
        self.widths.append(width)
        return super().new_step(width, num_positions)


@pytest.fixture(scope="module")
def decoded() -> dict[str, Decoded]:
    """What every row gives for one request, and under its name the width of its steps."""
    model = tiny_model()
    heads = random_heads(model, (1, 2, 3))
    draft = tiny_model(num_layers=2)
    medusa = medusa_heads(model)
    return {name: decode(model, method, REQUEST, POLICY, heads, draft, medusa) for name, method in METHODS.items()}


def test_a_method_that_owes_vanillas_output_gives_it_bit_for_bit(decoded):
    vanilla = decoded["vanilla"]
    for name, result in decoded.items():
        if METHODS[name].owes == "exact":
            assert result.generation.output_token_ids == vanilla.generation.output_token_ids, name
            assert torch.equal(result.logits, vanilla.logits), name


def test_a_method_drafts_with_what_its_row_says_and_nothing_else(decoded):
    exits = {name: result.generation.exits for name, result in decoded.items()}
    assert exits == {
        "vanilla": (),
        "vanilla-w1": (),
        "adadecode": (0, 1, 2),
        "adadecode-unverified": (0, 1, 2),
        "adadecode-never": (1, 2),
        "layer-skipping": (),
        "ngram": (0,),
        "layerskip": (3,),
        "speculative": (0,),
        "medusa": (0,),
        "transformers": (),
        "hf-prompt-lookup": (0,),
        "hf-early-exit": (3,),
        "hf-assisted": (0,),
    }
    assert decoded["adadecode"].generation.num_drafted > 0
    for name, result in decoded.items():
        assert METHODS[name].drafts or result.generation.num_drafted == 0, name


def test_a_method_that_does_not_verify_keeps_every_draft(decoded):
    generation = decoded["adadecode-unverified"].generation
    assert generation.num_accepted == generation.num_drafted > 0
    assert decoded["adadecode-unverified"].logits is None


@pytest.mark.parametrize("name", METHODS)
def test_a_step_is_as_wide_as_the_row_says_or_the_run_is(name):
    model = WatchedDecoder()
    heads, medusa = random_heads(model, (1, 2, 3)), medusa_heads(model)
    decode(model, METHODS[name], Request([5, 6], 3), POLICY, heads, tiny_model(), medusa)
    width = METHODS[name].step_width(POLICY.width)
    assert model.widths == ([] if width is None else [width])


@pytest.mark.parametrize("name", ["vanilla", "vanilla-w1", "transformers"])
def test_without_drafts_every_token_takes_all_layers_and_no_heads(name):
    result = decode(tiny_model(), METHODS[name], REQUEST, Policy(max_drafts=5))
    generation = result.generation
    assert generation.draft_depths == (4,) * 40
    assert (generation.num_rounds, generation.layers_run) == (39, 39 * 4)
    assert len(generation.step_gaps_s) == 39
    assert result.logits.shape == (40, 97)


@pytest.mark.parametrize("name", ["vanilla", "transformers"])
def test_a_request_ends_at_its_own_eos_or_the_models(name):
    model = WatchedDecoder()
    output = decode(model, METHODS[name], Request([5, 6, 7], 12, ())).generation.output_token_ids
    for eos, given in (((output[4],), (output[4],)), ((3, 9), None)):
        ended = decode(model, METHODS[name], Request([5, 6, 7], 12, given)).generation.output_token_ids
        expected = next((i + 1 for i, token_id in enumerate(output) if token_id in eos), 12)
        assert ended == output[:expected]


def test_a_new_row_of_the_table_decodes_without_any_other_edit(monkeypatch):
    """Every exit drafts whatever it thinks likeliest, and verification puts it right."""
    eager = Method("eager-drafts", "every exit drafts at once", "exact", exits=True, gamma=0.0)
    monkeypatch.setitem(METHODS, "eager-drafts", eager)
    model = tiny_model()
    heads = random_heads(model, (1, 2))
    vanilla = decode(model, METHODS["vanilla"], REQUEST, POLICY)
    result = decode(model, METHODS["eager-drafts"], REQUEST, POLICY, heads)
    assert result.generation.output_token_ids == vanilla.generation.output_token_ids
    assert torch.equal(result.logits, vanilla.logits)
    assert result.generation.exits == (1, 2), "its row has no n-grams"
    drafted = result.generation.drafted_per_exit[0]
    assert drafted > decode(model, METHODS["adadecode"], REQUEST, POLICY, heads).generation.drafted_per_exit[1]
