"""How a generation draws: noise in Python's numbers, what n-grams make of it, and transformers by its own noise."""

import math

import pytest
import torch

from adadecode.engine.decode import decode
from adadecode.engine.generate import Request
from adadecode.engine.ngram import chance_to_win
from adadecode.engine.sampling import draw_of, drawn_margin, noise_of
from adadecode.kernels.sampling import Draw, draw_rows, noise
from adadecode.methods import METHODS
from adadecode.settings import SamplingSettings, key_of
from tests.models import tiny_model


def test_the_noise_of_one_token_is_that_of_the_kernels():
    places, token_ids = torch.tensor([0, 1, 255, 70_000]), torch.tensor([0, 1, 2, 3, 4, 49_151, 128_255])
    for key in (0, 1, 2**64 - 1, key_of(0, "demo-math", "7", 1, 0)):
        expected = noise(key, places, token_ids)
        found = [[noise_of(key, place, token) for token in token_ids.tolist()] for place in places.tolist()]
        torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chance", [0.05, 0.4, 0.9])
def test_the_chance_to_win_is_the_chance_itself_over_all_noise(chance):
    over = [chance_to_win(chance, noise_of(3, place, 11)) for place in range(4000)]
    assert math.fsum(over) / len(over) == pytest.approx(chance, abs=0.02)


def test_nothing_is_drawn_at_temperature_0():
    assert draw_of(SamplingSettings(), None, 3) is None
    assert draw_of(SamplingSettings(temperature=0.7, top_k=5), 9, 3) == Draw(0.7, top_k=5, key=9, first_position=3)


def test_a_key_belongs_to_seed_task_sample_repeat_and_turn():
    first = (0, "a", "b", 0, 0)
    others = [(1, "a", "b", 0, 0), (0, "x", "b", 0, 0), (0, "a", "x", 0, 0), (0, "a", "b", 1, 0), (0, "a", "b", 0, 1)]
    assert len({key_of(*of) for of in (first, *others)}) == 6


def test_the_margin_of_a_draw_is_that_of_the_scores():
    logits, draw = torch.randn(50, generator=torch.Generator().manual_seed(0)), Draw(0.7, key=5)
    margin, drawn = drawn_margin(logits, draw, 4), int(draw_rows(logits[None], draw, torch.tensor([4])).token_ids)
    near, far = logits.clone(), logits.clone()
    near[drawn] -= margin - 1e-3
    far[drawn] -= margin + 1e-3
    assert int(draw_rows(near[None], draw, torch.tensor([4])).token_ids) == drawn
    assert int(draw_rows(far[None], draw, torch.tensor([4])).token_ids) != drawn


def test_transformers_draws_the_same_by_the_same_key_and_leaves_torchs_generator_alone():
    model, before = tiny_model(), torch.get_rng_state()
    outputs = [
        decode(model, METHODS["transformers"], Request([5, 6, 7], 12, (), draw=Draw(1.0, key=key, first_position=3)))
        for key in (1, 1, 2**64 - 1)
    ]
    once, again, other = (decoded.generation.output_token_ids for decoded in outputs)
    assert once == again != other
    assert torch.equal(torch.get_rng_state(), before)
