"""Places that load a model and die at work, and errors that one actor raises: no good item pays for them."""

import math
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adadecode.errors import KernelsError, RunFolderError, UsageError
from ray_jobs.events import (
    Assign,
    Cancel,
    Died,
    Fail,
    Finished,
    GiveUp,
    Item,
    Loaded,
    Start,
    Started,
    Stop,
    StopRequested,
    Tick,
    Wanted,
)
from ray_jobs.limits import Limits
from ray_jobs.scheduler import Scheduler
from ray_jobs.state import Phase
from tests.simulated_cluster import UNLOADABLE, Cluster, samples, shards

LIMITS = Limits(backoff_s=10, start_s=60, grace_s=20)
STALE, FULL = (
    RunFolderError("'x' cannot be written (Stale file handle)"),
    RunFolderError("No space left on device: ..."),
)
NO_COMPILER = KernelsError("--kernels native: no compiler")


def placed(num_items: int, places: str, limits: Limits = LIMITS, **options) -> Scheduler:
    """A scheduler whose actors have loaded at time 0, each at the place of its letter."""
    scheduler = Scheduler(
        [Item(f"i{idx}", {f"i{idx}.{sample}": 1.0 for sample in range(2)}, 2) for idx in range(num_items)],
        limits,
        samples,
        **options,
    )
    scheduler.handle(Wanted(len(places)), 0)
    for idx, place in enumerate(places):
        scheduler.handle(Started(f"worker-{idx}", place), 0)
    for idx in range(len(places)):
        scheduler.handle(Loaded(f"worker-{idx}"), 0)
    return scheduler


def comes(scheduler: Scheduler, actor: str, place: str, now: float) -> list:
    """What follows when a replacement has loaded at `place`."""
    scheduler.handle(Started(actor, place), now)
    return scheduler.handle(Loaded(actor), now)


def held(scheduler: Scheduler) -> dict[str, list[str]]:
    return {name: [item.name for item in actor.items] for name, actor in scheduler.actors.items()}


def of_type(actions: list, kind: type) -> list:
    return [action for action in actions if isinstance(action, kind)]


# Places.


def test_an_item_that_ended_an_actor_waits_for_another_place_and_the_bad_one_gets_others():
    scheduler = placed(9, "ab")
    scheduler.handle(Died("worker-0", "gone"), 1)
    assert comes(scheduler, "worker-2", "a", 20)[:1] == [Assign("worker-2", Item("i1", {"i1.0": 1.0, "i1.1": 1.0}, 2))]
    assert scheduler.pending[0].name == "i0"
    scheduler.handle(Finished("worker-1", "i2"), 21)
    scheduler.handle(Finished("worker-1", "i3"), 22)
    assert held(scheduler)["worker-1"] == ["i0"]


def test_a_place_at_which_actors_die_rests_longer_each_time_until_something_is_finished_there():
    scheduler = placed(50, "ab")
    idle_until = []
    name, now = "worker-0", 0.0
    for turn in range(4):
        scheduler.handle(Died(name, "gone"), now)
        name = f"worker-{2 + turn}"
        comes(scheduler, name, "a", now + 1)
        died_at = now
        while not held(scheduler)[name]:
            now += 1
            scheduler.handle(Tick(), now)
        idle_until.append(now - died_at)
    assert idle_until == [10, 20, 40, 80]
    scheduler.handle(Finished(name, held(scheduler)[name][0]), now)
    scheduler.handle(Died(name, "gone"), now)
    comes(scheduler, "worker-6", "a", now + 1)
    assert held(scheduler)["worker-6"] == []
    scheduler.handle(Tick(), now + 10)
    assert held(scheduler)["worker-6"] != []


def test_a_place_does_not_rest_while_no_other_did_better():
    scheduler = placed(9, "ab")
    scheduler.handle(Died("worker-0", "gone"), 1)
    scheduler.handle(Died("worker-1", "gone"), 1)
    assert of_type(comes(scheduler, "worker-2", "a", 2), Assign)


def test_deaths_count_again_where_there_is_one_place():
    scheduler = placed(1, "a")
    scheduler.handle(Died("worker-0", "gone"), 1)
    assert held(scheduler) == {"worker-1": []}
    comes(scheduler, "worker-1", "a", 2)
    scheduler.handle(Died("worker-1", "gone"), 3)
    assert [item.name for item in scheduler.pending] == ["i0.0", "i0.1"]


@pytest.mark.parametrize(("hangs", "most_s"), [(False, 1200), (True, 3600)])
def test_poison_at_the_only_place_that_is_left_costs_minutes_though_the_one_that_had_proved_good_is_gone(hangs, most_s):
    scheduler = placed(2, "ab", Limits(first_deadline_s=60))
    scheduler.handle(Finished("worker-1", "i1", 30.0), 30)
    scheduler.handle(Died("worker-1", "spot", preempted=True), 30)
    here, began, now = "worker-0", 0.0, 30.0
    given_up = []
    while not scheduler.is_over and now < 50_000:
        now, actions = now + 1, []
        if here not in scheduler.actors:  # the next that starts gets its place
            here, began = next(iter(scheduler.actors)), now
            scheduler.handle(Started(here, "a"), now)
        elif now == began + 30:
            scheduler.handle(Loaded(here), now)
        elif held(scheduler)[here] and not hangs:
            actions += scheduler.handle(Died(here, "gone"), now)
        actions += scheduler.handle(Tick(), now)
        given_up += [action.item.name for action in of_type(actions, GiveUp)]
    assert sorted(given_up) == ["i0.0", "i0.1"]
    assert now < most_s


def test_a_bad_place_is_given_no_good_sample_to_end_while_a_good_one_may_come_back():
    items = shards(40, 4, 60.0, random.Random(0))
    world = Cluster(items, 2, frozenset({0}), removals=[(500.0, 1)]).run(500 + 580)
    assert not world.given_up
    assert world.deaths[0] < 12


def test_the_deadline_of_an_item_is_doubled_a_few_times():
    scheduler = placed(1, "a", Limits(first_deadline_s=100, max_deaths=20))
    found = []
    for turn in range(6):
        found.append(scheduler.deadline_s(Item("i0", None)))
        scheduler.handle(Died(f"worker-{turn}", "gone"), turn * 5000)
        comes(scheduler, f"worker-{turn + 1}", "a", turn * 5000 + 4000)
    assert found == [100, 200, 400, 800, 800, 800]


def test_two_places_that_proved_good_are_enough_to_split_an_item():
    scheduler = placed(20, "abcd")
    for idx in range(4):
        scheduler.handle(Finished(f"worker-{idx}", f"i{2 * idx}"), 1)
    assert [names[0] for names in held(scheduler).values()] == ["i1", "i3", "i5", "i7"]
    scheduler.handle(Died("worker-0", "gone"), 2)  # of i1
    scheduler.handle(Finished("worker-1", "i3"), 3)
    scheduler.handle(Finished("worker-1", held(scheduler)["worker-1"][0]), 4)
    assert held(scheduler)["worker-1"] == ["i1"]
    scheduler.handle(Died("worker-1", "gone"), 5)
    assert [item.name for item in scheduler.pending[:2]] == ["i1.0", "i1.1"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    num_places=st.integers(2, 6),
    num_bad=st.integers(0, 5),
    num_shards=st.integers(1, 25),
    shard_s=st.sampled_from([30.0, 60.0, 300.0]),
    load_s=st.sampled_from([1.0, 30.0, 120.0]),
    poison=st.sampled_from([(), ("0.0",), ("0.1", "2.0", "2.3", "7.2")]),
    num_unloadable=st.integers(0, 5),
    outage_s=st.sampled_from([0.0, 50.0]),  # in longer ones every place may fail too often
    outage_from_s=st.floats(130, 3000),
    preemptions=st.lists(st.tuples(st.floats(0, 6000), st.integers(0, 5)), max_size=12),
    seed=st.integers(0, 1000),
)
def test_no_good_sample_is_given_up_while_a_good_place_exists(
    num_places,
    num_bad,
    num_shards,
    shard_s,
    load_s,
    poison,
    num_unloadable,
    outage_s,
    outage_from_s,
    preemptions,
    seed,
):
    not_good = random.Random(seed).sample(range(num_places), min(num_bad + num_unloadable, num_places - 1))
    bad, unloadable = frozenset(not_good[:num_bad]), frozenset(not_good[num_bad:])
    items = shards(num_shards, 4, shard_s, random.Random(seed), poison)
    here = {name for item in items for name, seconds in item.work.items() if seconds is None}
    outage = (outage_from_s, outage_from_s + outage_s)
    world = Cluster(
        items, num_places, bad, 0, load_s, seed, unloadable=unloadable, outage_s=outage, preemptions=preemptions
    ).run()
    assert world.failure is None
    assert world.is_over
    assert set(world.given_up) == here, "poison, all of it and nothing else"
    done = [*world.accepted.elements(), *world.given_up.elements()]
    pieces = [name for item in items for name in (item.work if item.name in done else ()) or ()]
    assert sorted([*pieces, *(name for name in done if "." in name)]) == sorted(
        name for item in items for name in item.work
    ), "each once"
    most = 4 + math.log2(1 + world.now / 10)  # of a place that rests ever longer
    assert all(world.deaths[place] <= most + 4 * len(here) + num_shards * (len(here) > 0) for place in bad), (
        world.deaths
    )
    good_deaths = sum(world.deaths[place] for place in set(range(num_places)) - bad)
    assert good_deaths <= (2 * num_places + 4) * len(here)


@settings(max_examples=30, deadline=None)
@given(num_places=st.integers(1, 4), num_shards=st.integers(1, 6), seed=st.integers(0, 1000))
def test_a_run_on_bad_places_alone_ends(num_places, num_shards, seed):
    items = shards(num_shards, 2, 60.0, random.Random(seed))
    world = Cluster(items, num_places, frozenset(range(num_places)), seed=seed).run(most_s=1e6)
    assert world.is_over
    assert world.given_up.total() == 2 * num_shards


@settings(max_examples=60, deadline=None)
@given(
    num_places=st.integers(1, 5),
    load_s=st.sampled_from([1.0, 30.0, 120.0]),
    outage_from_s=st.floats(130, 1000),
    preempted_s=st.lists(st.floats(0, 500), min_size=5, max_size=5),
    seed=st.integers(0, 1000),
)
def test_a_run_that_had_begun_ends_with_the_error_when_no_place_loads_any_more(
    num_places, load_s, outage_from_s, preempted_s, seed
):
    preemptions = [(outage_from_s + preempted_s[place], place) for place in range(num_places)]
    world = Cluster(
        shards(1000, 4, 60.0, random.Random(seed)),
        num_places,
        load_s=load_s,
        seed=seed,
        outage_s=(outage_from_s, math.inf),
        preemptions=preemptions,
    ).run(1e5)
    assert world.failure is not None
    assert world.failure.reason.endswith(f" workers ended while loading ({UNLOADABLE})")
    assert not world.given_up
    assert world.now - max(preemptions)[0] < 200 + 6 * (load_s + 2), "four loads in a row, and 10, 20 and 40 s between"


# Loads that raise.


def test_what_the_only_actor_raises_when_it_loads_ends_the_run_with_that():
    scheduler = Scheduler([Item("i0", None)], LIMITS)
    scheduler.handle(Wanted(1), 0)
    scheduler.handle(Started("worker-0", "a"), 1)
    assert scheduler.handle(Died("worker-0", "no compiler", error=NO_COMPILER), 2) == [
        Fail(str(NO_COMPILER), NO_COMPILER)
    ]


def test_a_load_that_raises_waits_for_the_outcome_of_those_that_load():
    scheduler = Scheduler([Item(f"i{idx}", None) for idx in range(9)], LIMITS)
    scheduler.handle(Wanted(3), 0)
    for idx in range(2):
        scheduler.handle(Started(f"worker-{idx}", str(idx)), 1)
    second = UsageError("no such folder")
    assert scheduler.handle(Died("worker-0", "no compiler", error=NO_COMPILER), 2) == []
    assert scheduler.handle(Died("worker-1", "no such folder", error=second), 3) == [], "worker-2 is about to start"
    scheduler.handle(Started("worker-2", "2"), 4)
    assert scheduler.handle(Died("worker-2", "no such folder", error=second), 5) == [
        Fail(str(NO_COMPILER), NO_COMPILER)
    ]


def test_loads_that_raise_too_often_in_a_row_end_the_run_with_the_first_error():
    scheduler = Scheduler([Item(f"i{idx}", None) for idx in range(9)], Limits(max_load_failures=3, backoff_s=1))
    scheduler.handle(Wanted(2), 0)
    failed = 0
    for now, name in ((1, "worker-0"), (10, "worker-2"), (20, "worker-3")):
        scheduler.handle(Tick(), now)
        scheduler.handle(Started(name, "a"), now)
        actions = scheduler.handle(Died(name, "no compiler", error=NO_COMPILER), now)
        failed += len(of_type(actions, Fail))
    assert failed == 1
    assert of_type(actions, Fail)[0].error is NO_COMPILER


def test_a_load_that_raises_is_that_actors_failure_once_another_has_loaded():
    scheduler = Scheduler([Item(f"i{idx}", None) for idx in range(9)], LIMITS)
    scheduler.handle(Wanted(2), 0)
    for idx in range(2):
        scheduler.handle(Started(f"worker-{idx}", str(idx)), 1)
    scheduler.handle(Died("worker-0", "no compiler", error=NO_COMPILER), 2)
    assert of_type(scheduler.handle(Loaded("worker-1"), 3), Assign)
    scheduler.handle(Tick(), 12)
    (again,) = set(scheduler.actors) - {"worker-1"}
    scheduler.handle(Started(again, "0"), 13)
    assert scheduler.handle(Died(again, "no compiler", error=NO_COMPILER), 14) == []
    assert of_type(scheduler.handle(Tick(), 24), Start), "and it is tried again, later"


def test_an_actor_that_waits_for_a_node_is_not_waited_for_when_a_load_raised():
    scheduler = Scheduler([Item("i0", None)], LIMITS)
    scheduler.handle(Wanted(2), 0)
    scheduler.handle(Started("worker-0", "a"), 1)
    scheduler.handle(Died("worker-0", "no compiler", error=NO_COMPILER), 2)
    now, name = 2.0, "worker-2"
    while now < 100:
        now += 1
        actions = scheduler.handle(Tick(), now)
        if of_type(actions, Fail):
            break
        if of_type(actions, Start):
            (name,) = (action.actor for action in of_type(actions, Start))
            scheduler.handle(Started(name, "a"), now)
            assert not of_type(scheduler.handle(Died(name, "no compiler", error=NO_COMPILER), now), Fail)
    assert now == 60, "worker-1 might have begun to load until then"


@pytest.mark.parametrize("preempted", [(), (1,), (1, 2), (2, 1), (1, 2, 1, 2)])
def test_a_place_that_never_loads_does_not_keep_a_lost_actor_from_being_replaced(preempted):
    items = shards(200, 4, 60.0, random.Random(0))
    preemptions = [(2000.0 + 500 * turn, place) for turn, place in enumerate(preempted)]
    found = Cluster(items, 3, unloadable=frozenset({0}), preemptions=preemptions).run()
    alone = Cluster(items, 2, preemptions=[(at_s, place - 1) for at_s, place in preemptions]).run()
    assert found.failure is None
    assert found.accepted.total() == 200
    assert found.now <= 1.02 * alone.now
    assert found.num_failed_loads[0] >= 7


def test_an_actor_that_dies_at_work_is_replaced_at_once_however_long_loads_elsewhere_have_failed():
    scheduler = placed(50, "ab", Limits(first_deadline_s=None))
    scheduler.handle(Wanted(3), 0)
    now = 0.0
    for idx in range(12):
        scheduler.handle(Tick(), now)
        scheduler.handle(Started(f"worker-{2 + idx}", "c"), now)
        scheduler.handle(Died(f"worker-{2 + idx}", "no compiler", error=NO_COMPILER), now)
        now += 1800
    assert not of_type(scheduler.handle(Tick(), now - 1), Start)
    actions = scheduler.handle(Died("worker-0", "spot", preempted=True), now - 1)
    assert len(of_type(actions, Start)) == 2, "its place and the one that fails are both free: one for each"


def test_what_keeps_every_other_place_from_loading_for_hours_costs_them_no_longer_than_that():
    world = Cluster(
        shards(3000, 4, 60.0, random.Random(0)),
        3,
        outage_s=(100.0, 10_000.0),
        preemptions=[(200.0, 0), (300.0, 1)],
    ).run(12_000)
    assert world.num_failed_loads.total() < 30
    assert [actor.phase for actor in world.actors.values()] == [Phase.READY] * 3
    assert all(actor.items for actor in world.actors.values()), "those that came back work"


def test_a_place_that_never_loads_is_tried_each_half_hour():
    world = Cluster(shards(2880, 4, 60.0, random.Random(0)), 3, unloadable=frozenset({1})).run()
    assert world.now > 24 * 3600
    assert 0 <= world.num_failed_loads[1] - world.now / (1800 + 32) <= 9


def test_a_place_that_loads_after_it_had_failed_to_is_used_at_once():
    scheduler = placed(50, "ab")
    scheduler.handle(Wanted(3), 0)
    for idx, now in enumerate((0, 10, 30, 70)):
        scheduler.handle(Tick(), now)
        scheduler.handle(Started(f"worker-{2 + idx}", "c"), now)
        scheduler.handle(Died(f"worker-{2 + idx}", "hub 503", error=NO_COMPILER), now)
    scheduler.handle(Died("worker-0", "spot", preempted=True), 75)
    assert of_type(comes(scheduler, "worker-6", "c", 76), Assign)


def test_a_run_ends_when_its_good_place_is_gone_and_the_other_never_loads():
    scheduler = placed(50, "ab")
    scheduler.handle(Died("worker-1", "gone"), 1)
    scheduler.handle(Died("worker-0", "spot", preempted=True), 2)
    now, name, failures = 62.0, "worker-2", []  # worker-3 waits for a node
    while not failures and now < 10_000:
        scheduler.handle(Started(name, "b"), now)
        failures += of_type(scheduler.handle(Died(name, "no compiler", error=NO_COMPILER), now), Fail)
        while not failures and name not in scheduler.actors:
            now += 1
            name = next((action.actor for action in of_type(scheduler.handle(Tick(), now), Start)), name)
    assert failures == [Fail("8 workers ended while loading (no compiler)", None)]
    assert now < 1400, "10, 20, 40 s and so on between them"


# Errors at work.


def test_an_error_of_one_actor_is_a_death_while_others_work():
    scheduler = placed(20, "abc")
    actions = scheduler.handle(Died("worker-0", "stale", error=STALE), 1)
    assert actions == [Start("worker-3")]
    assert scheduler.num_deaths("i0") == 1
    comes(scheduler, "worker-3", "a", 20)
    assert not of_type(scheduler.handle(Died("worker-3", "stale", error=STALE), 21), Fail), "b and c raised none"


def test_an_actor_that_worked_before_the_first_error_is_heard_even_at_the_same_place():
    scheduler = placed(20, "aa")
    for turn, name in enumerate(("worker-0", "worker-2", "worker-3")):
        assert not of_type(scheduler.handle(Died(name, "stale", error=STALE), 10 * turn), Fail)
        comes(scheduler, f"worker-{turn + 2}", "a", 10 * turn + 5)
    actions = scheduler.handle(Died("worker-1", "stale", error=STALE), 40)
    assert of_type(actions + scheduler.handle(Tick(), 60), Fail), "now every one has raised it"


def test_a_place_whose_actor_was_preempted_is_heard_before_an_error_is_everybodys():
    scheduler = placed(20, "ab")
    scheduler.handle(Died("worker-0", "stale", error=STALE), 1)
    scheduler.handle(Died("worker-1", "spot", preempted=True), 2)
    comes(scheduler, "worker-2", "a", 3)
    scheduler.handle(Started("worker-3", "b"), 4)
    scheduler.handle(Tick(), 12)
    assert held(scheduler)["worker-2"]
    assert not of_type(scheduler.handle(Died("worker-2", "stale", error=STALE), 13), Fail)
    assert held(scheduler).keys() > {"worker-3"}, "and one more is started"


def test_an_error_that_ends_the_run_gives_nothing_up():
    scheduler = Scheduler([Item("i0.0", None)], LIMITS, samples)
    scheduler.handle(Wanted(1), 0)
    actions = []
    for idx in range(2):
        comes(scheduler, f"worker-{idx}", "a", idx)
        actions = scheduler.handle(Died(f"worker-{idx}", "odd", error=STALE), idx)
    assert actions == [Fail(str(STALE), STALE)]


def test_an_error_that_every_actor_raises_ends_the_run_with_it():
    scheduler = placed(20, "ab")
    assert not of_type(scheduler.handle(Died("worker-0", "stale", error=STALE), 1), Fail)
    comes(scheduler, "worker-2", "a", 15)
    assert not of_type(scheduler.handle(Died("worker-1", "stale", error=STALE), 16), Fail), "what is in flight may end"
    held_by_a = held(scheduler)["worker-2"]
    assert len(held_by_a) == 1, "nothing more is begun"
    assert scheduler.handle(Died("worker-2", "stale", error=STALE), 17)[-1:] == [Fail(str(STALE), STALE)]


def test_errors_between_which_something_is_finished_end_nothing():
    scheduler = placed(40, "a")
    for turn in range(5):
        name = f"worker-{turn}"
        scheduler.handle(Finished(name, held(scheduler)[name][0]), 100 * turn)
        assert not of_type(scheduler.handle(Died(name, "stale", error=STALE), 100 * turn + 1), Fail)
        comes(scheduler, f"worker-{turn + 1}", "a", 100 * turn + 50)


def test_a_sample_of_which_every_place_raises_is_given_up_and_the_run_goes_on():
    odd = RuntimeError("odd")
    scheduler = placed(12, "abc")
    given_up, num_ended, now = [], 0, 0.0
    places = {f"worker-{idx}": place for idx, place in enumerate("abc")}
    while not scheduler.is_over and now < 10_000:
        now += 5
        actions = scheduler.handle(Tick(), now)
        for name, names in held(scheduler).items():
            if name not in places:
                places[name] = min(set("abc") - {places[other] for other in scheduler.actors if other in places})
                actions += comes(scheduler, name, places[name], now)
            elif names and names[0] in ("i3", "i3.1"):
                num_ended += 1
                actions += scheduler.handle(Died(name, "odd", error=odd), now)
            elif names:
                actions += scheduler.handle(Finished(name, names[0]), now)
        assert not of_type(actions, Fail)
        given_up += [action.item.name for action in of_type(actions, GiveUp)]
    assert given_up == ["i3.1"]
    assert num_ended <= 6


def test_a_full_disk_ends_the_run_when_what_is_in_flight_has_ended_or_had_its_grace():
    scheduler = placed(20, "abc")
    actions = scheduler.handle(Died("worker-0", "full", error=FULL), 100)
    assert of_type(actions, Cancel)
    assert not of_type(actions, Assign) + of_type(actions, Start)
    assert of_type(scheduler.handle(Finished("worker-1", "i2"), 105), Stop)
    assert scheduler.handle(Tick(), 119) == []
    assert scheduler.handle(Tick(), 120) == [Fail(str(FULL), FULL)]
    quick = placed(20, "ab")
    quick.handle(Died("worker-0", "full", error=FULL), 100)
    assert quick.handle(Finished("worker-1", "i2"), 105)[-1] == Fail(str(FULL), FULL)


def test_an_error_that_is_final_ends_the_run_at_once_when_nobody_else_works():
    refusal = UsageError("out of memory: a smaller --batch")
    scheduler = placed(2, "a", is_final=lambda error: isinstance(error, UsageError))
    assert scheduler.handle(Died("worker-0", "out of memory", error=refusal), 5) == [Fail(str(refusal), refusal)]


def test_an_error_during_a_stop_leaves_the_run_to_stop():
    scheduler = placed(9, "ab")
    scheduler.handle(StopRequested(), 1)
    assert scheduler.handle(Died("worker-0", "stale", error=STALE), 2) == []
    assert not scheduler.is_over
    scheduler.handle(Finished("worker-1", "i2"), 3)
    assert scheduler.is_over


@pytest.mark.parametrize("seed", range(3))
def test_one_bad_place_costs_no_more_than_its_own_work(seed):
    items = shards(60, 4, 60.0, random.Random(seed))
    found = Cluster(items, 4, frozenset({seed}), seed=seed).run()
    alone = Cluster(items, 3, seed=seed).run()
    assert found.accepted.total() == 60
    assert found.now <= 1.05 * alone.now
