"""What is decided about a cluster without one."""

import subprocess
import sys
from pathlib import Path

import pytest

from adadecode.errors import ResourcesError, UsageError
from adadecode.settings import DecodeSettings, EvalConfig, TrainConfig
from ray_jobs.cluster import (
    NODE_GROUP,
    actor_resources,
    connect,
    most_threads,
    num_asked,
    num_places,
    with_absolute_paths,
)


@pytest.mark.parametrize(
    ("workers", "cpus_per_node", "threads"),
    [(1, [2], 2), (2, [2], 1), (1, [4, 4], 4), (2, [4, 4], 4), (3, [4, 4], 2), (4, [8, 1], 2), (9, [8, 1], 1)],
)
def test_a_worker_gets_as_many_threads_as_one_node_can_give_all_of_them(workers, cpus_per_node, threads):
    assert most_threads(workers, cpus_per_node) == threads


def test_local_paths_are_made_absolute_for_the_actors_and_hub_ids_are_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("heads").mkdir()
    Path("tiny.gguf").touch()
    assert with_absolute_paths(EvalConfig(model="tiny.gguf", task="gsm8k")).model == str(tmp_path / "tiny.gguf")
    config = with_absolute_paths(EvalConfig(model="meta-llama/Llama-3.1-8B", heads="heads", task="gsm8k"))
    assert config.model == "meta-llama/Llama-3.1-8B"
    assert config.heads == str(tmp_path / "heads")


def test_what_a_rival_drafts_with_is_made_absolute_too_and_the_demos_own_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("heads", "small", "demo", "demo-draft"):
        Path(name).mkdir()

    def drafting(**decode: str) -> EvalConfig:
        methods = ("vanilla", "speculative", "medusa")
        return with_absolute_paths(EvalConfig(task="gsm8k", methods=methods, decode=DecodeSettings(**decode)))

    decode = drafting(draft_model="small", medusa_heads="heads").decode
    assert (decode.draft_model, decode.medusa_heads) == (str(tmp_path / "small"), str(tmp_path / "heads"))
    config = drafting(draft_model="demo-draft", medusa_heads="demo")
    assert (config.model, config.decode.draft_model, config.decode.medusa_heads) == ("demo", "demo-draft", "demo")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "bogus", "127.0.0.1:99999"])
def test_an_address_where_nothing_listens_is_one_line_at_once(address, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(
        UsageError, match=f"--address '{address}': no Ray cluster answers there; give HOST:PORT"
    ) as caught:
        connect(address)
    assert "\n" not in str(caught.value)


STUCK = """
import atexit, threading, ray
from ray_jobs import cluster

def never() -> None:
    threading.Event().wait()

atexit.register(never)
ray.shutdown, cluster.LEAVE_S = never, 0.1
cluster.disconnect()
print("left")
"""


def test_a_head_that_hangs_keeps_no_process_from_leaving_or_ending():
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", STUCK], cwd=root, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "left\n"), done.stderr


def test_where_an_autoscaler_is_more_actors_are_asked_for_than_there_is_room_for():
    plain = [{"Labels": {}, "Resources": {"GPU": 8.0}}]
    scaled = [{"Labels": {NODE_GROUP: "head"}, "Resources": {}}]
    assert num_asked(8, 100, plain) == num_asked(8, 100, []) == 0
    assert [num_asked(places, 100, scaled) for places in (0, 1, 8, 50, 90)] == [4, 4, 8, 50, 10]
    assert num_asked(0, 2, scaled) == 2, "no more than shards are left"
    assert num_asked(8, 3, scaled) == 0, "at the end of a run nobody starts a node"


def nodes_of(*num_gpus: int, labels: dict[str, str] | None = None) -> list[dict]:
    """Nodes of 16 CPUs with so many GPUs each."""
    return [{"Labels": labels or {}, "Resources": {"CPU": 16.0, "GPU": float(gpus)}} for gpus in num_gpus]


def on_gpus(each: int, workers: int | str = 1, address: str | None = "127.0.0.1:6379") -> EvalConfig:
    return EvalConfig(device="cuda", gpus_per_worker=each, workers=workers, address=address)


@pytest.mark.parametrize(("each", "places"), [(1, 15), (2, 7), (3, 4), (4, 3), (8, 1)])
def test_a_worker_takes_its_gpus_of_one_node(each, places):
    nodes = nodes_of(8, 4, 3, 0)
    for workers in ("auto", 1):
        resources, _ = actor_resources(on_gpus(each, workers), nodes)
        assert resources == {"num_gpus": each, "num_cpus": 1}
        assert num_places(resources, nodes) == places
    actor_resources(on_gpus(each, places), nodes)
    with pytest.raises(
        ResourcesError, match=rf"--workers {places + 1}: .* 15 GPUs, .*; ask for 1\.\.{places} workers, or"
    ):
        actor_resources(on_gpus(each, places + 1), nodes)


def test_workers_share_the_cpus_whatever_gpus_they_take():
    assert actor_resources(on_gpus(4, "auto"), nodes_of(8, 8))[1] == 8
    assert actor_resources(on_gpus(1, 4), nodes_of(8, 8))[1] == 8


def test_more_gpus_than_any_node_has_are_one_line_unless_an_autoscaler_may_start_such_a_node():
    for nodes in (nodes_of(4, 4), nodes_of(1)):
        most = int(nodes[0]["Resources"]["GPU"])
        with pytest.raises(
            ResourcesError, match=rf"--gpus-per-worker 8: no node has as many; give 1\.\.{most}, or add"
        ):
            actor_resources(on_gpus(8, "auto"), nodes)
        with pytest.raises(
            ResourcesError, match=rf"--gpus-per-worker 8 of one node, of which none has over {most}; give"
        ):
            actor_resources(on_gpus(8), nodes)
    training = TrainConfig(task="gsm8k", device="cuda", gpus_per_worker=8, workers=1)
    with pytest.raises(ResourcesError, match="--gpus-per-worker 8 of one node"):
        actor_resources(training, nodes_of(4))
    scaled = nodes_of(4, labels={NODE_GROUP: "workers"})
    assert actor_resources(on_gpus(8, "auto"), scaled)[0]["num_gpus"] == 8
    assert num_asked(num_places({"num_gpus": 8}, scaled), 100, scaled) == 4, "nodes with 8 are asked for"
    assert actor_resources(on_gpus(8, "auto"), nodes_of(0))[0]["num_gpus"] == 8, "a node may join"
