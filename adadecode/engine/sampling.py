"""How a generation draws its tokens: by noise that belongs to the output's place, not to the method that asks.

The token at output place i is the argmax over the vocabulary of logits / T + G, where G is Gumbel noise of (key, i, token)
and the logits are filtered: an exact draw. Vanilla and whatever drafts for AdaDecode meet the same noise at the same place,
so a verified token is vanilla's, and drafts agree with it more often than draws of their own would (drafter-invariant
speculative decoding, arXiv 2408.07978).
"""

import math

from adadecode.kernels.sampling import KEY_STEPS, LANES, MASK, MULTIPLIERS, NUM_ROUNDS, Draw
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
