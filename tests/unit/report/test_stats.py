"""Speedups by hand, and intervals that cover what they say: simulated on log-ratios of the shapes that runs have."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from adadecode.report.stats import (
    MIN_PROMPTS,
    Estimate,
    Percentiles,
    fastest,
    geomean_speedup,
    mean_interval,
    mean_log_s,
    percentiles,
    total_s,
    total_speedup,
)
from tests.simulated_intervals import SHAPES, covers, covers_mean

SECONDS = st.floats(min_value=1e-3, max_value=1e3)
PAIRS = st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=12)


def approximately(estimate):
    assert estimate is not None
    ends = (pytest.approx(end) for end in (estimate.value, estimate.low, estimate.high))
    return Estimate(*ends, num_prompts=estimate.num_prompts)


def test_percentiles_interpolate_linearly_and_carry_n():
    assert percentiles([1.0, 2.0, 3.0, 4.0, 5.0]) == Percentiles(p50=3.0, p90=4.6, n=5)


@pytest.mark.parametrize(("n", "p99"), [(99, None), (100, pytest.approx(98.01))])
def test_the_99th_percentile_is_hidden_below_a_hundred_values(n, p99):
    assert percentiles(np.arange(n)).p99 == p99
    assert percentiles(np.arange(n)).n == n


def test_percentiles_leave_out_what_was_not_measured():
    assert percentiles([2.0, math.nan]) == Percentiles(p50=2.0, p90=2.0, n=1)


def test_percentiles_of_nothing_are_none():
    assert percentiles([]) == Percentiles(p50=None, p90=None, n=0)


def test_geomean_and_total_speedup_by_hand():
    # ratios 2 and 8: geometric mean 4; totals (2 + 8) / (1 + 1) = 5
    pairs = ([0, 1], [2.0, 8.0], [1.0, 1.0])
    assert geomean_speedup(*pairs) == Estimate(pytest.approx(4.0), None, None, num_prompts=2)
    assert total_speedup(*pairs) == pytest.approx(5.0)


def test_no_pairs_give_no_speedup():
    assert geomean_speedup([], [], []) is None
    assert total_speedup([], [], []) is None


def test_many_repeats_of_one_prompt_are_still_one_prompt():
    found = geomean_speedup([4] * 30, np.linspace(2, 5, 30), [2.0] * 30)
    assert found is not None
    assert (found.num_prompts, found.low, found.high) == (1, None, None)


def test_repeats_are_reduced_to_their_prompt():
    # prompt 0: log-ratios of 2 and 8 average to that of 4, mean times 5 and 1; prompt 1: ratio 9, times 9 and 1
    pairs = ([0, 0, 1], [2.0, 8.0, 9.0], [1.0, 1.0, 1.0])
    assert geomean_speedup(*pairs) == approximately(geomean_speedup([0, 1], [4.0, 9.0], [1.0, 1.0]))
    assert total_speedup(*pairs) == pytest.approx(7.0)  # (5 + 9) / (1 + 1)


def test_repeating_every_measurement_does_not_narrow_the_interval():
    base, method = np.array([2.0, 3.0, 5.0, 4.0] * 3), np.array([1.0, 2.0, 2.0, 3.0, 2.0, 2.5] * 2)
    once = geomean_speedup(range(12), base, method)
    thrice = geomean_speedup([*range(12)] * 3, np.tile(base, 3), np.tile(method, 3))
    assert once is not None
    assert once.low is not None
    assert thrice == approximately(once)


def test_equal_ratios_have_no_interval_even_when_rounding_differs():
    base = np.linspace(0.2, 1.4, 20)
    assert geomean_speedup(range(20), base, base / 3 + 1e-17) == Estimate(pytest.approx(3.0), None, None, 20)


@pytest.mark.parametrize(("num_prompts", "has_interval"), [(MIN_PROMPTS - 1, False), (MIN_PROMPTS, True)])
def test_an_interval_needs_a_few_prompts(num_prompts, has_interval):
    found = geomean_speedup(range(num_prompts), np.linspace(1, 2, num_prompts), np.ones(num_prompts))
    assert found is not None
    assert (found.low is not None, found.high is not None) == (has_interval, has_interval)


def test_on_values_without_skewness_the_interval_is_students():
    values = np.array([-3.0, -2.0, -1.0, -0.5, 0.5, 1.0, 2.0, 3.0]) + 7
    low, high = scipy_stats.t.interval(0.95, 7, loc=7, scale=scipy_stats.sem(values))
    assert mean_interval(values) == pytest.approx((low, high))


def test_a_long_tail_widens_the_interval_on_its_own_side_only():
    values = np.array([0.0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.4, 3.0])
    low, high = scipy_stats.t.interval(0.95, 7, loc=values.mean(), scale=scipy_stats.sem(values))
    found = mean_interval(values)
    assert found is not None
    assert found[0] == pytest.approx(low)
    assert found[1] > high + 0.1
    assert mean_interval(-values) == pytest.approx((-found[1], -found[0]))


@pytest.mark.parametrize("num_prompts", [8, 12, 24, 48, 100])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_interval_covers_what_it_says(shape, num_prompts):
    assert 0.93 <= covers_mean(shape, num_prompts) <= 0.97


@pytest.mark.parametrize("num_prompts", [8, 24])
def test_the_interval_covers_what_it_says_of_prompts_with_repeats(num_prompts):
    rng = np.random.default_rng(num_prompts)
    of_prompt = rng.exponential(size=(1000, num_prompts, 1))
    log_ratios = of_prompt + 0.3 * rng.normal(size=(1000, num_prompts, 3))
    prompts = np.repeat(np.arange(num_prompts), 3)
    found = [geomean_speedup(prompts, np.exp(ratios.ravel()), np.ones(3 * num_prompts)) for ratios in log_ratios]
    assert 0.93 <= covers(found, math.e) <= 0.97


def test_each_statistic_has_the_baseline_that_is_faster_by_it():
    # on every prompt `ours` is as fast as the better of the two: no geometric mean of 1.19 can come of that
    times = {"wide": np.array([1.0] * 19 + [30.0]), "narrow": np.array([1.2] * 19 + [25.0])}
    ours, prompts = np.array([1.0] * 19 + [25.0]), np.arange(20)
    assert fastest(mean_log_s, times, prompts, times) == "wide"
    assert fastest(total_s, times, prompts, times) == "narrow"
    geomean = geomean_speedup(prompts, times["wide"], ours)
    assert geomean is not None
    assert geomean.value == pytest.approx(1.2 ** (1 / 20), abs=1e-3)
    assert total_speedup(prompts, times["narrow"], ours) == pytest.approx(47.8 / 44)


@settings(deadline=None)
@given(PAIRS, PAIRS)
def test_the_faster_baseline_gives_the_smaller_speedup_of_either_kind(pairs, others):
    size = min(len(pairs), len(others))
    wide, ours = np.array(pairs[:size]).T
    narrow, prompts = np.array(others[:size])[:, 0], np.arange(size) // 2
    times = {"wide": wide, "narrow": narrow}
    for statistic, value in ((mean_log_s, lambda *pair: geomean_speedup(*pair).value), (total_s, total_speedup)):
        of_all = [value(prompts, base, ours) for base in times.values()]
        chosen = times[fastest(statistic, times, prompts, times)]
        assert value(prompts, chosen, ours) == pytest.approx(min(of_all))


@settings(deadline=None)
@given(PAIRS)
def test_swapping_base_and_method_inverts_both_speedups_and_the_interval(pairs):
    base, method = np.array(pairs).T
    prompts = np.arange(len(pairs))
    forward, backward = geomean_speedup(prompts, base, method), geomean_speedup(prompts, method, base)
    assert forward is not None
    assert backward is not None
    assert forward.value * backward.value == pytest.approx(1.0)
    assert total_speedup(prompts, base, method) * total_speedup(prompts, method, base) == pytest.approx(1.0)
    if forward.low is not None:
        assert forward.low <= forward.value <= forward.high
        assert (forward.low * backward.high, forward.high * backward.low) == pytest.approx((1.0, 1.0))


@settings(deadline=None)
@given(PAIRS, st.floats(min_value=0.1, max_value=10))
def test_speedups_do_not_depend_on_the_unit_of_time(pairs, unit):
    base, method = np.array(pairs).T
    prompts = np.arange(len(pairs))
    assert geomean_speedup(prompts, base * unit, method * unit).value == pytest.approx(
        geomean_speedup(prompts, base, method).value
    )
    assert total_speedup(prompts, base * unit, method * unit) == pytest.approx(total_speedup(prompts, base, method))


@settings(deadline=None)
@given(PAIRS)
def test_both_speedups_lie_between_the_extreme_ratios(pairs):
    base, method = np.array(pairs).T
    lowest, highest = (base / method).min() * (1 - 1e-9), (base / method).max() * (1 + 1e-9)
    prompts = np.arange(len(pairs))
    assert lowest <= geomean_speedup(prompts, base, method).value <= highest
    assert lowest <= total_speedup(prompts, base, method) <= highest
