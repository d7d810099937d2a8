"""What changed between two measurements of the same prompts, each with its interval: speeds, rates, scores.

Everything is paired by prompt, and all repeats and turns of a prompt are one observation, because they are not
independent. Intervals are those of stats.py, of means or of jackknife values where a rate is a sum over a sum.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from adadecode.report.stats import (
    CONFIDENCE_LEVEL,
    MIN_LOG_SPREAD,
    MIN_PROMPTS,
    Estimate,
    mean_by_prompt,
    mean_intervals,
)

# Prompts over which a difference of scores is bootstrapped: with fewer a BCa interval covers less than it says
# (docs/statistics.md), with more it takes long and is Student's.
BOOTSTRAPPED = range(100, 10_001)
NUM_RESAMPLES = 9999
NUM_AT_ONCE = 2_000_000  # values of resamples in memory together
SEED = 0  # a comparison that is made again says the same

Floats = NDArray[np.float64]
Test = Literal["McNemar's exact test", "paired bootstrap (BCa)", "paired t, skewness-corrected", "no interval", "equal"]


@dataclass(frozen=True)
class ScoreChange:
    """The mean scores of the same `num_prompts` prompts before and after, and what the `test` says of the difference.

    `p_value`, `num_gained` and `num_lost` are McNemar's, of scores that are 0 or 1; `low` and `high` those of the interval
    of other scores' mean difference.
    """

    test: Test
    before: float
    after: float
    num_prompts: int
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    num_gained: int | None = None
    num_lost: int | None = None


def speed_ratio(prompts: ArrayLike, before_s: ArrayLike, after_s: ArrayLike) -> Estimate | None:
    """The geometric mean over prompts of `before_s[i] / after_s[i]`, all > 0: 1.1 is 10 % faster. None without pairs.

    Where all prompts have one ratio, as those of a run beside itself, that ratio is both ends of its interval.
    """
    ratios = np.log(np.asarray(before_s, np.float64) / np.asarray(after_s, np.float64))
    if not ratios.size:
        return None
    of_prompt = mean_by_prompt(prompts, ratios)
    found = _estimate(of_prompt, float(of_prompt.mean()))
    low, high = (None if end is None else float(np.exp(end)) for end in (found.low, found.high))
    return Estimate(float(np.exp(found.value)), low, high, found.num_prompts)


def rate_change(
    prompts: ArrayLike, before: tuple[ArrayLike, ArrayLike], after: tuple[ArrayLike, ArrayLike]
) -> Estimate | None:
    """How far the rate sum / sum of `after` is above that of `before`, each (parts, wholes) by row; None without wholes.

    The interval is that of the mean of jackknife pseudo-values (J. Tukey, Bias and confidence in not-quite large samples,
    Ann. Math. Stat. 29, 1958): what each prompt adds to the difference of the two rates.
    """
    sums = [[sum_by_prompt(prompts, amounts) for amounts in rate] for rate in (before, after)]
    if not all(wholes.sum() > 0 for _, wholes in sums):
        return None
    (old, new), n = (float(parts.sum() / wholes.sum()) for parts, wholes in sums), len(sums[0][0])
    if any(np.any(wholes.sum() - wholes <= 0) for _, wholes in sums):
        return Estimate(new - old, None, None, n)  # one prompt has all of it
    without = [(parts.sum() - parts) / (wholes.sum() - wholes) for parts, wholes in sums]
    pseudo_values = n * (new - old) - (n - 1) * (without[1] - without[0])
    return _estimate(pseudo_values, new - old)


def score_change(prompts: ArrayLike, before: ArrayLike, after: ArrayLike) -> ScoreChange:
    """What became of the scores of the same rows; each prompt counts once, with the mean of its rows.

    Scores of 0 and 1 are held against each other by McNemar's exact test (Q. McNemar, Psychometrika 12, 1947), others by
    the interval of their mean difference, bootstrapped over BOOTSTRAPPED prompts.
    """
    old, new = mean_by_prompt(prompts, before), mean_by_prompt(prompts, after)
    means = (float(old.mean()), float(new.mean()), len(old))
    if np.isin(np.concatenate([old, new]), (0.0, 1.0)).all():
        gained, lost = int(np.sum(new > old)), int(np.sum(new < old))
        p_value = float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
        return ScoreChange("McNemar's exact test", *means, p_value=p_value, num_gained=gained, num_lost=lost)
    differences = new - old
    if np.ptp(differences) < MIN_LOG_SPREAD and abs(differences[0]) < MIN_LOG_SPREAD:
        return ScoreChange("equal", *means)
    if len(differences) in BOOTSTRAPPED and np.ptp(differences) > MIN_LOG_SPREAD:
        return ScoreChange("paired bootstrap (BCa)", *means, *bootstrap_interval(differences))
    found = _estimate(differences, float(differences.mean()))
    test: Test = "no interval" if found.low is None else "paired t, skewness-corrected"
    return ScoreChange(test, *means, found.low, found.high)


def bootstrap_interval(differences: Floats) -> tuple[float, float]:
    """The 95 % BCa interval of the mean of `differences` [n], which are not all equal."""
    n = len(differences)
    found = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=NUM_RESAMPLES,
        batch=max(1, NUM_AT_ONCE // n),
        confidence_level=CONFIDENCE_LEVEL,
        method="BCa",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return float(found.low), float(found.high)


def sum_by_prompt(prompts: ArrayLike, values: ArrayLike) -> Floats:
    """The sum of each prompt's `values`, prompts in order."""
    codes = np.unique(np.asarray(prompts), return_inverse=True)[1]
    return np.bincount(codes, weights=np.asarray(values, np.float64)).astype(np.float64)


def _estimate(values: Floats, value: float) -> Estimate:
    """`value` with the interval of the mean of independent `values` [n], both ends `value` where these are all equal."""
    n = len(values)
    if n < MIN_PROMPTS:
        return Estimate(value, None, None, n)
    if np.ptp(values) < MIN_LOG_SPREAD * max(1.0, float(np.abs(values).max())):
        return Estimate(value, value, value, n)
    low, high = mean_intervals(values)
    return Estimate(value, float(low), float(high), n)
