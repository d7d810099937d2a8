from dataclasses import replace

import numpy as np
import pytest

from adadecode.engine.policy import Policy
from adadecode.tuning.costs import Calls, Costs
from adadecode.tuning.policy_file import policy_settings
from adadecode.tuning.replay import Candidate
from adadecode.tuning.search import Search, Simulator, pays, start_candidates
from adadecode.tuning.trace import Floors
from tests.unit.tuning.conftest import EXITS


def flat_costs(width: int = 8, *, test_s: float = 0.1) -> Costs:
    """A layer costs one second whatever the rows, a verification one; tests what is said."""
    seconds = np.zeros(4 * width + 4)
    seconds[:width] = 1.0
    seconds[width : 2 * width] = test_s
    seconds[2 * width : 3 * width] = 1.0
    return Costs(seconds, 1.0, 0.0, 0.0, 0.0, 0.0)


def test_vanilla_gains_nothing_and_a_good_policy_something(traced):
    simulator = Simulator(traced.traces, traced.space, traced.facts)
    gains = simulator.gains(Candidate(Policy(EXITS, (0.3, 0.3, 0.3), 3)), flat_costs())
    assert len(gains) == len([t for t in traced.traces if len(t.output_ids) > 1])
    assert not simulator.gains(Candidate(Policy()), flat_costs()).any()
    assert gains.mean() != 0


def test_no_policy_beats_the_oracle_where_rows_and_tests_are_free(traced):
    simulator = Simulator(traced.traces, traced.space, traced.facts)
    costs = flat_costs(test_s=0.0)
    limit = simulator.oracle_gains(costs, ngrams=False).mean()
    for gamma in (0.1, 0.3, 0.6, 0.9):
        for exits in ((1,), (2,), EXITS):
            policy = Policy(exits, (gamma,) * len(exits), 3, stop="chain")
            assert simulator.gains(Candidate(policy), costs).mean() <= limit + 1e-12
    assert limit > 0


def test_a_search_finds_at_least_the_best_of_its_starts_and_prefers_free_exits(eager):
    simulator = Simulator(eager.traces, eager.space, eager.facts)
    prompts = np.arange(len(simulator.traces))
    starts = start_candidates(eager.space, Policy(EXITS, (0.75,) * 3, 3))
    for test_s in (0.0, 50.0):
        costs = flat_costs(test_s=test_s)

        def gains(candidate, costs=costs):
            return simulator.gains(candidate, costs)

        best = Search(gains, starts, eager.space, has_gates=True).best(prompts)
        assert eager.space.covers(best.policy)
        assert gains(best).mean() >= max(gains(start).mean() for start in starts)
    # where a test costs fifty seconds, the fewest tests win
    tests = [
        simulator.calls(c)[:, 8:16].sum()
        for c in (best, Candidate(Policy(EXITS, (0.3, 0.3, 0.3), eager.space.max_drafts)))
    ]
    assert tests[0] < tests[1]


def test_what_is_cross_validated_is_judged_on_prompts_it_was_not_found_on(eager):
    """Gains that reward fitting: a candidate looks good on the prompts its gamma names, and bad on others."""
    gammas = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)

    def gains(candidate: Candidate) -> np.ndarray:
        found = np.full(len(gammas), -1.0)
        if candidate.policy.gammas[0] in gammas:
            found[gammas.index(candidate.policy.gammas[0])] = 100.0
        return found

    starts = [Candidate(Policy((1,), (gamma,), 3)) for gamma in gammas]
    prompts = np.arange(len(gammas))
    search = Search(gains, starts, eager.space, has_gates=False)
    assert gains(search.best(prompts)).mean() > 0
    validated = search.cross_validated(len(gammas), 4, seed=0)
    assert (validated == -1.0).all()


def test_a_change_that_is_within_its_own_noise_does_not_pay():
    assert not pays(np.array([1.0, -1.0, 1.0, -0.9]))
    assert not pays(np.zeros(5))
    assert not pays(np.array([-0.1, -0.2]))
    assert pays(np.array([0.1, 0.1, 0.09]))


def test_starts_lie_in_the_space(eager):
    for candidate in start_candidates(eager.space, Policy(EXITS, (0.75,) * 3, 3)):
        assert eager.space.covers(candidate.policy)


def test_a_search_may_leave_all_exits_out_where_n_grams_draft(eager):
    simulator = Simulator(eager.traces, eager.space, eager.facts)
    prompts = np.arange(len(simulator.traces))
    costs = flat_costs(test_s=1e6)

    def gains(candidate):
        return simulator.gains(candidate, costs)

    best = Search(gains, start_candidates(eager.space, None), eager.space, has_gates=False).best(prompts)
    assert (best.policy.exits, best.policy.ngram is None) == ((), False)
    assert policy_settings(best, "shortlist") == {
        "exits": [],
        "stop": "chain",
        "max_drafts": best.policy.max_drafts,
        "head": "shortlist",
        "gate": 0.0,
        "ngram": best.policy.ngram,
    }


def test_calls_are_replayed_once(eager, monkeypatch):
    simulator = Simulator(eager.traces, eager.space, eager.facts)
    candidate = Candidate(Policy((2,), (0.5,), 2))
    first = simulator.calls(candidate)
    monkeypatch.setattr("adadecode.tuning.search.replay", None)
    assert simulator.calls(candidate) is first
    assert first.shape == (len(simulator.traces), len(Calls(8).vector()))
    with pytest.raises(TypeError):
        simulator.calls(Candidate(Policy((1,), (0.5,), 2)))


def test_the_other_rule_is_tried_with_lower_gammas_and_found_where_it_is_better(eager):
    """Gains that want a chain above 0.42, which no step of one setting alone leads to."""

    def gains(candidate: Candidate) -> np.ndarray:
        policy = candidate.policy
        best = policy.stop == "chain" and all(abs(gamma - 0.42) < 0.01 for gamma in policy.gammas)
        return np.array([1.0, 1.0]) * (2.0 if best else policy.stop == "token")

    search = Search(gains, [Candidate(Policy((1,), (0.6,), 3))], eager.space, has_gates=False)
    assert search.best(np.arange(2)).policy == Policy((1,), (0.42,), 3, stop="chain")


def test_gammas_are_never_searched_below_the_floors_of_the_trace(eager):
    space = replace(eager.space, floors=Floors((0.35, 0.5, 0.6), 0.45))
    tried = set[Candidate]()

    def gains(candidate: Candidate) -> np.ndarray:
        tried.add(candidate)
        return np.array([-np.mean(list(candidate.policy.draft_gammas.values()))] * 2)  # the lower, the better

    Search(gains, start_candidates(space, None), space, has_gates=False).best(np.arange(2))
    assert all(space.covers(candidate.policy) for candidate in tried)
    lowest = {e: min(c.policy.draft_gammas.get(e, 1.0) for c in tried) for e in (0, *EXITS)}
    assert lowest == {0: 0.5, 1: 0.35, 2: 0.5, 3: 0.6}
