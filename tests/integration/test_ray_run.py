"""Evaluation runs on real actors: their tables, and what they refuse."""

import shutil
from pathlib import Path

import pytest
import ray

from adadecode.errors import AdaDecodeError, ExitHeadsError, ResourcesError, UsageError
from adadecode.kernels.library import load_library
from adadecode.runs.folder import read_commits, read_run
from adadecode.settings import DecodeSettings, EvalConfig
from ray_jobs.scheduler import Limits
from tests.folders import undo_shard
from tests.integration.chaos.faults import UnloadableEvaluator
from tests.integration.runs import Recorder, deterministic, run_in_process, run_on_cluster
from tests.models import needs_compiler


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


def test_two_actors_commit_the_tables_of_a_local_run(ray_cluster, config, tmp_path):
    config = config.model_copy(update={"repeats": 4, "profile": 1})
    observer = Recorder()
    result = run_on_cluster(config, tmp_path / "ray", observer=observer)
    (trace,) = (tmp_path / "ray" / "profile").iterdir()
    assert trace.name in ("worker-0-00011.json.gz", "worker-1-00011.json.gz"), "of the longest shard, which is first"
    assert sum(outcome.num_samples for outcome in observer.outcomes) == 12
    assert result.num_missing == 0
    assert set(result.verify["parity"].to_pylist()) == {"exact"}
    assert set(result.verify["logits_equal"].to_pylist()) == {True}
    workers = {state.name for states in observer.workers for state in states}
    assert workers == {"worker-0", "worker-1"}
    assert {commit["worker"]["worker_id"] for commit in read_commits(tmp_path / "ray").values()} <= workers
    assert {state.phase for states in observer.workers for state in states} >= {"starting", "working"}
    for worker in read_run(tmp_path / "ray")["workers"]:
        assert worker["threads"] == 1
        assert min(worker["start_up"][lap] for lap in ("process_s", "imports_s", "model_s", "rows_s")) > 0
    run_in_process(config, tmp_path / "local")
    assert deterministic(tmp_path / "ray").equals(deterministic(tmp_path / "local"))


@needs_compiler
def test_actors_take_the_kernels_that_the_run_came_to_elsewhere(ray_cluster, config, tmp_path, monkeypatch):
    config, out = config.model_copy(update={"dtype": "float32"}), tmp_path / "run"
    load_library.cache_clear()
    with monkeypatch.context() as patch:
        patch.setenv("CXX", "/nowhere/no-such-g++")
        run_in_process(config, out)
    load_library.cache_clear()
    undo_shard(out, 0)
    observer = Recorder()
    assert run_on_cluster(config, out, observer=observer).num_missing == 0
    commits = read_commits(out)
    assert commits[0]["worker"]["worker_id"] in ("worker-0", "worker-1")
    assert {commit["worker"]["kernels"] for commit in commits.values()} == {"eager"}
    (line,) = [line for line in observer.lines if line.startswith("kernels: ")]
    assert "no-such-g++ cannot compile" in line


@pytest.mark.chaos
def test_workers_that_die_while_loading_end_the_run_with_one_line_and_the_same_command_continues(
    ray_cluster, config, tmp_path
):
    config = config.model_copy(update={"workers": 1})
    limits = Limits(max_load_failures=2, backoff_s=0.1)
    with pytest.raises(AdaDecodeError, match=r"2 workers ended while loading .* same command continues"):
        run_on_cluster(config, tmp_path / "ray", limits=limits, actor_class=ray.remote(UnloadableEvaluator))
    assert run_on_cluster(config, tmp_path / "ray").num_missing == 0


def test_more_workers_than_the_cluster_holds_are_refused_with_what_it_has(ray_cluster, config, tmp_path):
    with pytest.raises(ResourcesError, match=r"--workers 3: the cluster has 2 CPUs and 0 GPUs; ask for 1\.\.2 workers"):
        run_on_cluster(config.model_copy(update={"workers": 3, "threads": None}), tmp_path / "ray")
    with pytest.raises(ResourcesError, match="--workers 1: the cluster has 2 CPUs and 0 GPUs"):
        run_on_cluster(config.model_copy(update={"device": "cuda", "workers": 1}), tmp_path / "gpu")


@pytest.mark.slow
def test_what_a_worker_refuses_reaches_the_driver_as_the_users_line(ray_cluster, config, tmp_path):
    (tmp_path / "no-heads").mkdir()
    observer = Recorder()
    with pytest.raises(ExitHeadsError, match=r"no-heads.*train heads for this model"):
        run_on_cluster(
            config.model_copy(update={"heads": str(tmp_path / "no-heads")}), tmp_path / "ray", observer=observer
        )
    assert observer.lines == [], "that line is the only one"


@pytest.mark.slow
def test_a_model_that_cannot_be_used_is_the_users_line_from_a_worker_too(ray_cluster, config, model_folder, tmp_path):
    quantised = Path(shutil.copytree(model_folder, tmp_path / "model"))
    (quantised / "quantize_config.json").write_text("{}")
    config = config.model_copy(update={"model": str(quantised), "workers": 1})
    with pytest.raises(
        UsageError, match=r"its weights are quantised \(quantize_config\.json\): give the full-precision"
    ):
        run_on_cluster(config, tmp_path / "ray")


@pytest.mark.slow
def test_what_a_worker_finds_odd_about_a_model_is_stored_with_the_run(ray_cluster, config, model_folder, tmp_path):
    odd = Path(shutil.copytree(model_folder, tmp_path / "model"))
    (odd / "generation_config.json").write_text("{")
    config = config.model_copy(update={"model": str(odd), "workers": 1, "limit": 1})
    run_on_cluster(config, tmp_path / "ray")
    ((note,),) = [worker["model_notes"] for worker in read_run(tmp_path / "ray")["workers"]]
    assert note.startswith("generation_config.json is not JSON")
