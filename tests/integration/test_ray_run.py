"""Evaluation runs on real actors, in real processes, some of which are killed."""

import os
import signal
import threading
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

from adadecode.config import DecodeSettings, EvalConfig
from adadecode.errors import AdaDecodeError, ExitHeadsError, ResourcesError
from adadecode.evaluation.local import run_local
from adadecode.evaluation.run import close_run, prepare_run
from adadecode.evaluation.store import read_commits, read_samples
from ray_jobs.scheduler import MAX_ATTEMPTS, run_on_ray

DETERMINISTIC = (
    "task",
    "sample_id",
    "method",
    "repeat",
    "shard",
    "status",
    "prompt_token_ids",
    "output_token_ids",
    "output_text",
    "finish_reason",
    "num_rounds",
    "drafted_per_exit",
    "accepted_per_exit",
    "draft_depths",
    "parity",
    "logits_equal",
    "logits_digest",
)


@pytest.fixture
def config(model_folder, heads_folder, prompts_file) -> EvalConfig:
    return EvalConfig(
        model=str(model_folder),
        heads=str(heads_folder),
        task="jsonl",
        data_file=str(prompts_file),
        methods=("vanilla", "adadecode"),
        decode=DecodeSettings(gamma=0.05, max_new_tokens=20),
        shard_size=1,
        workers=2,
        threads=1,
    )


def deterministic(path: Path) -> pa.Table:
    """The committed rows less timings and placement, in one order."""
    keys = [(name, "ascending") for name in ("task", "sample_id", "method", "repeat")]
    return read_samples(path).select(DETERMINISTIC).sort_by(keys)


def reference_table(config: EvalConfig, out: Path) -> pa.Table:
    """The same run in this process, on one thread as each actor has."""
    local = config.model_copy(update={"local": True, "workers": 1})
    prepared = prepare_run(local, out)
    run_local(prepared, lambda shard: None)
    close_run(prepared)
    return deterministic(out)


def test_two_actors_commit_the_tables_of_a_local_run(ray_cluster, config, tmp_path):
    prepared = prepare_run(config, tmp_path / "ray")
    done = []
    run_on_ray(prepared, done.append)
    result = close_run(prepared)
    assert len(done) == 12
    assert result.num_missing == 0
    assert set(result.verify["parity"].to_pylist()) == {"exact"}
    assert set(result.verify["logits_equal"].to_pylist()) == {True}
    workers = {commit["worker"]["worker_id"] for commit in read_commits(tmp_path / "ray").values()}
    assert workers == {"worker-0", "worker-1"}
    assert deterministic(tmp_path / "ray").equals(reference_table(config, tmp_path / "local"))


def test_a_sigkilled_actor_costs_no_row_and_doubles_none(ray_cluster, config, tmp_path):
    config = config.model_copy(update={"repeats": 20})  # so that the other actor is in the middle of a shard
    prepared = prepare_run(config, tmp_path / "ray")
    pid_of, killed = {}, []

    def kill_the_other(shard):
        """Once both actors are known, kills the one that did not just finish: it is in the middle of a shard."""
        commits = read_commits(tmp_path / "ray")
        pid_of.update({c["worker"]["worker_id"]: c["worker"]["pid"] for c in commits.values()})
        finished = commits[shard.shard_idx]["worker"]["worker_id"]
        if len(pid_of) == 2 and not killed:
            other = next(worker for worker in pid_of if worker != finished)
            os.kill(pid_of[other], signal.SIGKILL)
            killed.append(other)

    run_on_ray(prepared, kill_the_other)
    result = close_run(prepared)
    assert killed, "the test must have killed an actor"
    assert result.num_missing == 0
    assert deterministic(tmp_path / "ray").equals(reference_table(config, tmp_path / "local"))


def actor_pids() -> list[int]:
    """The evaluation actors among the descendants of this process, which started the cluster."""
    return [process.pid for process in psutil.Process().children(recursive=True) if is_actor(process)]


def is_actor(process: psutil.Process) -> bool:
    try:
        return "ray::EvalActor" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def test_a_worker_that_dies_every_time_ends_the_run_with_one_line(ray_cluster, config, tmp_path):
    stop = threading.Event()

    def kill_all():
        while not stop.wait(0.05):
            for pid in actor_pids():
                os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_all)
    killer.start()
    prepared = prepare_run(config.model_copy(update={"workers": 1}), tmp_path / "ray")
    try:
        with pytest.raises(AdaDecodeError, match=f"ended its worker {MAX_ATTEMPTS} times; .* same command continues"):
            run_on_ray(prepared, lambda shard: None)
    finally:
        stop.set()
        killer.join()
    run_on_ray(prepared, lambda shard: None)
    assert close_run(prepared).num_missing == 0


def test_more_workers_than_the_cluster_holds_are_refused_with_what_it_has(ray_cluster, config, tmp_path):
    prepared = prepare_run(config.model_copy(update={"workers": 3, "threads": None}), tmp_path / "ray")
    with pytest.raises(ResourcesError, match=r"--workers 3: the cluster has 2 CPUs and 0 GPUs; ask for 1\.\.2 workers"):
        run_on_ray(prepared, lambda shard: None)
    prepared = prepare_run(config.model_copy(update={"device": "cuda", "workers": 1}), tmp_path / "gpu")
    with pytest.raises(ResourcesError, match="--workers 1: the cluster has 2 CPUs and 0 GPUs"):
        run_on_ray(prepared, lambda shard: None)


def test_what_a_worker_refuses_reaches_the_driver_as_the_users_line(ray_cluster, config, tmp_path):
    (tmp_path / "no-heads").mkdir()
    prepared = prepare_run(config.model_copy(update={"heads": str(tmp_path / "no-heads")}), tmp_path / "ray")
    with pytest.raises(ExitHeadsError, match=r"no-heads.*train heads for this model"):
        run_on_ray(prepared, lambda shard: None)
