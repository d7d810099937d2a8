"""Paired speedups with their intervals, and percentiles. Pure numpy and scipy: arrays in, numbers out.

A statistic's baseline is chosen with that statistic: the vanilla of the least mean log time for the geometric mean, the one
of the least total time for the ratio of totals. That choice can only make an estimate smaller, and its interval, that over
the vanilla which was chosen, covers what it says, as intervals do for data of every shape that was simulated
(docs/statistics.md).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

CONFIDENCE_LEVEL = 0.95

# With fewer prompts no interval that was tried covers 93 to 97 % on data of every shape in tests/unit/report/test_stats.py.
MIN_PROMPTS = 8

MIN_FOR_P99 = 100  # values; with fewer the 99th percentile is their maximum, or nearly

# A small sample of skewed values looks less skewed than what it was drawn from; found by those simulations.
SKEWNESS_FACTOR = 1.25

# Log-ratios closer together than this differ by rounding only; an interval over them would be a disguised +-0.
MIN_LOG_SPREAD = 1e-12

Times = NDArray[np.float64]  # [pairs], seconds
Statistic = Callable[[NDArray[Any], Times], float]  # of the prompts of pairs, and of their times


@dataclass(frozen=True)
class Estimate:
    """A statistic over `num_prompts` prompts with its interval; both ends are None where the data do not allow one."""

    value: float
    low: float | None
    high: float | None
    num_prompts: int


@dataclass(frozen=True)
class Percentiles:
    """The median, the 90th and the 99th percentile, None over nothing, and the number of values behind them.

    The 99th is None below MIN_FOR_P99 values, where it would be the largest of them or near it.
    """

    p50: float | None
    p90: float | None
    n: int
    p99: float | None = None


def percentiles(values: ArrayLike) -> Percentiles:
    """The percentiles of `values` with n beside them, interpolated linearly; what is not finite counts as not measured."""
    measured = np.asarray(values, dtype=np.float64)
    measured = measured[np.isfinite(measured)]
    if not measured.size:
        return Percentiles(None, None, 0)
    p50, p90, p99 = map(float, np.percentile(measured, [50, 90, 99]))
    return Percentiles(p50, p90, measured.size, p99 if measured.size >= MIN_FOR_P99 else None)


def mean_log_s(prompts: ArrayLike, times_s: ArrayLike) -> float:
    """The mean over prompts of each prompt's mean log time: what the geometric mean of speedups compares."""
    return float(mean_by_prompt(prompts, np.log(times_s)).mean())


def total_s(prompts: ArrayLike, times_s: ArrayLike) -> float:
    """The sum over prompts of each prompt's mean time: what the ratio of totals compares."""
    return float(mean_by_prompt(prompts, times_s).sum())


def fastest(statistic: Statistic, names: Iterable[str], prompts: NDArray[Any], times_s: Mapping[str, Times]) -> str:
    """Which of `names` has the least `statistic` of its times; the first of those that are equal."""
    return min(names, key=lambda name: statistic(prompts, times_s[name]))


def geomean_speedup(prompts: ArrayLike, base_s: ArrayLike, method_s: ArrayLike) -> Estimate | None:
    """The geometric mean of `base_s[i] / method_s[i]`, measured on prompt `prompts[i]`, all > 0; None without pairs.

    Repeats of a prompt are not independent, so each prompt is first reduced to its mean log-ratio.
    """
    base, method = np.asarray(base_s, dtype=np.float64), np.asarray(method_s, dtype=np.float64)
    if not base.size:
        return None
    log_ratios = mean_by_prompt(prompts, np.log(base / method))
    ends = mean_interval(log_ratios)
    low, high = (None, None) if ends is None else (float(np.exp(end)) for end in ends)
    return Estimate(float(np.exp(log_ratios.mean())), low, high, log_ratios.size)


def total_speedup(prompts: ArrayLike, base_s: ArrayLike, method_s: ArrayLike) -> float | None:
    """The sum of `base_s` by that of `method_s`, both > 0, each prompt with its mean time; None without pairs.

    It has no interval: a few long outputs decide it, and none that was tried covers its 95 % where long outputs are also
    those that gain most.
    """
    return total_s(prompts, base_s) / total_s(prompts, method_s) if np.size(base_s) else None


def mean_interval(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """The 95 % interval of the mean that independent `values` [n] were drawn with; None where they do not allow one."""
    if values.size < MIN_PROMPTS or np.ptp(values) < MIN_LOG_SPREAD:
        return None
    low, high = mean_intervals(values)
    return float(low), float(high)


def mean_intervals(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The lower and upper ends, [...], of the 95 % intervals of the means of `values` [..., n], which are not all equal.

    Student's interval, each end moved outwards to that of Hall's t, which is corrected for skewness, where that lies
    further out (P. Hall, On the removal of skewness by transformation, J. R. Statist. Soc. B 54, 1992, section 2).
    """
    n = values.shape[-1]
    t = float(stats.t.ppf((1 + CONFIDENCE_LEVEL) / 2, n - 1))
    skew = SKEWNESS_FACTOR * np.asarray(stats.skew(values, axis=-1, bias=False)) / np.sqrt(n)
    mean, standard_error = values.mean(axis=-1), values.std(axis=-1, ddof=1) / np.sqrt(n)
    return (
        mean - standard_error * np.maximum(t, _inverse_of_hall(t, skew)),
        mean - standard_error * np.minimum(-t, _inverse_of_hall(-t, skew)),
    )


def _inverse_of_hall(z: float, skew: NDArray[np.float64]) -> NDArray[np.float64]:
    """The t at which t + skew t^2 / 3 + skew^2 t^3 / 27 + skew / 6 is z."""
    is_symmetric = np.abs(skew) < 1e-9
    divisor = np.where(is_symmetric, 1.0, skew)
    return np.where(is_symmetric, z, 3 / divisor * (np.cbrt(1 + skew * (z - skew / 6)) - 1))


def mean_by_prompt(prompts: ArrayLike, values: ArrayLike) -> NDArray[np.float64]:
    """The mean of each prompt's `values` [rows], prompts in order: repeats of one are not independent."""
    cluster = np.unique(np.asarray(prompts), return_inverse=True)[1]
    return np.bincount(cluster, weights=np.asarray(values, dtype=np.float64)) / np.bincount(cluster)
