"""What a driver says of actors that fail, with a pool that plays a script instead of a cluster."""

from collections import deque
from typing import Any

import pytest

from adadecode.errors import KernelsError
from ray_jobs.driver import Driver
from ray_jobs.events import Died, Event, Finished, Item, Loaded, Started
from ray_jobs.limits import Limits
from ray_jobs.pool import Place
from ray_jobs.scheduler import Scheduler
from ray_jobs.watch import ClusterWatch

NO_COMPILER = KernelsError("--kernels native: no C++ compiler")
GPU = Place("node-7", 4711, "0a0b", ("3",))


class ScriptedPool:
    """Tells one event after another, of actors that are all on one GPU; raises IndexError where a run wants more."""

    def __init__(self, events: list[Event]) -> None:
        self._events = deque(events)
        self.actors: dict[str, Any] = {}
        self.places: dict[str, Place] = {}

    def poll(self, timeout_s: float) -> list[tuple[Event, Any]]:
        return [(self._events.popleft(), None)] if self.actors else []

    def start(self, name: str) -> None:
        self.actors[name], self.places[name] = None, GPU

    def stop(self, name: str) -> None:
        self.actors.pop(name, None)
        self.places.pop(name, None)

    def assign(self, name: str, item: Item) -> None:
        pass

    def stop_all(self) -> None:
        self.actors.clear()


class ListeningDriver(Driver):
    def __init__(self, events: list[Event], num_actors: int) -> None:
        pool: Any = ScriptedPool(events)
        cluster = ClusterWatch(can_grow=True, list_nodes=list)
        super().__init__(pool, Scheduler([Item("i0", None), Item("i1", None)], Limits()), cluster)
        self._num_actors = num_actors
        self.lines: list[str] = []

    def num_wanted(self) -> int:
        return self._num_actors

    def on_done(self, item: Item, result: Any) -> None:
        pass

    def on_give_up(self, item: Item, reason: str) -> None:
        pass

    def on_lost_actor(self, line: str) -> None:
        self.lines.append(line)


def test_a_place_is_named_by_host_and_gpu_and_its_name_outlasts_a_process():
    assert str(GPU) == "node-7, GPU 3"
    assert str(Place("node-7", 4711, "0a0b", ())) == "node-7"
    assert GPU.name == GPU._replace(pid=4712).name != GPU._replace(gpus=("2",)).name


def test_what_every_load_raises_is_said_by_the_error_alone():
    refused: list[Event] = [Started("worker-0"), Started("worker-1")]
    refused += [Died(f"worker-{idx}", "no compiler", error=NO_COMPILER) for idx in range(2)]
    driver = ListeningDriver(refused, num_actors=2)
    with pytest.raises(KernelsError, match="no C"):
        driver.drive()
    assert driver.lines == []


def test_a_load_that_raised_is_told_with_its_place_when_another_has_loaded():
    events = [
        Started("worker-0"),
        Started("worker-1"),
        Died("worker-0", "no compiler", error=NO_COMPILER),
        Loaded("worker-1"),
        Finished("worker-1", "i0"),
        Died("worker-1", "the process died"),
        Started("worker-2"),
        Loaded("worker-2"),
        Finished("worker-2", "i1"),
    ]
    driver = ListeningDriver(events, num_actors=2)
    driver.drive()
    assert driver.lines == [
        "worker-0 on node-7, GPU 3 failed: no compiler",
        "worker-1 on node-7, GPU 3 is gone: the process died",
    ]


def test_however_much_happens_all_actors_are_looked_at_a_few_times_a_second(monkeypatch):
    """Looking at a thousand actors after each of their items would take the driver longer than all else."""
    looks: list[int] = []
    monkeypatch.setattr(ListeningDriver, "on_wait", lambda driver: looks.append(len(driver._pool.actors)))
    for wait_s, num_looks in ((1000.0, 2), (0.0, 5)):
        monkeypatch.setattr("ray_jobs.driver.WAIT_S", wait_s)
        looks.clear()
        done = [Finished("worker-0", "i0"), Finished("worker-0", "i1")]
        ListeningDriver([Started("worker-0"), Started("worker-1"), Loaded("worker-0"), *done], num_actors=2).drive()
        assert len(looks) == num_looks


def test_actors_that_wait_for_a_node_are_let_go_when_fewer_are_wanted(monkeypatch):
    """An actor that waits is what an autoscaler starts a node for."""
    monkeypatch.setattr("ray_jobs.driver.WANTED_EVERY_S", 0.0)
    done = [Finished("worker-0", "i0", None), Finished("worker-0", "i1", None)]
    driver = ListeningDriver([Started("worker-0"), Started("worker-1"), Loaded("worker-0"), *done], num_actors=4)
    stopped: list[str] = []
    stop, poll = driver._pool.stop, driver._pool.poll

    def listening_poll(timeout_s: float) -> list[tuple[Event, Any]]:
        happened = poll(timeout_s)
        if any(isinstance(event, Loaded) for event, _ in happened):
            driver._num_actors = 1
        return happened

    def listening_stop(name: str) -> None:
        stopped.append(name)
        stop(name)

    monkeypatch.setattr(driver._pool, "stop", listening_stop)
    monkeypatch.setattr(driver._pool, "poll", listening_poll)
    driver.drive()
    assert stopped == ["worker-3", "worker-2"], "worker-1 has a node: it is kept"
    assert driver.lines == []
