"""Changes between two measurements by hand, and intervals that cover what they say: simulated as runs are."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from adadecode.report.paired import BOOTSTRAPPED, bootstrap_interval, rate_change, score_change, speed_ratio
from adadecode.report.stats import MIN_PROMPTS, Estimate, fastest, geomean_speedup, mean_intervals, mean_log_s
from adadecode.report.variation import variation

EVEN = np.arange(MIN_PROMPTS)


def covers(estimates, truth: float) -> float:
    return float(np.mean([one is not None and one.low <= truth <= one.high for one in estimates]))


# speeds


def test_the_ratio_of_speeds_is_above_one_where_the_second_is_faster():
    found = speed_ratio([0, 1], [2.0, 8.0], [1.0, 1.0])
    assert found == Estimate(pytest.approx(4.0), None, None, num_prompts=2)


def test_one_prompt_and_no_prompt_have_no_interval():
    assert speed_ratio([], [], []) is None
    assert speed_ratio([3, 3, 3], [2.0, 2.1, 2.2], [1.0, 1.1, 1.0]).low is None


def test_a_run_beside_itself_has_one_as_its_whole_interval():
    times = np.linspace(0.3, 2.0, len(EVEN))
    assert speed_ratio(EVEN, times, times) == Estimate(1.0, 1.0, 1.0, len(EVEN))


def test_a_clock_that_runs_slower_by_one_factor_is_as_sure_as_can_be():
    times = np.linspace(0.3, 2.0, len(EVEN))
    found = speed_ratio(EVEN, times, times * 1.08)
    assert (found.low, found.value, found.high) == pytest.approx((1 / 1.08,) * 3)


def test_repeats_of_the_same_prompts_do_not_narrow_the_interval_of_a_ratio():
    drawn = np.random.default_rng(0)
    before, after = np.exp(drawn.normal(size=(2, 12)))
    once, thrice = (speed_ratio(np.tile(np.arange(12), k), np.tile(before, k), np.tile(after, k)) for k in (1, 3))
    assert (once.low, once.high) == pytest.approx((thrice.low, thrice.high))


# rates


def test_a_change_of_rates_is_that_of_the_sums():
    # 6/10 before, 9/12 after: not the mean of the prompts' own changes
    found = rate_change([0, 1], ([1, 5], [5, 5]), ([4, 5], [4, 8]))
    assert found == Estimate(pytest.approx(0.15), None, None, 2)


def test_rates_that_are_equal_everywhere_have_no_width():
    drafted, accepted = np.arange(10, 20), np.arange(5, 15)
    assert rate_change(range(10), (accepted, drafted), (accepted, drafted)) == Estimate(0.0, 0.0, 0.0, 10)


def test_a_rate_over_nothing_is_none():
    assert rate_change([0, 1], ([0, 0], [0, 0]), ([1, 1], [2, 2])) is None


def test_a_rate_that_one_prompt_decides_has_no_interval():
    wholes = np.zeros(9)
    wholes[3] = 7
    assert rate_change(range(9), (wholes, wholes), (wholes / 2, wholes)) == Estimate(-0.5, None, None, 9)


def rates(drawn, num_sets, n):
    """Drafts before and after of prompts whose lengths differ tenfold, the longer ones with the higher acceptance."""
    lengths = np.exp(0.6 * drawn.normal(size=(num_sets, n)))
    first = np.clip(0.7 + 0.12 * drawn.normal(size=lengths.shape) + 0.08 * np.log(lengths), 0.02, 0.98)
    second = np.clip(first - 0.03 + 0.05 * drawn.normal(size=lengths.shape), 0.02, 0.98)
    wholes = [np.ceil(40 * lengths), np.ceil(40 * lengths * np.exp(0.15 * drawn.normal(size=lengths.shape)))]
    return [
        (drawn.binomial(whole.astype(int), rate), whole) for whole, rate in zip(wholes, (first, second), strict=True)
    ]


def covers_rates(num_sets, n):
    (parts, wholes), (parts_after, wholes_after) = rates(np.random.default_rng(0), 1, 1_000_000)
    truth = parts_after.sum() / wholes_after.sum() - parts.sum() / wholes.sum()
    before, after = rates(np.random.default_rng(n), num_sets, n)
    sets = zip(*before, *after, strict=True)
    return covers([rate_change(range(n), one[:2], one[2:]) for one in sets], truth)


def test_the_interval_of_a_change_of_rates_covers_what_it_says():
    assert 0.93 <= covers_rates(1000, 24) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("n", [8, 12, 48, 100, 200])
def test_the_interval_of_a_change_of_rates_covers_what_it_says_at_every_size(n):
    assert 0.93 <= covers_rates(4000, n) <= 0.97


# scores


def test_right_and_wrong_are_held_against_each_other_by_mcnemars_exact_test():
    before, after = np.array([1] * 10 + [0] * 10), np.array([1] * 4 + [0] * 6 + [1] + [0] * 9)
    found = score_change(range(20), before, after)
    assert (found.test, found.num_gained, found.num_lost) == ("McNemar's exact test", 1, 6)
    assert found.p_value == pytest.approx(2 * (1 + 7) / 2**7)  # binomial, by hand
    assert (found.before, found.after) == (0.5, 0.25)


def test_repeats_of_one_prompt_are_one_observation_of_mcnemars_test():
    found = score_change(np.repeat(range(5), 10), np.zeros(50), np.ones(50))
    assert (found.num_gained, found.num_prompts, found.p_value) == (5, 5, pytest.approx(2 / 2**5))


def test_equal_scores_need_no_test():
    assert score_change(range(4), [0.25, 0.5, 0.5, 1.0], [0.25, 0.5, 0.5, 1.0]).test == "equal"
    assert score_change([0, 1], [0, 1], [0, 1]).p_value == 1.0


@pytest.mark.parametrize(
    ("n", "test"),
    [(4, "no interval"), (20, "paired t, skewness-corrected"), (BOOTSTRAPPED[0], "paired bootstrap (BCa)")],
)
def test_other_scores_have_the_interval_of_their_mean_difference(n, test):
    before = np.random.default_rng(n).uniform(size=n)
    found = score_change(range(n), before, np.clip(before - 0.1, 0, None))
    assert found.test == test
    assert (found.low is None) == (test == "no interval")
    if found.low is not None:
        assert found.low <= found.after - found.before <= found.high


@pytest.mark.slow
@pytest.mark.parametrize("n", [BOOTSTRAPPED[0], 400])
def test_the_bootstrap_of_scores_covers_what_it_says(n):
    drawn = np.random.default_rng(n)
    sets = np.round(drawn.beta(2, 5, size=(1000, n)) - drawn.beta(2, 4, size=(1000, n)), 2)  # as ROUGE, with ties
    ends = [bootstrap_interval(differences) for differences in sets]
    truth = 2 / 7 - 2 / 6
    assert 0.93 <= np.mean([low <= truth <= high for low, high in ends]) <= 0.97


@pytest.mark.slow
def test_a_bca_bootstrap_of_few_prompts_would_not_cover_what_it_says():
    """Why intervals are not BCa (docs/adr/0005): should this ever fail, they can be."""
    for n in (8, 24):
        sets = np.random.default_rng(n).standard_t(3, size=(1000, n))
        found = scipy_stats.bootstrap((sets,), np.mean, axis=-1, n_resamples=999, batch=20, rng=1, method="BCa")
        low, high = found.confidence_interval
        assert np.mean((low <= 0) & (high >= 0)) < 0.91
        low, high = mean_intervals(sets)
        assert 0.93 <= np.mean((low <= 0) & (high >= 0)) <= 0.97


# the choice of the faster vanilla


def noise(drawn, shape, size):
    return {
        "normal": lambda: drawn.normal(size=size),
        "heavy tails": lambda: drawn.standard_t(3, size=size),
        "heavy tails with ties": lambda: np.round(drawn.standard_t(3, size=size), 1),
        "skewed": lambda: drawn.exponential(size=size) - 1,
    }[shape]()


def chosen_over(shape, n, gap, num_sets, seed=0):
    """Estimates over the vanilla that is chosen as a run does, and the true speedup over the truly faster one.

    One vanilla is slower by `gap` standard errors; at 0 the two are equal, where a choice does most.
    """
    drawn = np.random.default_rng([seed, n, gap])
    prompts = np.arange(n)
    estimates = []
    for _ in range(num_sets):
        logs = 0.2 * noise(drawn, shape, (3, n))
        times = {"wide": np.exp(logs[0]), "narrow": np.exp(logs[1] + gap * 0.2 / np.sqrt(n))}
        base = times[fastest(mean_log_s, times, prompts, times)]
        estimates.append(geomean_speedup(prompts, base, np.exp(logs[2] - 0.5)))
    return estimates, float(np.exp(0.5))


def check_choice(shape, n, gap, num_sets):
    """The interval covers, and where it misses it is the speedup that is told too small: 2.5 % at most the other way."""
    estimates, truth = chosen_over(shape, n, gap, num_sets)
    assert 0.93 <= covers(estimates, truth) <= 0.98
    told_too_large = np.mean([one.low > truth for one in estimates])
    assert told_too_large <= 0.025 + 3 * np.sqrt(0.025 * 0.975 / num_sets)
    assert np.mean([np.log(one.value) for one in estimates]) <= np.log(truth) + 0.01


def test_the_choice_of_the_faster_vanilla_makes_no_speedup_look_larger():
    check_choice("heavy tails with ties", 24, 0, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("n", [8, 24, 100])
@pytest.mark.parametrize("gap", [0, 1, 3])
@pytest.mark.parametrize("shape", ["normal", "heavy tails", "heavy tails with ties", "skewed"])
def test_the_choice_of_the_faster_vanilla_leaves_the_coverage_where_it_is(shape, gap, n):
    check_choice(shape, n, gap, 4000)


# variation


def test_variation_between_groups_is_found_beside_that_within_them():
    drawn = np.random.default_rng(1)
    of_group = 0.05 * drawn.normal(size=40)
    values = np.exp(np.repeat(of_group, 50) + 0.02 * drawn.normal(size=2000))
    found = variation(np.repeat(np.arange(40), 50), values)
    assert (found.num_groups, found.within) == (40, pytest.approx(0.02, rel=0.05))
    assert found.between == pytest.approx(of_group.std(ddof=1), rel=0.02)
    assert found.p_value < 1e-6


def test_groups_that_do_not_differ_have_no_variation_between_them_most_of_the_time():
    drawn = np.random.default_rng(2)
    p_values = [variation(np.arange(60) % 3, np.exp(drawn.normal(size=60))).p_value for _ in range(300)]
    assert 0.02 <= np.mean([p < 0.05 for p in p_values]) <= 0.08


def test_one_group_and_one_value_of_each_have_no_variation():
    assert variation(["w0", "w0"], [1.0, 2.0]) is None
    assert variation(["w0", "w1"], [1.0, 2.0]) is None
    assert variation([], []) is None


def test_what_prompts_differ_in_is_no_variation_between_the_repeats_of_all_of_them():
    drawn, prompts, repeats = np.random.default_rng(3), np.tile(np.arange(30), 3), np.repeat(np.arange(3), 30)
    p_values = []
    for _ in range(300):
        logs = np.tile(drawn.normal(size=30), 3) + 0.01 * drawn.normal(size=90)
        p_values.append(variation(repeats, np.exp(logs), prompts).p_value)
    assert 0.02 <= np.mean([p < 0.05 for p in p_values]) <= 0.08
    found = variation(repeats, np.exp(np.tile(drawn.normal(size=30), 3) + 0.1 * repeats), prompts)
    assert (found.between, found.within) == (pytest.approx(0.1), pytest.approx(0.0, abs=1e-9))


def test_a_hundred_thousand_rows_are_no_quadratic_work():
    """What compares every pair of 33,334 prompts would not come to an end here."""
    drawn, prompts = np.random.default_rng(0), np.repeat(np.arange(33_334), 3)[:100_000]
    before, after = np.exp(drawn.normal(size=(2, 100_000)))
    assert speed_ratio(prompts, before, after).num_prompts == 33_334
    assert rate_change(prompts, (before, before + 1), (after, after + 1)).num_prompts == 33_334
    assert score_change(prompts, before, after).test == "paired t, skewness-corrected"
    assert variation(prompts % 8, before).num_groups == 8
