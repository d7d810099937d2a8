"""The scheduler as a function of events: what it does about each, and laws that hold for any sequence of them."""

from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_jobs.events import (
    Accept,
    Action,
    Assign,
    Cancel,
    Cancelled,
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
from ray_jobs.scheduler import Limits, Scheduler
from ray_jobs.state import Phase

LIMITS = Limits(
    max_deaths=2,
    max_load_failures=3,
    backoff_s=0,
    load_deadline_s=100,
    first_deadline_s=50,
    least_deadline_s=10,
    slack=4,
)


def items(num: int, size: int = 4) -> list[Item]:
    return [Item(f"i{idx}", idx, size) for idx in range(num)]


def halves(item: Item) -> tuple[Item, ...]:
    """Samples of an item, none of a sample."""
    if "." in item.name:
        return ()
    return tuple(Item(f"{item.name}.{idx}", item.work) for idx in range(item.size))


def started(num_items: int, num_actors: int, limits: Limits = LIMITS, split=halves) -> Scheduler:
    """A scheduler whose actors have loaded at time 0, in the order of their names."""
    scheduler = Scheduler(items(num_items), limits, split)
    scheduler.handle(Wanted(num_actors), 0)
    for idx in range(num_actors):
        scheduler.handle(Started(f"worker-{idx}"), 0)
    for idx in range(num_actors):
        scheduler.handle(Loaded(f"worker-{idx}"), 0)
    return scheduler


def held(scheduler: Scheduler) -> dict[str, list[str]]:
    return {name: [item.name for item in actor.items] for name, actor in scheduler.actors.items()}


def test_the_first_actor_that_is_ready_begins_while_the_others_load():
    scheduler = Scheduler(items(4), LIMITS)
    assert scheduler.handle(Wanted(3), 0) == [Start("worker-0"), Start("worker-1"), Start("worker-2")]
    scheduler.handle(Started("worker-1"), 1)
    assert scheduler.handle(Loaded("worker-1"), 2) == [
        Assign("worker-1", Item("i0", 0, 4)),
        Assign("worker-1", Item("i1", 1, 4)),
    ]


def test_an_actor_has_one_item_in_flight_and_one_queued_in_the_order_assigned():
    scheduler = started(7, 2)
    assert held(scheduler) == {"worker-0": ["i0", "i1"], "worker-1": ["i2", "i3"]}
    assert scheduler.handle(Finished("worker-1", "i2"), 5) == [
        Accept(Item("i2", 2, 4)),
        Assign("worker-1", Item("i4", 4, 4)),
    ]
    assert held(scheduler)["worker-1"] == ["i3", "i4"]


def test_a_dead_actor_is_replaced_and_both_its_items_come_first():
    scheduler = started(8, 2)
    assert scheduler.handle(Died("worker-0", "gone"), 1) == [Start("worker-2")]
    assert [item.name for item in scheduler.pending][:2] == ["i0", "i1"]
    scheduler.handle(Finished("worker-1", "i2"), 2)
    assert held(scheduler) == {"worker-1": ["i3"], "worker-2": []}, "i0 is quarantined now, and assigned alone"
    scheduler.handle(Loaded("worker-2"), 3)
    assert held(scheduler) == {"worker-1": ["i3", "i1"], "worker-2": ["i0"]}


def test_an_item_that_a_dead_actor_had_finished_is_not_done_again():
    """It came back with the death, and that it was done is heard of only then."""
    scheduler = started(3, 1)
    scheduler.handle(Died("worker-0", "gone", preempted=True), 1)
    assert scheduler.handle(Finished("worker-0", "i0"), 2)[0] == Accept(Item("i0", 0, 4))
    assert [item.name for item in scheduler.pending] == ["i1"]
    scheduler.handle(Loaded("worker-1"), 3)
    assert held(scheduler) == {"worker-1": ["i1", "i2"]}


def test_an_item_that_ends_actors_is_split_to_the_sample_which_is_given_up_and_the_others_are_done():
    scheduler = started(1, 1)
    given_up, done, num_started = [], [], 1
    now = 0.0
    while not scheduler.is_over:
        now += 1
        (name,) = scheduler.actors
        if scheduler.actors[name].phase is not Phase.READY:
            actions = [*scheduler.handle(Started(name), now), *scheduler.handle(Loaded(name), now)]
        else:
            item = scheduler.actors[name].items[0]
            is_poison = item.name in ("i0", "i0.2")
            actions = scheduler.handle(Died(name, "segfault") if is_poison else Finished(name, item.name), now)
        num_started += sum(isinstance(action, Start) for action in actions)
        done += [action.item.name for action in actions if isinstance(action, Accept)]
        given_up += [(action.item.name, action.reason) for action in actions if isinstance(action, GiveUp)]
    assert given_up == [("i0.2", "segfault")]
    assert sorted(done) == ["i0.0", "i0.1", "i0.3"]
    assert num_started == 1 + 4  # two deaths of the shard, two of the sample, each while something was left to do


def test_preemptions_do_not_count_against_an_item():
    scheduler = started(3, 1)
    for idx in range(10):
        actions = scheduler.handle(Died(f"worker-{idx}", "spot", preempted=True), idx)
        assert actions == [Start(f"worker-{idx + 1}")]
        scheduler.handle(Started(f"worker-{idx + 1}"), idx)
        scheduler.handle(Loaded(f"worker-{idx + 1}"), idx)
        assert held(scheduler) == {f"worker-{idx + 1}": ["i0", "i1"]}


def test_what_is_queued_does_not_count_as_what_ended_the_actor():
    scheduler = started(4, 1)
    scheduler.handle(Died("worker-0", "gone"), 1)
    scheduler.handle(Loaded("worker-1"), 2)
    scheduler.handle(Finished("worker-1", "i0"), 3)
    scheduler.handle(Died("worker-1", "gone"), 4)  # the first death of i1, which was queued before
    assert scheduler.num_deaths("i1") == 1


def test_an_idle_actor_steals_a_queued_item_and_then_runs_the_slowest_speculatively():
    scheduler = started(4, 2)  # worker-0: i0, i1; worker-1: i2, i3
    scheduler.handle(Finished("worker-1", "i2"), 10)
    assert scheduler.handle(Finished("worker-1", "i3"), 11) == [
        Accept(Item("i3", 3, 4)),
        Cancel("worker-0", Item("i1", 1, 4)),
        Assign("worker-1", Item("i1", 1, 4)),
    ]
    assert scheduler.handle(Finished("worker-1", "i1"), 12) == [
        Accept(Item("i1", 1, 4)),
        Assign("worker-1", Item("i0", 0, 4)),
    ]
    assert held(scheduler) == {"worker-0": ["i0"], "worker-1": ["i0"]}
    assert scheduler.handle(Finished("worker-1", "i0"), 13)[0] == Accept(Item("i0", 0, 4))
    assert scheduler.is_over
    assert not any(isinstance(action, Accept) for action in scheduler.handle(Finished("worker-0", "i0"), 14))


def test_an_exclusive_item_is_never_two_actors_and_none_waits_behind_another():
    scheduler = started(3, 2, replace(LIMITS, exclusive=True))
    assert held(scheduler) == {"worker-0": ["i0"], "worker-1": ["i1"]}
    scheduler.handle(Finished("worker-1", "i1"), 1)
    assert held(scheduler) == {"worker-0": ["i0"], "worker-1": ["i2"]}
    scheduler.handle(Finished("worker-1", "i2"), 2)
    assert held(scheduler) == {"worker-0": ["i0"], "worker-1": []}
    scheduler.handle(Died("worker-0", "killed"), 3)
    assert held(scheduler)["worker-1"] == ["i0"]


def test_an_actor_that_dies_of_a_cancelled_item_is_held_against_that():
    scheduler = started(5, 2)  # worker-0: i0, i1; worker-1: i2, i3; pending i4
    scheduler.handle(Finished("worker-1", "i2"), 1)
    scheduler.handle(Finished("worker-1", "i3"), 2)  # worker-1: i4
    scheduler.handle(Finished("worker-1", "i4"), 3)  # worker-1 steals i1, which worker-0 has begun meanwhile
    assert held(scheduler) == {"worker-0": ["i0"], "worker-1": ["i1"]}
    scheduler.handle(Finished("worker-0", "i0"), 4)
    scheduler.handle(Died("worker-0", "killed by i1"), 5)
    assert scheduler.num_deaths("i1") == 1
    assert held(scheduler) == {"worker-1": ["i1"]}


def test_an_item_that_comes_back_to_the_actor_it_was_stolen_from_is_not_lost_with_it():
    scheduler = started(2, 2)  # worker-0: i0 and i1, which worker-1 steals
    assert held(scheduler) == {"worker-0": ["i0"], "worker-1": ["i1"]}
    scheduler.handle(Died("worker-1", "spot", preempted=True), 1)
    assert held(scheduler) == {"worker-0": ["i0", "i1"], "worker-2": []}
    scheduler.handle(Died("worker-0", "spot", preempted=True), 2)
    scheduler.handle(Loaded("worker-2"), 3)
    assert held(scheduler)["worker-2"] == ["i0", "i1"]


def test_what_was_cancelled_unbegun_is_forgotten():
    scheduler = started(5, 2)
    for now, item in enumerate(("i2", "i3", "i4")):
        scheduler.handle(Finished("worker-1", item), now)
    assert [assignment.is_cancelled for assignment in scheduler.actors["worker-0"].queue] == [False, True]
    scheduler.handle(Cancelled("worker-0", "i1"), 9)
    assert [assignment.item.name for assignment in scheduler.actors["worker-0"].queue] == ["i0"]


def test_no_item_is_with_a_third_actor():
    scheduler = started(1, 3)
    assert sorted(held(scheduler).values()) == [[], ["i0"], ["i0"]]


def test_one_of_two_actors_with_an_item_that_dies_costs_nothing_while_the_other_runs():
    scheduler = started(1, 2)
    assert held(scheduler) == {"worker-0": ["i0"], "worker-1": ["i0"]}
    assert not any(isinstance(action, Assign) for action in scheduler.handle(Died("worker-0", "gone"), 1))
    assert held(scheduler) == {"worker-1": ["i0"]}
    assert scheduler.handle(Finished("worker-1", "i0"), 2) == [Accept(Item("i0", 0, 4))]
    assert scheduler.is_over


def test_deadlines_follow_the_slowest_measured_rate_and_grow_with_each_death():
    scheduler = started(9, 1)
    assert scheduler.deadline_s(Item("i5", 5, 4)) == 50  # before anything was measured
    scheduler.handle(Finished("worker-0", "i0", full_s=20), 5)
    assert scheduler.deadline_s(Item("i5", 5, 4)) == 80
    scheduler.handle(Finished("worker-0", "i1", full_s=4), 6)
    assert scheduler.deadline_s(Item("i5", 5, 4)) == 80
    assert scheduler.deadline_s(Item("i5.0", 5, 1)) == 20
    scheduler.handle(Died("worker-0", "gone"), 7)
    assert scheduler.deadline_s(Item("i2", 2, 4)) == 160


def test_a_hung_actor_is_stopped_after_its_deadline_and_not_before():
    scheduler = started(2, 1)
    assert scheduler.handle(Tick(), 50) == []
    actions = scheduler.handle(Tick(), 51)
    assert [type(action) for action in actions] == [Stop, Start]
    assert actions[0].reason == "i0 took more than 50 s"
    scheduler.handle(Started("worker-1"), 60)
    scheduler.handle(Tick(), 160)
    assert list(scheduler.actors) == ["worker-1"]
    assert isinstance(scheduler.handle(Tick(), 161)[0], Stop), "loading has a deadline too"


def test_an_actor_that_waits_for_a_node_is_not_hung():
    scheduler = Scheduler(items(1), LIMITS)
    scheduler.handle(Wanted(1), 0)
    assert scheduler.handle(Tick(), 1e6) == []


def test_loads_that_keep_failing_end_the_run_only_when_nobody_works():
    scheduler = started(50, 1)
    scheduler.handle(Wanted(2), 0)
    for idx in (1, 2):
        scheduler.handle(Started(f"worker-{idx}"), idx)
        assert scheduler.handle(Died(f"worker-{idx}", "no disk"), idx) == [Start(f"worker-{idx + 1}")]
    assert scheduler.handle(Died("worker-3", "no disk"), 4) == [Start("worker-4")], "worker-0 goes on meanwhile"
    assert scheduler.handle(Wanted(3), 5) == [Start("worker-5")], "a node has joined"
    alone = Scheduler(items(1), LIMITS)
    alone.handle(Wanted(1), 0)
    alone.handle(Died("worker-0", "no disk"), 1)
    alone.handle(Died("worker-1", "no disk"), 2)
    assert isinstance(alone.handle(Died("worker-2", "no disk"), 3)[0], Fail)
    others = Scheduler(items(9), LIMITS)
    others.handle(Wanted(4), 0)
    for idx in range(3):
        others.handle(Started(f"worker-{idx}"), 1)
    for idx in (3, 4):
        others.handle(Died(f"worker-{idx}", "bad device"), 2)
    assert others.handle(Died("worker-5", "bad device"), 3) == [Start("worker-6")], "three others are still loading"
    assert others.handle(Loaded("worker-1"), 4)[:1] == [Assign("worker-1", Item("i0", 0, 4))]


def test_after_a_failed_load_the_next_is_tried_later_and_later_and_actors_lost_at_once_count_once():
    limits = Limits(max_load_failures=3, backoff_s=10)
    scheduler = Scheduler(items(9), limits)
    scheduler.handle(Wanted(2), 0)
    assert scheduler.handle(Died("worker-0", "node lost"), 5) == []
    assert scheduler.handle(Died("worker-1", "node lost"), 6) == []
    assert scheduler.handle(Tick(), 14.9) == []
    assert scheduler.handle(Tick(), 15) == [Start("worker-2"), Start("worker-3")]
    scheduler.handle(Died("worker-2", "node lost"), 16)
    scheduler.handle(Died("worker-3", "node lost"), 16)
    assert scheduler.handle(Tick(), 35.9) == []
    assert scheduler.handle(Tick(), 36) == [Start("worker-4"), Start("worker-5")]
    scheduler.handle(Started("worker-4"), 37)
    assert scheduler.handle(Loaded("worker-4"), 38)[:1] == [Assign("worker-4", Item("i0", 0, 4))]
    assert scheduler.handle(Died("worker-5", "node lost"), 39) == [], "and the count began anew"
    assert scheduler.handle(Tick(), 49) == [Start("worker-6")]


def test_nodes_that_join_are_used_and_a_smaller_cluster_ends_nobody():
    scheduler = started(20, 1)
    assert scheduler.handle(Wanted(3), 1) == [Start("worker-1"), Start("worker-2")]
    assert scheduler.handle(Wanted(1), 2) == []
    assert len(scheduler.actors) == 3


def test_after_a_stop_request_nothing_is_assigned_and_what_is_in_flight_may_end():
    scheduler = started(9, 2)
    actions = scheduler.handle(StopRequested(), 1)
    assert actions == [Cancel("worker-0", Item("i1", 1, 4)), Cancel("worker-1", Item("i3", 3, 4))]
    assert not scheduler.is_over
    assert scheduler.handle(Finished("worker-0", "i0"), 2) == [
        Accept(Item("i0", 0, 4)),
        Stop("worker-0"),
    ]
    assert scheduler.handle(Died("worker-1", "gone"), 3) == []
    assert scheduler.is_over


@dataclass
class World:
    """Actors as they are, beside what the scheduler believes: queues that run in order, items and places that end them.

    Each actor is alone at its place, a letter; an actor at one in `bad` loads and dies of whatever it begins.
    """

    scheduler: Scheduler
    poison: frozenset[str]
    bad: frozenset[str] = frozenset()
    places: dict[str, str] = field(default_factory=dict)
    queues: dict[str, list[str]] = field(default_factory=dict)
    accepted: Counter = field(default_factory=Counter)
    given_up: Counter = field(default_factory=Counter)
    cancelled: list[tuple[str, str]] = field(default_factory=list)
    now: float = 0.0

    def send(self, event) -> None:
        for action in self.scheduler.handle(event, self.now):
            self.do(action)
        for actor in self.scheduler.actors.values():
            assert len(actor.items) <= 2
            assert actor.name in self.queues

    def do(self, action: Action) -> None:
        match action:
            case Start(name):
                assert name not in self.queues
                self.queues[name] = []
                self.places[name] = min(
                    set("abcdefgh") - {self.places[other] for other in self.queues if other != name}
                )
            case Assign(name, item):
                self.queues[name].append(item.name)
            case Cancel(name, item):
                assert item.name in self.queues[name]
                if item.name in self.queues[name][1:]:
                    self.queues[name].remove(item.name)
                    self.cancelled.append((name, item.name))
            case Stop(name, _):
                del self.queues[name]
            case Accept(item):
                self.accepted[item.name] += 1
            case GiveUp(item, _):
                self.given_up[item.name] += 1
            case Fail(reason):
                pytest.fail(reason)

    def step(self, choice: int, kind: int) -> None:
        """One thing that can happen: an actor loads, ends its item, dies, is preempted; time passes."""
        self.now += 1
        names = sorted(self.queues)
        if not names:
            self.send(Tick())
            return
        name = names[choice % len(names)]
        actor = self.scheduler.actors[name]
        if kind == 0:
            del self.queues[name]
            self.send(Died(name, "killed", preempted=choice % 2 == 0))
        elif kind == 1:
            self.send(Wanted(1 + choice % 5))
        elif kind == 3 and self.cancelled:  # it is told late, and perhaps of an actor that is gone
            self.send(Cancelled(*self.cancelled.pop(0)))
        elif kind == 2:
            self.now += 1000
            self.send(Tick())
        elif actor.phase is not Phase.READY:
            self.send(Started(name, self.places[name]))
            self.send(Loaded(name))
        elif self.queues[name]:
            item = self.queues[name][0]
            if self.places[name] in self.bad:
                del self.queues[name]
                self.send(Died(name, "bad place"))
            elif item.split(".")[0] in self.poison and ("." not in item or item in self.poison):
                del self.queues[name]
                self.send(Died(name, "poison"))
            else:
                self.queues[name].pop(0)
                self.send(Finished(name, item, 1.0))
        else:
            self.send(Tick())


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    num_items=st.integers(1, 8),
    num_actors=st.integers(1, 4),
    poison=st.sampled_from([frozenset(), frozenset({"i0", "i0.1"}), frozenset({"i0", "i0.0", "i0.3", "i2", "i2.2"})]),
    bad=st.sampled_from([frozenset(), frozenset("a"), frozenset("bc")]),
    steps=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 12)), max_size=60),
)
def test_whatever_happens_every_sample_is_accepted_once_or_given_up(num_items, num_actors, poison, bad, steps):
    limits = Limits(max_deaths=2, max_load_failures=10**9, backoff_s=0, load_deadline_s=500, first_deadline_s=500)
    world = World(Scheduler(items(num_items), limits, halves), poison, bad)
    world.send(Wanted(num_actors))
    for choice, kind in steps:
        if world.scheduler.is_over:
            break
        world.step(choice, kind)
    for turn in range(5000):  # and then nothing more goes wrong than the poison and the bad places
        if world.scheduler.is_over:
            break
        if len(world.queues) < 1:
            world.send(Wanted(2))
        world.step(turn, 5)
    assert world.scheduler.is_over
    assert max(world.accepted.values(), default=0) <= 1
    assert max(world.given_up.values(), default=0) <= 1
    for item in items(num_items):
        pieces = [piece.name for piece in halves(item)]
        whole = world.accepted[item.name]
        by_piece = [world.accepted[piece] + world.given_up[piece] for piece in pieces]
        assert whole + min(by_piece) == 1, (item, world)
        assert whole == 0 or max(by_piece) == 0, (item, world)
    if not steps and not bad >= set("abcd"[:num_actors]):
        assert set(world.given_up) <= poison


@pytest.mark.parametrize("num_actors", [1, 3])
def test_poison_ends_only_as_many_actors_as_its_limit_says(num_actors):
    world = World(Scheduler(items(6), LIMITS, halves), frozenset({"i1", "i1.3"}))
    world.send(Wanted(num_actors))
    for turn in range(1000):
        if world.scheduler.is_over:
            break
        world.step(turn, 5)
    assert world.given_up == {"i1.3": 1}
    assert sum(world.accepted.values()) == 5 + 3
