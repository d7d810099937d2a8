"""What the driver of an evaluation decides without a cluster."""

from adadecode.records import Example, Shard, WorkerState
from ray_jobs.actors import ShardWork
from ray_jobs.evaluation import Waiting, phase_of, shard_item, split_shard
from ray_jobs.events import Item
from ray_jobs.state import ActorState, Phase

SHARD = Shard(7, "gsm8k", (Example("a", "1+1", "1+1"), Example("b", "1+2", "1+2")))


def starting(for_s: float) -> WorkerState:
    return WorkerState("worker-0", "", "starting", "", for_s)


def test_a_shard_is_split_into_its_samples_and_a_sample_into_nothing():
    item = shard_item(SHARD)
    assert (item.name, item.size) == ("shard 7 of task gsm8k", 2)
    first, second = split_shard(item)
    assert first == Item("sample a of shard 7 of task gsm8k", ShardWork(SHARD, 0))
    assert second == Item("sample b of shard 7 of task gsm8k", ShardWork(SHARD, 1))
    assert split_shard(first) == ()


def test_a_ready_actor_is_idle_until_it_is_assigned_something():
    actor = ActorState("worker-0", 0.0)
    assert phase_of(actor) == "starting"
    actor.phase = Phase.READY
    assert phase_of(actor) == "idle"
    actor.assign(shard_item(SHARD), 1.0)
    assert phase_of(actor) == "working"


def test_a_run_that_waits_for_a_node_says_so_after_30_s_and_then_each_minute():
    lines: list[str] = []
    waiting = Waiting({"num_gpus": 1, "num_cpus": 2}, lines.append)
    for for_s in (1, 29.9, 30, 31, 89.9, 90, 91):
        waiting.look_at([starting(for_s), starting(for_s + 5)])
    assert lines == [f"waiting for a node with 1 gpus, 2 cpus free, {for_s} s by now" for for_s in (30, 90)]


def test_nothing_is_said_while_any_worker_has_a_node():
    lines: list[str] = []
    waiting = Waiting({"num_cpus": 1}, lines.append)
    waiting.look_at([starting(100), WorkerState("worker-1", "a", "working", "shard 7", 3.0)])
    waiting.look_at([])
    assert lines == []
