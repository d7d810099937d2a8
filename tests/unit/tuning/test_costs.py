import numpy as np
import pytest

from adadecode.tuning.call_costs import CallCosts
from adadecode.tuning.costs import Calls, MeasuredGeneration, break_even, fit_costs
from adadecode.tuning.measure import LEAST_FLOOR, LEAST_NGRAM_FLOOR, measure_costs, measure_floors

WIDTH = 8


def random_calls(rng: np.random.Generator) -> np.ndarray:
    calls = Calls(WIDTH)
    calls.layers[1:4], calls.tests[1:3], calls.verifies[1:4] = rng.integers(1, 99, 3), rng.integers(1, 9, 2), [3, 2, 1]
    calls.num_gates, calls.num_segments, calls.num_rounds, calls.num_ngram_tokens = rng.integers(0, 20, 4)
    return calls.vector()


def test_costs_that_are_a_sum_of_parts_are_found_again():
    rng = np.random.default_rng(0)
    isolated = rng.uniform(1e-5, 1e-3, 3 * WIDTH + 4)
    isolated[-3:] = 0.0
    true = 1.3 * isolated
    true[-3:] = 4e-5, 2e-4, 3e-5
    measured = [MeasuredGeneration(calls, float(calls @ true)) for calls in (random_calls(rng) for _ in range(20))]
    costs = fit_costs(isolated, measured)
    np.testing.assert_allclose(costs.seconds, true, rtol=1e-6)
    assert costs.error < 1e-9
    assert (costs.scale, costs.per_segment_s) == pytest.approx((1.3, 4e-5))
    assert (costs.per_round_s, costs.per_ngram_token_s) == pytest.approx((2e-4, 3e-5))


def test_a_vector_of_calls_names_each_count_once():
    calls = Calls(2)
    calls.layers[1:], calls.tests[1:], calls.verifies[1:] = [1, 2], [3, 4], [5, 6]
    calls.num_gates, calls.num_segments, calls.num_rounds, calls.num_ngram_tokens = 7, 8, 9, 10
    assert calls.vector().tolist() == list(range(1, 11))


def test_every_call_of_the_space_has_a_cost(traced):
    calls = CallCosts(traced.model, traced.heads, traced.space, [5, 6, 7], 64)
    calls.measure(0.01)
    layers, tests, verifies, rest = np.split(calls.seconds(), [WIDTH, 2 * WIDTH, 3 * WIDTH])
    for by_rows in (layers, tests, verifies):
        assert (by_rows[:4] > 0).all()
        assert not by_rows[4:].any()
    assert rest[0] > 0


def test_a_draft_pays_from_where_its_layers_its_test_and_a_row_more_are_worth_a_token():
    calls = Calls(WIDTH)
    calls.layers[1:4], calls.tests[1], calls.verifies[1:4] = [10, 12, 13], 4, [20, 21, 23]
    seconds, num_layers = calls.vector(), 8
    vanilla_s = 8 * 10 + 20
    assert break_even(seconds, num_layers, 0, 2) == pytest.approx((8 * 1 + 1) / vanilla_s), (
        "the cheapest row is the third"
    )
    assert break_even(seconds, num_layers, 3, 2) == pytest.approx((3 * 10 + 4 + 5 * 1 + 1) / vanilla_s)
    assert break_even(seconds, num_layers, 3, 1) == pytest.approx((3 * 10 + 4 + 5 * 2 + 1) / vanilla_s)


def test_floors_rise_with_the_depth_of_the_exit_and_none_is_below_the_least(eager, monkeypatch):
    monkeypatch.setattr("adadecode.tuning.measure.FLOORS_BUDGET_S", 0.1)
    floors = measure_floors(eager.model, eager.heads, eager.space, [5, 6, 7])
    assert list(floors.exits) == sorted(floors.exits)
    assert floors.exits[0] >= LEAST_FLOOR
    assert floors.ngram >= LEAST_NGRAM_FLOOR


def test_costs_are_measured_on_real_generations(eager, monkeypatch):
    monkeypatch.setattr("adadecode.tuning.measure.CALLS_BUDGET_S", 0.1)
    monkeypatch.setattr("adadecode.tuning.measure.COST_CANDIDATES", 4)
    costs = measure_costs(eager.model, {"tiny": eager.heads}, eager.traces[:3], eager.space, 0)
    assert costs.scale > 0
    assert np.isfinite(costs.error)
    assert (costs.seconds >= 0).all()
