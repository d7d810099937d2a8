"""When a cluster counts as lost: no head, no thread and no clock but a list."""

import pytest
from ray.exceptions import RaySystemError

from adadecode.errors import ClusterLostError
from ray_jobs import watch
from ray_jobs.cluster import RECONNECT, outliving_the_head
from ray_jobs.watch import ClusterWatch, patience_s, watched_cluster

ALIVE, DEAD = {"NodeID": "a", "Alive": True}, {"NodeID": "b", "Alive": False}


class World:
    """A head that tells `nodes`, and the time."""

    def __init__(self, *, can_grow: bool = True) -> None:
        self.nodes, self.now = [ALIVE], 0.0
        self.watch = ClusterWatch(
            can_grow=can_grow, list_nodes=lambda: self.nodes, patience_s=30.0, clock=lambda: self.now
        )

    def silence(self, seconds: int) -> None:
        """A driver checks each second and the head does not answer."""
        for _ in range(seconds):
            self.now += 1
            self.watch.check()


def test_a_head_that_is_silent_for_longer_than_patience_is_lost():
    world = World()
    world.watch.look()
    world.silence(30)
    with pytest.raises(ClusterLostError, match="its head has not answered for 31 s"):
        world.silence(2)


def test_a_head_that_never_answered_is_lost_too():
    with pytest.raises(ClusterLostError, match="not answered"):
        World().silence(32)


def test_a_head_that_is_slow_is_not_lost():
    world = World()
    for _ in range(10):
        world.silence(29)
        world.watch.look()
        world.silence(1)


def test_a_driver_that_stood_still_for_an_hour_does_not_take_its_own_silence_for_the_heads():
    world = World()
    world.watch.look()
    world.silence(1)
    world.now += 3600
    world.watch.check()
    world.watch.look()
    world.silence(30)


def test_a_cluster_that_nobody_can_join_is_lost_with_its_last_node_and_another_waits():
    for can_grow in (True, False):
        world = World(can_grow=can_grow)
        world.nodes = [ALIVE, DEAD]
        world.watch.look()
        world.silence(1)
        assert world.watch.nodes() == [ALIVE]
        world.nodes = [DEAD]
        world.watch.look()
        if can_grow:
            world.silence(1)
            assert world.watch.nodes() == []
        else:
            with pytest.raises(ClusterLostError, match="the node it had is dead, and no other can join it"):
                world.silence(1)


@pytest.mark.parametrize(
    ("given", "expected"), [(None, 30.0), ("600", 300.0), ("soon", 30.0), ("0", 5.0), ("1", 5.0), ("2", 5.0)]
)
def test_a_head_is_given_half_the_time_that_ray_was_told_to_wait_for_it(given, expected, monkeypatch):
    monkeypatch.delenv(RECONNECT, raising=False)
    if given is not None:
        monkeypatch.setenv(RECONNECT, given)
    assert patience_s() == expected
    with outliving_the_head():
        pass
    assert patience_s() == expected, "what this process tells Ray is no user's setting"


@pytest.mark.parametrize(
    "error", [ClusterLostError("its head has not answered for 31 s"), RaySystemError("broken\npipe")]
)
def test_a_lost_cluster_is_left_before_the_run_is_closed_and_is_one_line(error, monkeypatch):
    left: list[str] = []
    monkeypatch.setattr(watch, "disconnect", lambda: left.append("left"))
    with (
        pytest.raises(ClusterLostError, match=r"the Ray cluster is gone \(.*\); .* same command continues") as caught,
        watched_cluster("127.0.0.1:1"),
    ):
        raise error
    assert left == ["left"]
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1
