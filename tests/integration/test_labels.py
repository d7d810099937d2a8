"""Selectors of labels on a real cluster of three nodes: Ray and this project take the same nodes, and only these work."""

import logging
import os
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import ray
from ray.cluster_utils import Cluster

from adadecode.errors import UsageError
from adadecode.runs.folder import read_run
from adadecode.settings import DecodeSettings, EvalConfig
from ray_jobs.labels import ACCELERATOR, selected, selector_of
from ray_jobs.nodes import alive_nodes, check_before_run
from ray_jobs.pool import Pool, PooledActor
from tests.integration.runs import Recorder, deterministic, run_in_process, run_on_cluster

pytestmark = pytest.mark.slow
DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A head without CPUs and three nodes of one CPU and one GPU, which nobody uses."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "dashboard_host": "127.0.0.1"}
    )
    for gpu, zone in (("A100", "a"), ("H100", "a"), ("H100", "b")):
        cluster.add_node(num_cpus=1, num_gpus=1, labels={ACCELERATOR: gpu, "zone": zone})
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    cluster.wait_for_nodes()
    yield str(cluster.address)
    ray.shutdown()
    cluster.shutdown()
    del os.environ["RAY_AUTH_MODE"]


@pytest.fixture
def config(model_folder, heads_folder, prompts_file, address) -> EvalConfig:
    return EvalConfig(
        model=str(model_folder),
        heads=str(heads_folder),
        dtype="float32",
        kernels="eager",
        task="jsonl",
        data_file=str(prompts_file),
        methods=("vanilla", "adadecode"),
        decode=DecodeSettings(gamma=0.05, max_new_tokens=6),
        shard_size=1,
        workers="auto",
        threads=1,
        address=address,
    )


@ray.remote
class Idle(PooledActor):
    """Loads nothing."""

    def __init__(self, worker_id: str, task: None) -> None:
        pass

    def load(self) -> None:
        pass


@pytest.mark.parametrize("selector", ["zone=a", f"{ACCELERATOR}=!A100,zone=in(a,c)", "zone=!in(a,b)", "zone=c"])
def test_actors_start_on_the_nodes_that_count_as_places_and_on_no_other(selector, config):
    config = config.model_copy(update={"label_selector": selector})
    with_cpus = [node for node in alive_nodes() if node["Resources"].get("CPU")]
    expected = {node["NodeID"] for node in selected(config, with_cpus)}
    pool = Pool(Idle, None, 1, {"num_cpus": 1}, label_selector=selector_of(config))
    try:
        for idx in range(len(expected) + 1):
            pool.start(f"worker-{idx}")
        give_up_at = time.monotonic() + DEADLINE_S
        while len(pool.places) < len(expected) and time.monotonic() < give_up_at:
            pool.poll(0.2)
        pool.poll(1.0)  # one more has no place
        assert sorted(place.node_id for place in pool.places.values()) == sorted(expected)
    finally:
        pool.stop_all()


def test_a_run_takes_the_places_of_its_nodes(config, tmp_path):
    run_in_process(config.model_copy(update={"address": None}), tmp_path / "local")
    recorder = Recorder()
    run_on_cluster(config.model_copy(update={"label_selector": "zone=a"}), tmp_path / "run", observer=recorder)
    assert deterministic(tmp_path / "run").equals(deterministic(tmp_path / "local"))
    assert max(len(states) for states in recorder.workers) == 2
    assert read_run(tmp_path / "run")["starts"][0]["placement"]["label_selector"] == "zone=a"


def test_gpus_of_two_types_end_a_run_before_it_begins_in_one_line(config, tmp_path):
    def look(**settings: object) -> list[str]:
        said: list[str] = []
        mixed = config.model_copy(update={"device": "cuda", **settings})
        prepared = SimpleNamespace(config=mixed, folder=SimpleNamespace(location=str(tmp_path)))
        check_before_run(prepared, said.append)
        return said

    with pytest.raises(
        UsageError, match=r"^GPU types: A100 on 1 node, H100 on 2 nodes, and .* with --label-selector "
    ) as caught:
        look()
    assert "\n" not in str(caught.value)
    assert look(label_selector=f"{ACCELERATOR}=H100") == []
    (line,) = look(label_selector=f"{ACCELERATOR}=in(A100,H100)")
    assert line.startswith("warning    GPU types: A100 on 1 node, H100 on 2 nodes, as --label-selector says")
