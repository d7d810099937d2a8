"""Sampling by the Gumbel-max rule, with noise that belongs to a place of an output and not to the call that draws.

The next token is the argmax over v of logits[v] / T + G(key, place, v). All arithmetic here is of single additions,
multiplications and divisions, which every processor rounds alike, and of whole numbers, whose sums have no order: the same
logits give the same token in any row, beside any rows, and in native.cpp too (draw.h).
docs/sampling.md says why this is exact.

Shapes: M rows, K outputs of a head, B blocks of four token ids.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

MASK = 0xFFFF_FFFF
MULTIPLIERS, KEY_STEPS = (0xD251_1F53, 0xCD9E_8D57), (0x9E37_79B9, 0xBB67_AE85)  # Philox4x32's
NUM_ROUNDS = 10
LANES = 4  # words of one counter
LEAST_SQRT = 0x3F35_04F3  # the bits of sqrt(1/2)
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
EXP_TERMS = (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0)
ATANH_TERMS = (2 / 9, 2 / 7, 2 / 5, 2 / 3)
ROUNDING = 12582912.0  # 1.5 * 2^23: adding it to a float32 rounds to a whole number
WHOLE = 2.0**34  # the weight of the most likely output; 2^19 of them have an exact sum in float64


class Filters(NamedTuple):
    """What a draw may take.

    Of the `top_k` largest logits (0: all), the first whose mass reaches `top_p`, and of them those with at least `min_p`
    times the probability of the first.
    """

    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


@dataclass(frozen=True)
class Draw:
    """How one output is drawn: at T = `temperature` > 0 under filters, with the noise of `key`, 64 bits.

    The token at absolute position `first_position` of the sequence, the first of the output, has place 0. Raises ValueError
    for numbers that mean nothing.
    """

    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    key: int = 0
    first_position: int = 0

    def __post_init__(self) -> None:
        ranges = {
            "temperature": 1e-6 <= self.temperature <= 1e6,
            "top_k": self.top_k >= 0,
            "top_p": 0 < self.top_p <= 1,
            "min_p": 0 <= self.min_p <= 1,
            "key": 0 <= self.key < 1 << 64,
        }
        for name, is_within in ranges.items():
            if not is_within:
                raise ValueError(f"a draw of {name} {getattr(self, name)}")

    @property
    def filters(self) -> Filters:
        return Filters(self.top_k, self.top_p, self.min_p)


class Numbers:
    """What of a draw may change from request to request, in tensors that stay where they are: graphs read them."""

    def __init__(self, device: torch.device) -> None:
        self.round_keys = torch.zeros(NUM_ROUNDS, 2, dtype=torch.long, device=device)
        self.scale = torch.ones((), device=device)  # 1 / T
        self.first_position = torch.zeros((), dtype=torch.long, device=device)

    def put(self, draw: Draw) -> None:
        """The numbers of `draw` from now on."""
        self.round_keys.copy_(round_keys(draw.key))
        self.scale.fill_(1.0 / draw.temperature)
        self.first_position.fill_(draw.first_position)


class Drawn(NamedTuple):
    """Per row `[M]`: token id, its logit (NaN where the row's largest is not finite) and its probability, float32."""

    token_ids: Tensor
    logits: Tensor
    probabilities: Tensor


def noise(key: int, places: Tensor, token_ids: Tensor) -> Tensor:
    """Gumbel noise `[M, K]`, float32, of `places` `[M]` and `token_ids` `[K]`, which are whole numbers below 2^32.

    Philox4x32-10 with the low and the high half of `key` as its key and the counter (token id // 4, place, 0, 0); the word
    for a token is that of lane token id % 4.
    """
    return gumbel(words_at(round_keys(key).to(places.device), places, token_ids))


def draw_rows(logits: Tensor, draw: Draw, places: Tensor, token_ids: Tensor | None = None) -> Drawn:
    """Draws from each row of `logits` `[M, K]` the token of its place of `places` `[M]`.

    `token_ids` `[K]` names the outputs, whose noise is that of their tokens; None when output j is token j. Ties go to the
    lowest output, in the filters too. A probability is what the tempered, filtered distribution gives the token.
    """
    numbers = Numbers(logits.device)
    numbers.put(draw)
    return drawn_by(numbers, draw.filters, logits, places, token_ids)


def drawn_by(numbers: Numbers, filters: Filters, logits: Tensor, places: Tensor, token_ids: Tensor | None) -> Drawn:
    """`draw_rows` with the numbers of a draw in tensors, at shapes that do not depend on what they hold."""
    logits = logits.float()
    tops = logits.max(dim=-1, keepdim=True).values
    scaled = (logits - tops) * numbers.scale
    weights = (exp(scaled).double() * WHOLE).round().long()
    if filters != Filters():
        kept = is_kept(logits, scaled, weights, filters)
        scaled, weights = scaled.masked_fill(~kept, -math.inf), weights.masked_fill(~kept, 0)
    if token_ids is None:
        blocks = torch.arange(-(-logits.shape[-1] // LANES), device=logits.device)
        words = words_of(numbers.round_keys, places, blocks).flatten(1)[:, : logits.shape[-1]]
    else:
        words = words_at(numbers.round_keys, places, token_ids)
    best = (scaled + gumbel(words)).max(dim=-1, keepdim=True).indices
    found = logits.gather(-1, best).masked_fill(~tops.isfinite(), math.nan)[:, 0]
    probabilities = weights.gather(-1, best)[:, 0].double() / weights.sum(dim=-1).double()
    best = best[:, 0]
    return Drawn(best if token_ids is None else token_ids[best], found, probabilities.float())


def is_kept(logits: Tensor, scaled: Tensor, weights: Tensor, filters: Filters) -> Tensor:
    """Which outputs `[M, K]` the filters keep: always the first ones in the order of logits, then of outputs."""
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    num_outputs = logits.shape[-1]
    count = min(filters.top_k or num_outputs, num_outputs)
    counts = torch.full_like(order[:, :1], count)
    if filters.top_p < 1:
        mass = weights.gather(-1, order).cumsum(dim=-1).double()
        counts = counts.minimum(1 + (mass < filters.top_p * mass[:, count - 1 : count]).sum(dim=-1, keepdim=True))
    if filters.min_p > 0:
        counts = counts.minimum((scaled >= math.log(filters.min_p)).sum(dim=-1, keepdim=True))
    is_first = torch.arange(num_outputs, device=logits.device) < counts
    return torch.zeros_like(is_first).scatter(-1, order, is_first)


def round_keys(key: int) -> Tensor:
    """The two halves of `key` as each round of Philox takes them, `[10, 2]`."""
    halves = (key & MASK, key >> 32)
    return torch.tensor(
        [[half + idx * step & MASK for half, step in zip(halves, KEY_STEPS, strict=True)] for idx in range(NUM_ROUNDS)]
    )


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], round_keys: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10: four words of 32 bits for a counter of four, each in an int64 tensor; they broadcast."""
    a, b, c, d = counter
    for first_key, second_key in round_keys:
        # a product past 2^63 wraps, and its bits are those of the product without a sign
        first, second = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b, c, d = (
            second >> 32 & MASK ^ b ^ first_key,
            second & MASK,
            first >> 32 & MASK ^ d ^ second_key,
            first & MASK,
        )
    return a, b, c, d


def words_of(round_keys: Tensor, places: Tensor, blocks: Tensor) -> Tensor:
    """The words `[M, B, 4]` of places `[M]` and `blocks` `[B]`."""
    nothing = torch.zeros_like(blocks[:1])
    words = philox((blocks, places[:, None] & MASK, nothing, nothing), round_keys)
    return torch.stack(torch.broadcast_tensors(*words), dim=-1)


def words_at(round_keys: Tensor, places: Tensor, token_ids: Tensor) -> Tensor:
    """The words `[M, K]` of places `[M]` and tokens `[K]`."""
    lanes = (token_ids % LANES)[None, :, None].expand(len(places), -1, 1)
    return words_of(round_keys, places, token_ids // LANES).gather(-1, lanes)[..., 0]


def gumbel(words: Tensor) -> Tensor:
    """-log(-log(u)) of u = 1 - w, where w = (word + 1/2) / 2^32 in float32, at most 1 - 2^-24: u is never 0 or 1.

    The largest noise comes from the smallest w, which float32 has in all its 32 bits.
    """
    w = ((words.float() + 0.5) * 2.0**-32).clamp(max=1 - 2.0**-24)
    u = 1.0 - w
    lost = 1.0 - u  # what of w is in u: the rest is made up for
    exponential = torch.where(lost == 0, w, -log(u) * (w / lost.clamp(min=2.0**-24)))
    return -log(exponential)


def log(x: Tensor) -> Tensor:
    """Natural logarithm of positive, normal float32: x = 2^n m with m next to 1, and log m as the series of atanh."""
    bits = x.view(torch.int32) - LEAST_SQRT
    n = (bits >> 23).float()
    f = ((bits & 0x7F_FFFF) + LEAST_SQRT).view(torch.float32) - 1.0
    s = f / (f + 2.0)
    squared = s * s
    series = _polynomial(squared, ATANH_TERMS)
    return n * LN2_HIGH + (s * 2.0 + (s * squared * series + n * LN2_LOW))


def exp(x: Tensor) -> Tensor:
    """The exponential of float32 x <= 0; below -30 that of -30, a weight of zero."""
    x = x.clamp(min=-30.0)
    n = (x * 1.44269504088896341 + ROUNDING) - ROUNDING
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    return _polynomial(r, EXP_TERMS) * ((n.int() + 127) << 23).view(torch.float32)


def _polynomial(x: Tensor, terms: tuple[float, ...]) -> Tensor:
    """By Horner's rule, the highest power's term first."""
    out = x * terms[0] + terms[1]
    for term in terms[2:]:
        out = out * x + term
    return out
