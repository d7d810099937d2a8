"""What the intervals of all tables cover, simulated: data sets of known truth, as runs have them.

`python -m tests.simulated_intervals` prints the table of docs/statistics.md, the same figures each time (three minutes).
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from adadecode.report.paired import rate_change
from adadecode.report.stats import Estimate, fastest, geomean_speedup, mean_intervals, mean_log_s

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Floats]

# Log-ratios by shape: how to draw them, and the mean that they are drawn with.
SHAPES: dict[str, tuple[Draw, float]] = {
    "normal": (lambda drawn, size: drawn.normal(size=size), 0.0),
    "skewed to the right": (lambda drawn, size: drawn.exponential(size=size), 1.0),
    "skewed to the left": (lambda drawn, size: -drawn.gamma(2.0, size=size), -2.0),
    "log-normal": (lambda drawn, size: np.exp(0.8 * drawn.normal(size=size)), math.exp(0.32)),
    "heavy tails": (lambda drawn, size: drawn.standard_t(3, size=size), 0.0),
    "heavy tails with ties": (lambda drawn, size: np.round(drawn.standard_t(3, size=size), 1), 0.0),
}
NOISES = ("normal", "heavy tails", "heavy tails with ties", "skewed to the right")  # of the choice of a vanilla
GAPS = (0, 1, 3)  # between two vanillas, in standard errors
SIZES = (8, 24, 100)  # prompts
NUM_SETS = 8000  # of means: the standard error of a coverage near 95 % is 0.24 %
NUM_FEWER = 1000  # of what takes longer: 0.7 %
NUM_RESAMPLES = 999
BATCH = 25  # resamples in memory together


def covered(low: Floats, high: Floats, truth: float) -> float:
    """The share of intervals that hold `truth`."""
    return float(np.mean((low <= truth) & (truth <= high)))


def covers(estimates: Iterable[Estimate | None], truth: float) -> float:
    """The same of estimates; one without an interval does not hold it."""
    return float(np.mean([_holds(one, truth) for one in estimates]))


def _holds(one: Estimate | None, truth: float) -> bool:
    return one is not None and one.low is not None and one.high is not None and one.low <= truth <= one.high


def covers_mean(shape: str, num_prompts: int, num_sets: int = NUM_SETS) -> float:
    """How often the interval of a mean holds it."""
    draw, mean = SHAPES[shape]
    return covered(*mean_intervals(draw(np.random.default_rng(num_prompts), (num_sets, num_prompts))), mean)


def covers_mean_by_bca(shape: str, num_prompts: int, num_sets: int = NUM_FEWER) -> float:
    """The same of scipy's BCa bootstrap."""
    draw, mean = SHAPES[shape]
    return covered(*bca(np.mean, draw(np.random.default_rng(num_prompts), (num_sets, num_prompts))), mean)


def bca(statistic: Callable[..., Floats], *data: Floats) -> tuple[Floats, Floats]:
    """The BCa intervals of `statistic` of paired `data` [sets, prompts]."""
    found = scipy_stats.bootstrap(
        data, statistic, paired=True, axis=-1, n_resamples=NUM_RESAMPLES, batch=BATCH, rng=1, method="BCa"
    ).confidence_interval
    return found.low, found.high


def rates(drawn: np.random.Generator, num_sets: int, n: int, spread: float) -> list[tuple[Floats, Floats]]:
    """Drafts kept and made, before and after, of prompts whose log lengths have the standard deviation `spread`.

    The longer ones have the higher acceptance, and what comes after has 3 points less.
    """
    lengths = np.exp(spread * drawn.normal(size=(num_sets, n)))
    first = np.clip(0.7 + 0.12 * drawn.normal(size=lengths.shape) + 0.08 * np.log(lengths), 0.02, 0.98)
    second = np.clip(first - 0.03 + 0.05 * drawn.normal(size=lengths.shape), 0.02, 0.98)
    wholes = [np.ceil(40 * lengths), np.ceil(40 * lengths * np.exp(0.15 * drawn.normal(size=lengths.shape)))]
    both = zip(wholes, (first, second), strict=True)
    return [(drawn.binomial(whole.astype(int), rate).astype(float), whole) for whole, rate in both]


def change_of_rates(old_parts: Floats, old_wholes: Floats, parts: Floats, wholes: Floats, axis: int = -1) -> Floats:
    return parts.sum(axis) / wholes.sum(axis) - old_parts.sum(axis) / old_wholes.sum(axis)


def rates_and_truth(num_sets: int, n: int, spread: float) -> tuple[list[Floats], float]:
    """The four arrays [num_sets, n] of `change_of_rates`, and what it comes to over very many prompts."""
    many = itertools.chain(*rates(np.random.default_rng(0), 1, 1_000_000, spread))
    sets = itertools.chain(*rates(np.random.default_rng(n), num_sets, n, spread))
    return list(sets), float(change_of_rates(*many)[0])


def covers_rates(num_sets: int, n: int, spread: float = 0.6) -> float:
    """How often the interval of a change of rates holds it."""
    arrays, truth = rates_and_truth(num_sets, n, spread)
    return covers([rate_change(range(n), one[:2], one[2:]) for one in zip(*arrays, strict=True)], truth)


def covers_rates_by_bca(n: int, spread: float, num_sets: int = NUM_FEWER) -> float:
    """The same of scipy's BCa bootstrap."""
    arrays, truth = rates_and_truth(num_sets, n, spread)
    return covered(*bca(change_of_rates, *arrays), truth)


def chosen_over(shape: str, n: int, gap: int, num_sets: int) -> tuple[list[Estimate], float]:
    """Estimates over the vanilla that is chosen as a run does, and the true speedup over the truly faster one.

    One vanilla is slower by `gap` standard errors; at 0 the two are equal, where a choice does most.
    """
    drawn, prompts, estimates = np.random.default_rng([0, n, gap]), np.arange(n), list[Estimate]()
    draw, mean = SHAPES[shape]
    for _ in range(num_sets):
        logs = 0.2 * (draw(drawn, (3, n)) - mean)
        times = {"wide": np.exp(logs[0]), "narrow": np.exp(logs[1] + gap * 0.2 / np.sqrt(n))}
        base = times[fastest(mean_log_s, times, prompts, times)]
        found = geomean_speedup(prompts, base, np.exp(logs[2] - 0.5))
        assert found is not None
        estimates.append(found)
    return estimates, float(np.exp(0.5))


def told_too_large(estimates: Iterable[Estimate], truth: float) -> float:
    """The share of estimates whose whole interval lies above `truth`."""
    return float(np.mean([one.low is not None and one.low > truth for one in estimates]))


def table() -> Iterator[str]:
    """The lines of the table in docs/statistics.md."""
    yield "| what | data | " + " | ".join(f"{n} prompts" for n in SIZES) + " |"
    yield "|---|---|" + "---|" * len(SIZES)
    shapes = "normal, skewed, log-normal, Student's t with 3 degrees, with and without ties"
    yield _line("mean", shapes, [[covers_mean(shape, n) for shape in SHAPES] for n in SIZES])
    of_bca = [[covers_mean_by_bca(shape, n) for shape in SHAPES] for n in SIZES]
    yield _line("mean, by `scipy.stats.bootstrap`'s BCa", "the same", of_bca)
    lengths = "lengths that go with acceptance, log-normal, sigma 0.4 to 0.9"
    spreads = (0.4, 0.6, 0.9)
    of_rates = [[covers_rates(NUM_FEWER, n, spread) for spread in spreads] for n in SIZES]
    yield _line("change of acceptance", lengths, of_rates)
    of_bca = [[covers_rates_by_bca(n, spread) for spread in spreads] for n in SIZES]
    yield _line("the same by BCa", "the same", of_bca)
    chosen = [[chosen_over(shape, n, gap, NUM_FEWER) for shape in NOISES for gap in GAPS] for n in SIZES]
    what = "two vanillas 0, 1 and 3 standard errors apart; normal, skewed, heavy tails, ties"
    yield _line("speedup over the chosen vanilla", what, [[covers(*one) for one in of] for of in chosen])
    yield _line("the same, told too large", "the same", [[told_too_large(*one) for one in of] for of in chosen])


def _line(what: str, data: str, by_size: Iterable[list[float]]) -> str:
    return f"| {what} | {data} | " + " | ".join(f"{100 * min(of):.1f}-{100 * max(of):.1f} %" for of in by_size) + " |"


if __name__ == "__main__":
    for line in table():
        print(line, flush=True)
