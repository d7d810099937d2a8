import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from adadecode.report import stats
from adadecode.report.stats import paired_speedups, percentiles

SECONDS = st.floats(min_value=1e-3, max_value=1e3)
PAIRS = st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=12)


def approximately(estimate):
    return stats.Estimate(*(pytest.approx(end) for end in (estimate.value, estimate.low, estimate.high)))


def test_percentiles_interpolate_linearly_and_carry_n():
    assert percentiles([1.0, 2.0, 3.0, 4.0, 5.0]) == stats.Percentiles(p50=3.0, p90=4.6, n=5)


def test_percentiles_leave_out_what_was_not_measured():
    assert percentiles([2.0, math.nan]) == stats.Percentiles(p50=2.0, p90=2.0, n=1)


def test_percentiles_of_nothing_are_none():
    assert percentiles([]) == stats.Percentiles(p50=None, p90=None, n=0)


def test_geomean_and_total_speedup_by_hand():
    # ratios 2 and 8: geometric mean 4; totals (2 + 8) / (1 + 1) = 5
    found = paired_speedups([0, 1], [2.0, 8.0], [1.0, 1.0])
    assert found is not None
    assert found.geomean.value == pytest.approx(4.0)
    assert found.total.value == pytest.approx(5.0)
    assert found.num_prompts == 2


def test_no_pairs_give_no_speedup():
    assert paired_speedups([], [], []) is None


def test_one_prompt_has_a_value_and_no_interval():
    found = paired_speedups([7], [3.0], [2.0])
    assert found is not None
    for estimate in (found.geomean, found.total):
        assert (estimate.value, estimate.low, estimate.high) == (pytest.approx(1.5), None, None)


def test_many_repeats_of_one_prompt_are_still_one_prompt():
    found = paired_speedups([4, 4, 4], [3.0, 4.0, 5.0], [2.0, 2.0, 2.0])
    assert found is not None
    assert found.num_prompts == 1
    assert found.geomean.low is None
    assert found.total.low is None


def test_equal_ratios_have_no_interval_even_when_rounding_differs():
    base = np.array([0.2, 0.6, 1.4, 0.7])
    found = paired_speedups(range(4), base, base / 3 + 1e-17)
    assert found is not None
    assert (found.geomean.low, found.geomean.high) == (None, None)
    assert (found.total.low, found.total.high) == (None, None)
    assert found.geomean.value == pytest.approx(3.0)


def test_intervals_are_scipys_bca_over_prompts():
    generator = np.random.default_rng(1)
    base, method = generator.uniform(1, 2, 20), generator.uniform(0.5, 1, 20)
    found = paired_speedups(range(20), base, method)
    assert found is not None
    geomean = scipy_stats.bootstrap((np.log(base / method),), np.mean, rng=np.random.default_rng(stats.SEED))
    total = scipy_stats.bootstrap(
        (base, method), lambda b, m, axis: b.sum(axis) / m.sum(axis), paired=True, rng=np.random.default_rng(stats.SEED)
    )
    assert (found.geomean.low, found.geomean.high) == pytest.approx(np.exp(geomean.confidence_interval))
    assert (found.total.low, found.total.high) == pytest.approx(tuple(total.confidence_interval))
    assert found.geomean.low < found.geomean.value < found.geomean.high
    assert found.total.low < found.total.value < found.total.high


def test_repeats_are_reduced_to_their_prompt_before_resampling():
    # prompt 0: log-ratios of 2 and 8 average to that of 4, mean times 5 and 1; prompt 1: ratio 9, times 9 and 1
    repeated = paired_speedups([0, 0, 1], [2.0, 8.0, 9.0], [1.0, 1.0, 1.0])
    assert repeated is not None
    assert repeated.num_prompts == 2
    assert repeated.geomean.value == pytest.approx(6.0)  # sqrt(4 * 9)
    assert repeated.total.value == pytest.approx(7.0)  # (5 + 9) / (1 + 1)
    assert repeated.geomean == approximately(paired_speedups([0, 1], [4.0, 9.0], [1.0, 1.0]).geomean)


def test_repeating_every_measurement_does_not_narrow_the_interval():
    base, method = [2.0, 3.0, 5.0, 4.0], [1.0, 2.0, 2.0, 3.0]
    once = paired_speedups([0, 1, 2, 3], base, method)
    thrice = paired_speedups([0, 1, 2, 3] * 3, base * 3, method * 3)
    assert once is not None
    assert thrice is not None
    assert thrice.geomean == approximately(once.geomean)
    assert thrice.total == approximately(once.total)


def test_the_same_data_give_the_same_interval_twice():
    arguments = (range(5), [2.0, 3.0, 5.0, 4.0, 1.0], [1.0, 2.0, 2.0, 3.0, 2.0])
    assert paired_speedups(*arguments) == paired_speedups(*arguments)


def test_many_prompts_use_the_percentile_interval_in_batches(monkeypatch):
    monkeypatch.setattr(stats, "MAX_BCA_PROMPTS", 3)
    monkeypatch.setattr(stats, "BATCH_ELEMENTS", 1000)
    log_ratios = np.log([2.0, 1.5, 2.5, 4 / 3])
    found = paired_speedups(range(4), np.exp(log_ratios), np.ones(4))
    expected = scipy_stats.bootstrap(
        (log_ratios,), np.mean, method="percentile", rng=np.random.default_rng(stats.SEED)
    ).confidence_interval
    assert found is not None
    assert (found.geomean.low, found.geomean.high) == pytest.approx(np.exp(expected))


@settings(deadline=None)
@given(PAIRS)
def test_swapping_base_and_method_inverts_both_speedups(pairs):
    base, method = zip(*pairs, strict=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stats, "NUM_RESAMPLES", 199)
        forward = paired_speedups(range(len(pairs)), base, method)
        backward = paired_speedups(range(len(pairs)), method, base)
    assert forward is not None
    assert backward is not None
    assert forward.geomean.value * backward.geomean.value == pytest.approx(1.0)
    assert forward.total.value * backward.total.value == pytest.approx(1.0)


@settings(deadline=None)
@given(PAIRS, st.floats(min_value=0.1, max_value=10))
def test_speedups_do_not_depend_on_the_unit_of_time(pairs, unit):
    base, method = np.array(pairs).T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stats, "NUM_RESAMPLES", 199)
        found = paired_speedups(range(len(pairs)), base, method)
        rescaled = paired_speedups(range(len(pairs)), base * unit, method * unit)
    assert found is not None
    assert rescaled is not None
    assert rescaled.geomean.value == pytest.approx(found.geomean.value)
    assert rescaled.total.value == pytest.approx(found.total.value)


@settings(deadline=None)
@given(PAIRS)
def test_both_speedups_lie_between_the_extreme_ratios_and_so_do_their_intervals(pairs):
    base, method = np.array(pairs).T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stats, "NUM_RESAMPLES", 199)
        found = paired_speedups(range(len(pairs)), base, method)
    assert found is not None
    lowest, highest = (base / method).min() * (1 - 1e-9), (base / method).max() * (1 + 1e-9)
    for estimate in (found.geomean, found.total):
        assert lowest <= estimate.value <= highest
        assert (estimate.low is None) == (estimate.high is None)
        if estimate.low is not None:
            assert lowest <= estimate.low <= estimate.high <= highest
