"""The rule by which tokens are drawn: its generator, its noise, its filters, and the distribution that comes of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from adadecode.kernels import sampling
from adadecode.kernels.sampling import (
    MASK,
    Draw,
    Filters,
    draw_rows,
    exp,
    gumbel,
    is_kept,
    noise,
    philox,
    round_keys,
)

NUM_DRAWS = 200_000
LEVEL = 1e-5  # of each chi-square test: of the dozens here, one in thousands of changes to the noise fails by chance
TINY = torch.tensor([2.0, -1.0, 0.5, 0.5, 1.25, -3.0, 0.5, 3.0, 0.0, 2.75, -0.5])  # ties among them
SETTINGS = (
    Draw(0.3, key=1),
    Draw(0.7, key=2),
    Draw(1.0, key=3),
    Draw(1.5, key=4),
    Draw(1.0, top_k=4, key=5),
    Draw(1.0, top_k=7, key=6),
    Draw(1.0, top_p=0.8, key=7),
    Draw(1.5, top_p=0.95, key=8),
    Draw(1.0, min_p=0.1, key=9),
    Draw(0.7, top_k=9, top_p=0.9, min_p=0.02, key=10),
)

# The known answers that are published with Random123: counter, key, words.
KNOWN = (
    ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((MASK,) * 4, (1 << 64) - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0_A4093822,
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_the_generator_gives_the_published_words(counter, key, words):
    out = philox(tuple(torch.tensor([word]) for word in counter), round_keys(key))
    assert tuple(int(word) for word in out) == words


def test_noise_is_of_the_counter_and_the_lane_that_are_documented():
    key, places, token_ids = 0x0123_4567_89AB_CDEF, torch.tensor([0, 7, 40_000]), torch.tensor([0, 1, 6, 128_255, 3])
    found = noise(key, places, token_ids)
    for m, place in enumerate(places):
        for k, token_id in enumerate(token_ids):
            counter = (token_id // 4, place, torch.tensor(0), torch.tensor(0))
            word = philox(counter, round_keys(key))[int(token_id % 4)]
            assert found[m, k] == gumbel(word[None])[0]
    assert noise(key + 1, places, token_ids).ne(found).all()
    assert noise(key + (1 << 32), places, token_ids).ne(found).all()


def test_noise_is_that_of_a_uniform_number_strictly_between_zero_and_one_and_precise_where_it_wins():
    words = torch.cat((torch.arange(1 << 12), MASK - torch.arange(1 << 12), torch.arange(0, 1 << 32, 99_991)))
    w = ((words.float() + 0.5) * 2.0**-32).clamp(max=1 - 2.0**-24).double()
    assert 0 < float(w.min()) <= float(w.max()) < 1
    torch.testing.assert_close(gumbel(words).double(), -torch.log(-torch.log1p(-w)), rtol=0, atol=2e-6)
    x = torch.linspace(-30, 0, 10_001)
    torch.testing.assert_close(exp(x).double(), x.double().exp(), rtol=1e-6, atol=0)


def exact(logits: torch.Tensor, draw: Draw) -> torch.Tensor:
    """The tempered, filtered distribution of `logits` `[V]`, in float64, one output after the other."""
    p = torch.softmax(logits.double() / draw.temperature, dim=-1).tolist()
    order = sorted(range(len(p)), key=lambda v: (-float(logits[v]), v))[: draw.top_k or None]
    total, mass, first = sum(p[v] for v in order), 0.0, []
    for v in order:
        if draw.top_p < 1 and first and mass >= draw.top_p * total:
            break
        first.append(v)
        mass += p[v]
    kept = [v for v in first if p[v] >= draw.min_p * p[order[0]] * (1 - 1e-9)]
    out = torch.zeros(len(p), dtype=torch.float64)
    for v in kept:
        out[v] = p[v] / sum(p[u] for u in kept)
    return out


def chi_square_passes(counts: torch.Tensor, expected: torch.Tensor, spare: int = 1) -> bool:
    possible = expected > 0
    if counts[~possible].any():
        return False
    statistic = float(((counts[possible] - expected[possible]) ** 2 / expected[possible]).sum())
    return statistic < float(chi2.ppf(1 - LEVEL, max(1, int(possible.sum()) - spare)))


def draws(draw: Draw, token_ids: torch.Tensor | None = None, count: int = NUM_DRAWS) -> torch.Tensor:
    return draw_rows(TINY.expand(count, -1), draw, torch.arange(count), token_ids).token_ids


@pytest.mark.parametrize(
    "draw",
    [pytest.param(draw, marks=() if at in (2, 7, 9) else pytest.mark.slow) for at, draw in enumerate(SETTINGS)],
    ids=str,
)
def test_tokens_come_as_often_as_they_should_and_probabilities_are_those(draw):
    expected = exact(TINY, draw)
    drawn = draw_rows(TINY.expand(NUM_DRAWS, -1), draw, torch.arange(NUM_DRAWS))
    assert chi_square_passes(torch.bincount(drawn.token_ids, minlength=len(TINY)), expected * NUM_DRAWS)
    torch.testing.assert_close(drawn.probabilities.double(), expected[drawn.token_ids], rtol=1e-5, atol=0)
    assert torch.equal(drawn.logits, TINY[drawn.token_ids])


def test_outputs_of_a_shortlist_take_the_noise_of_their_tokens():
    draw, names = SETTINGS[2], torch.tensor([5, 900, 3, 31, 30, 29, 28, 100_000, 1, 0, 2])
    found = draws(draw, names, 1000)
    scores = TINY + noise(draw.key, torch.arange(1000), names)
    assert torch.equal(found, names[scores.argmax(dim=-1)])
    assert torch.equal(draws(draw, torch.arange(len(TINY)), 1000), draws(draw, None, 1000))


def are_independent(words: torch.Tensor) -> bool:
    """Whether what tokens 0..15 have at places 0.. `[M, 16]` is without a trace of tokens or places beside one another."""
    octile = (words >> 29).flatten(1)
    pairs = [
        octile[:, :-1] * 8 + octile[:, 1:],  # a token and the next one
        octile[:, :-4] * 8 + octile[:, 4:],  # the same lane of the next counter
        octile[:-1] * 8 + octile[1:],  # a place and the next one
        octile[:-1, :-1] * 8 + octile[1:, 1:],
        octile[1:, :-1] * 8 + octile[:-1, 1:],
    ]
    return all(
        chi_square_passes(torch.bincount(pair.flatten(), minlength=64), torch.full((64,), pair.numel() / 64.0))
        for pair in pairs
    )


PLANTED = {
    "a token takes the word of the next one, which keeps its own": lambda w: w[:, [*range(1, 16), 15]].index_copy(
        1, torch.tensor([4, 8, 12]), w[:, [4, 8, 12]]
    ),
    "two tokens share a lane": lambda w: w[:, [0, 0, *range(2, 16)]],
    "lanes of the next counter": lambda w: w[:, [4, 5, 6, 7, *range(4, 16)]],
    "two places share their noise": lambda w: w[torch.arange(len(w)) // 2],
    "a token moves with the place": lambda w: torch.stack([w.flatten()[i : i + len(w)] for i in range(16)], dim=1),
}


def words(num_places: int) -> torch.Tensor:
    return sampling.words_at(round_keys(77), torch.arange(num_places), torch.arange(16))


def test_neighbouring_tokens_and_places_have_nothing_in_common():
    assert are_independent(words(20_000))


@pytest.mark.parametrize("fault", PLANTED.values(), ids=PLANTED)
def test_a_planted_slip_in_the_counter_is_seen(fault):
    assert not are_independent(fault(words(20_000)))


@given(
    st.lists(st.integers(-12, 12).map(lambda n: n / 4), min_size=1, max_size=40),
    st.sampled_from([0.3, 1.0, 1.5]),
    st.sampled_from([0, 1, 3, 8, 100]),
    st.sampled_from([1.0, 0.01, 0.33, 0.77, 0.97]),
    st.sampled_from([0.0, 0.013, 0.37]),
)
@settings(deadline=None)
def test_filters_keep_what_a_naive_reference_keeps(logits, temperature, top_k, top_p, min_p):
    draw, row = Draw(temperature, top_k, top_p, min_p), torch.tensor([logits, [9.0, *logits[1:]]])
    scaled = (row - row.max(dim=-1, keepdim=True).values) * (1 / temperature)
    weights = (exp(scaled).double() * sampling.WHOLE).round().long()
    found = is_kept(row, scaled, weights, Filters(top_k, top_p, min_p))
    for at, kept in zip(row, found, strict=True):
        assert kept.tolist() == (exact(at, draw) > 0).tolist()


def test_filters_take_the_lower_of_equal_logits_first():
    equal = torch.zeros(1, 8)
    for draw in (Draw(1.0, top_k=3), Draw(1.0, top_p=0.3), Draw(1.0, top_k=6, top_p=0.5)):
        drawn = draw_rows(equal.expand(500, -1), draw, torch.arange(500))
        assert set(drawn.token_ids.tolist()) == {0, 1, 2}
        assert drawn.probabilities.unique().tolist() == [pytest.approx(1 / 3)]


def test_a_row_draws_the_same_whatever_is_beside_it():
    rows = torch.randn(9, 1001, generator=torch.Generator().manual_seed(1))
    for draw in SETTINGS:
        drawn = draw_rows(rows, draw, torch.arange(9))
        for m in range(9):
            alone = draw_rows(rows[m : m + 1], draw, torch.tensor([m]))
            assert [float(part) for part in alone] == [float(part[m]) for part in drawn]


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": 0.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"min_p": -0.1}, {"key": 1 << 64}],
)
def test_numbers_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Draw(**{"temperature": 1.0, **wrong})
