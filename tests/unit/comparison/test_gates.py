"""Limits are held against intervals: what may be chance fails nothing, and what cannot be known is said."""

import pytest

from adadecode.comparison.changes import Change, Rate
from adadecode.comparison.gates import Limits, judged
from adadecode.report.stats import Estimate

NOTHING = Rate(None, None, None)


def change(low, value, high, *, method="adadecode", drop=None):
    speed = Estimate(value, low, high, 20)
    rate = NOTHING if drop is None else Rate(0.7, 0.7 + drop[1], Estimate(drop[1], drop[0], drop[2], 20))
    return Change("demo", method, 20, speed, None if method == "vanilla" else speed, rate, NOTHING, {})


@pytest.mark.parametrize(
    ("interval", "failed"),
    [((0.90, 0.92, 0.94), True), ((0.90, 0.92, 0.96), False), ((0.97, 1.0, 1.02), False), ((1.1, 1.2, 1.3), False)],
)
def test_a_method_is_slower_when_its_whole_interval_says_so(interval, failed):
    assert bool(judged([change(*interval)], Limits(slower=0.05)).failed) is failed
    assert bool(judged([change(*interval)], Limits(slower=0.05, over_vanilla=True)).failed) is failed


@pytest.mark.parametrize(
    ("drop", "failed"),
    [((-0.05, -0.04, -0.03), True), ((-0.05, -0.03, -0.01), False), ((0.0, 0.0, 0.0), False)],
)
def test_acceptance_drops_when_its_whole_interval_says_so(drop, failed):
    assert bool(judged([change(1, 1, 1, drop=drop)], Limits(drops=0.02)).failed) is failed


def test_without_an_interval_nothing_fails_and_a_line_says_so():
    found = judged([change(None, 0.5, None)], Limits(slower=0.05))
    assert found.failed == []
    assert found.unproved == ["adadecode on demo: its speed by A's cannot be judged, as it has no interval"]


def test_a_slower_vanilla_is_told_beside_what_fails_with_it():
    found = [change(0.5, 0.6, 0.7, method=method) for method in ("vanilla", "adadecode")]
    assert len(judged(found, Limits(slower=0.05)).failed) == 2
    assert [hint.split(":")[0] for hint in judged(found, Limits(slower=0.05)).hints] == [
        "vanilla on demo is slower itself, as a busy machine is"
    ]
    assert judged(found[1:], Limits(slower=0.05)).hints == []
    assert judged(found, Limits(slower=0.05, over_vanilla=True)).hints == []
    assert judged(found, Limits(slower=0.35)).hints == []


def test_what_one_run_alone_has_cannot_be_judged_and_is_told_where_there_are_limits():
    assert judged([], Limits(drops=0.02), ["ngram on demo: only A has it"]).unproved == [
        "ngram on demo: only A has it, and cannot be judged"
    ]
    assert judged([], Limits(), ["ngram on demo: only A has it"]).unproved == []


def test_without_limits_nothing_is_judged_and_vanilla_is_never_judged_beside_itself():
    found = [change(0.1, 0.2, 0.3), change(0.1, 0.2, 0.3, method="vanilla")]
    assert (judged(found, Limits()).failed, judged(found, Limits()).unproved) == ([], [])
    lines = judged(found, Limits(slower=0.0, over_vanilla=True)).failed
    assert [line.split(" on ")[0] for line in lines] == ["adadecode"]
