"""What the driver of an evaluation decides without a cluster."""

from types import SimpleNamespace
from typing import Any

import pytest

from adadecode.evaluation.observer import Quiet
from adadecode.evaluation.rows import turns
from adadecode.records import ChosenKernels, Example, Shard, WorkerState
from adadecode.runs.folder import RunFolder, read_commits
from adadecode.runs.kernels import settle_kernels
from adadecode.settings import EvalConfig
from ray_jobs.actors import ShardWork, SplitSample
from ray_jobs.evaluation import EvaluationDriver, SplitShards, Waiting, limits_of, phase_of, shard_item, split_shard
from ray_jobs.events import Item
from ray_jobs.state import ActorState, Phase
from ray_jobs.watch import ClusterWatch

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


def test_the_first_shards_may_take_the_longer_the_more_samples_they_have():
    for num_samples, deadline_s, first_s in ((4, 60.0, 900.0), (64, 60.0, 64 * 225.0), (64, 1e6, 1e6)):
        shard = Shard(0, "gsm8k", SHARD.examples[:1] * num_samples)
        limits = limits_of(SimpleNamespace(config=EvalConfig(deadline_s=deadline_s), todo=(shard,)))
        assert (limits.first_deadline_s, limits.least_deadline_s) == (first_s, deadline_s)


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


@pytest.fixture
def prepared(tmp_path) -> Any:
    """What a driver needs of a run in an empty folder."""
    folder = RunFolder.open(tmp_path / "run", "fingerprint", {})
    return SimpleNamespace(folder=folder, config=EvalConfig(), todo=(SHARD,), lease=SimpleNamespace(check=lambda: None))


def test_the_driver_says_once_why_kernels_are_slow_when_an_actor_has_loaded(prepared):
    lines: list[str] = []

    class Lines(Quiet):
        def say(self, line: str) -> None:
            lines.append(line)

    actor = ActorState("worker-0", 0.0, Phase.LOADING)
    pool: Any = SimpleNamespace(resources={"num_cpus": 1}, places={})
    scheduler: Any = SimpleNamespace(actors={"worker-0": actor})
    cluster = ClusterWatch(can_grow=True, list_nodes=list)
    driver = EvaluationDriver(pool, scheduler, cluster, prepared, Lines(), lambda: False)
    driver.on_wait()
    settle_kernels(prepared.folder.storage, ChosenKernels("eager", "there is no C++ compiler"), "worker-0")
    driver.on_wait()
    assert lines == []
    actor.phase = Phase.READY
    driver.on_wait()
    driver.on_wait()
    (line,) = lines
    assert line.startswith("kernels: eager, because there is no C++ compiler (on ")


def split_sample(sample_idx: int, worker_id: str) -> SplitSample:
    (turn,) = turns(("vanilla",), SHARD, sample_idx, 0, worker_id)
    return SplitSample([turn.error_row("ValueError", "odd")], {"worker_id": worker_id, "kernels": "native"})


def committed_worker(folder: RunFolder, samples: list[SplitSample | None]) -> dict[str, Any]:
    """Who the commit of SHARD says made its rows, each sample by itself; None is one that nobody survived."""
    config = EvalConfig(model="tiny", task="jsonl", methods=("vanilla",))
    prepared: Any = SimpleNamespace(config=config, folder=folder)
    split = SplitShards(prepared)
    for sample_idx, sample in enumerate(samples):
        work = ShardWork(SHARD, sample_idx)
        outcome = split.add_lost(work, "gone") if sample is None else split.add(work, sample)
        assert (outcome is None) is (sample_idx < len(samples) - 1)
    return read_commits(folder.location)[SHARD.shard_idx]["worker"]


def test_a_shard_done_sample_by_sample_names_every_worker_that_made_rows(tmp_path):
    folder = RunFolder.open(tmp_path / "run", "f00d", {})
    worker = committed_worker(folder, [split_sample(0, "worker-3"), split_sample(1, "worker-5")])
    assert worker == {
        "worker_id": "worker-5",
        "kernels": "native",
        "others": [{"worker_id": "worker-3", "kernels": "native"}],
    }


def test_a_shard_done_sample_by_sample_by_one_worker_names_no_others(tmp_path):
    one = {"worker_id": "worker-3", "kernels": "native"}
    of_both = [split_sample(0, "worker-3"), split_sample(1, "worker-3")]
    assert committed_worker(RunFolder.open(tmp_path / "both", "f00d", {}), of_both) == one
    assert committed_worker(RunFolder.open(tmp_path / "lost", "f00d", {}), [of_both[0], None]) == one
    assert committed_worker(RunFolder.open(tmp_path / "none", "f00d", {}), [None, None]) == {"worker_id": "driver"}
