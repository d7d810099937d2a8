"""What the driver of an evaluation decides without a cluster."""

from types import SimpleNamespace
from typing import Any

import pytest

from adadecode.evaluation.observer import Quiet
from adadecode.evaluation.rows import lost_rows
from adadecode.records import ChosenKernels, Example, Shard, WorkerState
from adadecode.runs.folder import RunFolder, read_commits
from adadecode.runs.kernels import settle_kernels
from adadecode.settings import EvalConfig
from ray_jobs.actors import ShardWork, SplitSample
from ray_jobs.evaluation import EvaluationDriver, SplitShards, Waiting, phase_of, shard_item, split_shard
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


@pytest.fixture
def prepared(tmp_path) -> Any:
    """What a driver needs of a run in an empty folder."""
    folder = RunFolder.open(tmp_path / "run", "fingerprint", {})
    return SimpleNamespace(folder=folder, config=EvalConfig(), todo=(SHARD,), lease=SimpleNamespace(check=lambda: None))


def test_a_shard_that_was_done_sample_by_sample_names_every_worker_that_took_part(prepared):
    split = SplitShards(prepared)
    rows = [lost_rows(prepared.config, SHARD, idx, "made up") for idx in range(2)]
    facts = [{"worker_id": name, "kernels": kernels} for name, kernels in (("w0", "native"), ("w1", "eager"))]
    assert split.add(ShardWork(SHARD, 0), SplitSample(rows[0], facts[0])) is None
    assert split.add(ShardWork(SHARD, 1), SplitSample(rows[1], facts[1])) is not None
    assert read_commits(prepared.folder.location)[7]["worker"] == facts[1] | {"others": [facts[0]]}


def test_a_shard_of_one_worker_names_it_alone_and_one_of_none_the_driver(prepared):
    facts = {"worker_id": "w0"}
    for shard_idx, gives in ((7, [facts, facts]), (8, [facts, None]), (9, [None, None])):
        split, shard = SplitShards(prepared), Shard(shard_idx, SHARD.task, SHARD.examples)
        for idx, given in enumerate(gives):
            work, rows = ShardWork(shard, idx), lost_rows(prepared.config, shard, idx, "made up")
            _ = split.add_lost(work, "made up") if given is None else split.add(work, SplitSample(rows, given))
    workers = {idx: commit["worker"] for idx, commit in read_commits(prepared.folder.location).items()}
    assert workers == {7: facts, 8: facts, 9: {"worker_id": "driver"}}


def test_the_driver_says_once_why_kernels_are_slow_when_an_actor_has_loaded(prepared):
    lines: list[str] = []

    class Lines(Quiet):
        def say(self, line: str) -> None:
            lines.append(line)

    actor = ActorState("worker-0", 0.0, Phase.LOADING)
    pool: Any = SimpleNamespace(resources={"num_cpus": 1}, places={})
    scheduler: Any = SimpleNamespace(actors={"worker-0": actor})
    driver = EvaluationDriver(pool, scheduler, prepared, Lines(), lambda: False)
    driver.on_wait()
    settle_kernels(prepared.folder.storage, ChosenKernels("eager", "there is no C++ compiler"), "worker-0")
    driver.on_wait()
    assert lines == []
    actor.phase = Phase.READY
    driver.on_wait()
    driver.on_wait()
    (line,) = lines
    assert line.startswith("kernels: eager, because there is no C++ compiler (on ")
