"""Paired speedups with bootstrap intervals, and percentiles. Pure numpy and scipy: arrays in, numbers out."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

CONFIDENCE_LEVEL = 0.95
NUM_RESAMPLES = 9999
SEED = 20250607  # fixed: the same samples always give the same interval

# BCa's jackknife costs n^2 and its correction shrinks as 1/sqrt(n): past this many prompts, the percentile interval.
MAX_BCA_PROMPTS = 5000
BATCH_ELEMENTS = 2_000_000  # bounds the memory of one batch of resamples

# Log-ratios closer together than this differ by rounding only; an interval over them would be a disguised +-0.
MIN_LOG_SPREAD = 1e-12


@dataclass(frozen=True)
class Estimate:
    """A statistic with its confidence interval; both ends are None where the data do not allow one."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class PairedSpeedups:
    """How many times faster a method is than its baseline, and the number of prompts behind both estimates."""

    geomean: Estimate
    total: Estimate
    num_prompts: int


@dataclass(frozen=True)
class Percentiles:
    """The median and the 90th percentile, None over nothing, and the number of values behind them."""

    p50: float | None
    p90: float | None
    n: int


def percentiles(values: ArrayLike) -> Percentiles:
    """p50 and p90 of `values` with n beside them, interpolated linearly; NaN counts as not measured."""
    measured = np.asarray(values, dtype=np.float64)
    measured = measured[~np.isnan(measured)]
    if not measured.size:
        return Percentiles(None, None, 0)
    p50, p90 = np.percentile(measured, [50, 90])
    return Percentiles(float(p50), float(p90), measured.size)


def paired_speedups(prompt_idx: ArrayLike, base_s: ArrayLike, method_s: ArrayLike) -> PairedSpeedups | None:
    """Speedups of the pairs (`base_s[i]`, `method_s[i]`), each measured on prompt `prompt_idx[i]`; None without pairs.

    Repeats of a prompt are not independent, so each prompt is first reduced to its mean log-ratio and its mean times;
    what is resampled are prompts.
    """
    prompts = np.asarray(prompt_idx)
    base, method = np.asarray(base_s, dtype=np.float64), np.asarray(method_s, dtype=np.float64)
    assert prompts.shape == base.shape == method.shape, (prompts.shape, base.shape, method.shape)
    if not prompts.size:
        return None
    assert min(base.min(), method.min()) > 0, (base.min(), method.min())
    cluster = np.unique(prompts, return_inverse=True)[1]
    log_ratios = _mean_by_cluster(np.log(base / method), cluster)
    return PairedSpeedups(
        geomean=_geomean_speedup(log_ratios),
        total=_total_speedup(_mean_by_cluster(base, cluster), _mean_by_cluster(method, cluster)),
        num_prompts=log_ratios.size,
    )


def _mean_by_cluster(values: NDArray, cluster: NDArray) -> NDArray:
    return np.bincount(cluster, weights=values) / np.bincount(cluster)


def _geomean_speedup(log_ratios: NDArray) -> Estimate:
    interval = None if _is_degenerate(log_ratios) else _interval((log_ratios,), np.mean)
    low, high = (None, None) if interval is None else (float(np.exp(end)) for end in interval)
    return Estimate(float(np.exp(log_ratios.mean())), low, high)


def _total_speedup(base_s: NDArray, method_s: NDArray) -> Estimate:
    interval = None if _is_degenerate(np.log(base_s / method_s)) else _interval((base_s, method_s), _ratio_of_sums)
    low, high = (None, None) if interval is None else interval
    return Estimate(float(_ratio_of_sums(base_s, method_s, axis=-1)), low, high)


def _ratio_of_sums(base_s: NDArray, method_s: NDArray, axis: int) -> NDArray:
    return base_s.sum(axis=axis) / method_s.sum(axis=axis)


def _is_degenerate(log_ratios: NDArray) -> bool:
    """Whether resampling prompts cannot move the statistic: one prompt, or the same ratio on all of them."""
    return log_ratios.size < 2 or np.ptp(log_ratios) < MIN_LOG_SPREAD


def _interval(data: tuple[NDArray, ...], statistic: Callable[..., NDArray]) -> tuple[float, float] | None:
    """The bootstrap interval of `statistic` over paired `data`, or None where scipy finds none."""
    num_prompts = data[0].size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # degenerate resamples warn and give NaN, which becomes None here
        low, high = stats.bootstrap(
            data,
            statistic,
            paired=len(data) > 1,
            vectorized=True,
            axis=-1,
            n_resamples=NUM_RESAMPLES,
            batch=max(1, BATCH_ELEMENTS // num_prompts),
            confidence_level=CONFIDENCE_LEVEL,
            method="BCa" if num_prompts <= MAX_BCA_PROMPTS else "percentile",
            rng=np.random.default_rng(SEED),
        ).confidence_interval
    return (float(low), float(high)) if np.isfinite([low, high]).all() else None
