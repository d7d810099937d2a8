"""How a generation draws its tokens: by noise that belongs to the output's place, not to the method that asks.

The token at output place i is the argmax over the vocabulary of logits / T + G, where G is Gumbel noise of (key, i, token)
and the logits are filtered: an exact draw. Vanilla and whatever drafts for AdaDecode meet the same noise at the same place,
so a verified token is vanilla's, and drafts agree with it more often than draws of their own would (drafter-invariant
speculative decoding, arXiv 2408.07978).
"""

import math

import torch
from torch import Tensor

from adadecode.kernels.sampling import KEY_STEPS, LANES, MASK, MULTIPLIERS, NUM_ROUNDS, Draw, draw_rows, noise
from adadecode.settings import SamplingSettings


def draw_of(settings: SamplingSettings, key: int | None, first_position: int) -> Draw | None:
    """The draw of one output whose first token stands at `first_position`, by the noise of `key`; None where it is greedy.

    `key` is what `settings.sampling_key` gives for the output; None stands for 0, of what is thrown away.
    """
    if not settings.is_sampled:
        return None
    return Draw(
        settings.temperature,
        settings.top_k,
        settings.top_p,
        settings.min_p,
        key=key or 0,
        first_position=first_position,
    )


def noise_of(key: int, place: int, token_id: int) -> float:
    """The Gumbel noise of one token at one place, as `kernels.sampling.noise` has it up to rounding.

    In Python's numbers: a drafter that asks for a few tokens a round would wait for torch.
    """
    a, b, c, d = token_id // LANES, place, 0, 0
    low, high = key & MASK, key >> 32
    for _ in range(NUM_ROUNDS):
        first, second = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b, c, d = second >> 32 ^ b ^ low, second & MASK, first >> 32 ^ d ^ high, first & MASK
        low, high = low + KEY_STEPS[0] & MASK, high + KEY_STEPS[1] & MASK
    word = (a, b, c, d)[token_id % LANES]
    return -math.log(-math.log1p(-(word + 0.5) * 2.0**-32))


def drawn_margin(logits: Tensor, draw: Draw, place: int) -> float:
    """By how much the token drawn at `place` from `logits` `[V]` was ahead of the next best, in logits.

    That is T times the difference of what the draw compares. Filters are left aside but for the token that was drawn: how
    near another is to being let in is not known, so a token that they keep out may seem near.
    """
    places = torch.tensor([place], device=logits.device)
    drawn = int(draw_rows(logits[None], draw, places).token_ids)
    token_ids = torch.arange(len(logits), device=logits.device)
    scores = logits.double() + draw.temperature * noise(draw.key, places, token_ids)[0].double()
    taken = float(scores[drawn])
    scores[drawn] = -math.inf
    return abs(taken - float(scores.max()))
