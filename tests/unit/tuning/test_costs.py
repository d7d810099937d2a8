import numpy as np
import pytest

from adadecode.tuning.call_costs import CallCosts
from adadecode.tuning.costs import Calls, MeasuredPair, break_even, fit_costs
from adadecode.tuning.measure import LEAST_FLOOR, LEAST_NGRAM_FLOOR, CostStudy, measure_floors

WIDTH = 8


def random_calls(rng: np.random.Generator) -> np.ndarray:
    calls = Calls(WIDTH)
    for num_layers, rows, first_column in rng.integers(1, [99, 4, 400], (3, 3)):
        calls.run_layers(num_layers, rows, first_column)
    calls.tests[1:3], calls.verifies[1:4] = rng.integers(1, 9, 2), [3, 2, 1]
    calls.num_gates, calls.num_segments, calls.num_rounds, calls.num_ngram_tokens = rng.integers(0, 20, 4)
    return calls.vector()


def true_costs(rng: np.random.Generator, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """What calls take in isolation, and what they take in rounds."""
    isolated = rng.uniform(1e-5, 1e-3, 4 * WIDTH + 4)
    isolated[-3:] = 0.0
    true = scale * isolated
    true[-3:] = 4e-5, 2e-4, 3e-5
    return isolated, true


def pairs(rng: np.random.Generator, true: np.ndarray, count: int) -> list[MeasuredPair]:
    """Pairs that took what calls truly take, each while the machine had a speed of its own."""
    found = []
    for slower in rng.uniform(0.97, 1.03, count):
        calls, vanilla = random_calls(rng), random_calls(rng)
        found.append(MeasuredPair(calls, float(calls @ true) * slower, vanilla, float(vanilla @ true) * slower))
    return found


def test_costs_that_are_a_sum_of_parts_are_found_again():
    rng = np.random.default_rng(0)
    isolated, true = true_costs(rng, scale=1.0)
    exact = [pair._replace(decode_s=float(pair.calls @ true)) for pair in pairs(rng, true, 60)]
    exact = [pair._replace(vanilla_s=float(pair.vanilla_calls @ true)) for pair in exact]
    costs = fit_costs(isolated, exact)
    np.testing.assert_allclose(costs.seconds, true, rtol=1e-6)
    assert costs.error < 1e-9
    assert (costs.scale, costs.per_segment_s) == pytest.approx((1.0, 4e-5))
    assert (costs.per_round_s, costs.per_ngram_token_s) == pytest.approx((2e-4, 3e-5))


def test_a_machine_that_is_slower_for_a_while_changes_no_speedup():
    rng = np.random.default_rng(1)
    isolated, true = true_costs(rng, scale=1.0)
    costs = fit_costs(isolated, pairs(rng, true, 200))
    unseen = pairs(rng, true, 50)
    found = [costs.decode_s(one.vanilla_calls) / costs.decode_s(one.calls) for one in unseen]
    np.testing.assert_allclose(found, [one.vanilla_s / one.decode_s for one in unseen], rtol=0.02)


def test_a_machine_that_stood_still_for_a_few_generations_changes_no_cost():
    rng = np.random.default_rng(3)
    isolated, true = true_costs(rng, scale=1.0)
    measured = pairs(rng, true, 100)
    measured[:5] = [pair._replace(decode_s=pair.decode_s * 20) for pair in measured[:5]]
    measured[5:10] = [pair._replace(vanilla_s=pair.vanilla_s * 20) for pair in measured[5:10]]
    unseen = pairs(rng, true, 50)
    costs = fit_costs(isolated, measured)
    found = [costs.decode_s(one.vanilla_calls) / costs.decode_s(one.calls) for one in unseen]
    np.testing.assert_allclose(found, [one.vanilla_s / one.decode_s for one in unseen], rtol=0.03)
    assert costs.error < 0.03


def test_calls_that_take_longer_in_rounds_have_a_scale():
    rng = np.random.default_rng(2)
    isolated, true = true_costs(rng, scale=1.3)
    costs = fit_costs(isolated, pairs(rng, true, 200))
    assert costs.scale == pytest.approx(1.3, rel=0.05)


def test_a_vector_of_calls_names_each_count_once():
    calls = Calls(2)
    calls.layers[1:], calls.tests[1:], calls.verifies[1:], calls.columns[1:] = [1, 2], [3, 4], [5, 6], [7, 8]
    calls.num_gates, calls.num_segments, calls.num_rounds, calls.num_ngram_tokens = 9, 10, 11, 12
    assert calls.vector().tolist() == list(range(1, 13))


def test_layers_are_counted_by_their_rows_and_by_the_column_they_begin_at():
    calls = Calls(WIDTH)
    calls.run_layers(3, 2, 100)
    calls.run_layers(4, 2, 10)
    assert (calls.layers[2], calls.columns[2]) == (7, 340)


def test_every_call_of_the_space_has_a_cost(traced):
    calls = CallCosts(traced.model, traced.heads, traced.space, [[5, 6, 7]])
    calls.measure(0.01)
    layers, tests, verifies, columns, rest = np.split(calls.seconds(), [WIDTH, 2 * WIDTH, 3 * WIDTH, 4 * WIDTH])
    for by_rows in (layers, tests, verifies):
        assert (by_rows[:4] > 0).all()
        assert not by_rows[4:].any()
    assert (columns >= 0).all()
    assert rest[0] > 0


def test_a_draft_pays_from_where_its_layers_its_test_and_a_row_more_are_worth_a_token():
    calls = Calls(WIDTH)
    calls.layers[1:4], calls.tests[1], calls.verifies[1:4] = [10, 12, 13], 4, [20, 21, 23]
    seconds, num_layers = calls.vector(), 8
    vanilla_s = 8 * 10 + 20
    assert break_even(seconds, num_layers, 0, 2, 0) == pytest.approx((8 * 1 + 1) / vanilla_s), (
        "the cheapest row is the third"
    )
    assert break_even(seconds, num_layers, 3, 2, 0) == pytest.approx((3 * 10 + 4 + 5 * 1 + 1) / vanilla_s)
    assert break_even(seconds, num_layers, 3, 1, 0) == pytest.approx((3 * 10 + 4 + 5 * 2 + 1) / vanilla_s)
    by_column = calls.vector()
    by_column[3 * WIDTH : 3 * WIDTH + 3] = [0.1, 0.12, 0.13]
    of_text = 8 * (10 + 50 * 0.1) + 20
    assert break_even(by_column, num_layers, 0, 1, 50) == pytest.approx((8 * (2 + 50 * 0.02) + 1) / of_text)


def test_floors_rise_with_the_depth_of_the_exit_and_none_is_below_the_least(eager, monkeypatch):
    monkeypatch.setattr("adadecode.tuning.measure.FLOORS_BUDGET_S", 0.1)
    floors = measure_floors(eager.model, eager.heads, eager.space, [5, 6, 7])
    assert list(floors.exits) == sorted(floors.exits)
    assert floors.exits[0] >= LEAST_FLOOR
    assert floors.ngram >= LEAST_NGRAM_FLOOR


def test_costs_are_measured_on_real_generations(eager, monkeypatch):
    monkeypatch.setattr("adadecode.tuning.measure.CALLS_BUDGET_S", 0.1)
    monkeypatch.setattr("adadecode.tuning.measure.COST_CANDIDATES", 4)
    study = CostStudy(eager.model, {"tiny": eager.heads}, eager.traces[:3], eager.space, 0)
    study.measure_random()
    costs = study.costs()
    assert costs.scale > 0
    assert np.isfinite(costs.error)
    assert (costs.seconds >= 0).all()
