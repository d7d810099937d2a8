"""Workers of several GPUs on a real Ray cluster, of nodes that have GPUs in name only: who is given which, and where."""

import json
import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

# Nodes of 4, 3 and 1 GPUs; prints the places of as many actors of `eval --gpus-per-worker 2` as they hold.
PLACES = """
import json, ray
from ray.cluster_utils import Cluster
from adadecode.settings import EvalConfig
from ray_jobs.cluster import actor_resources, num_places
from ray_jobs.events import Started
from ray_jobs.pool import Pool, PooledActor

class Idle(PooledActor):
    def __init__(self, name, task):
        pass
    def load(self):
        pass

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
for num_gpus in (4, 3, 1):
    cluster.add_node(num_cpus=4, num_gpus=num_gpus)
ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
nodes = [node for node in ray.nodes() if node["Alive"]]
config = EvalConfig(device="cuda", gpus_per_worker=2, workers="auto", address=cluster.address)
resources, threads = actor_resources(config, nodes)
places = num_places(resources, nodes)
pool = Pool(ray.remote(Idle), None, threads, resources)
for idx in range(places + 1):
    pool.start(f"actor {idx}")
while sum(place is not None for place in pool.places.values()) < places:
    pool.poll(5.0)
free = {node["NodeID"]: int(node["Resources"].get("GPU", 0)) for node in nodes}
found = [(free[place.node_id], place.node_id, place.gpus, str(place)) for place in pool.places.values()]
late = [event for event, _ in pool.poll(2.0) if isinstance(event, Started)]
print(json.dumps({"places": places, "found": found, "late": len(late)}))
pool.stop_all()
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_worker_has_its_gpus_on_one_node_to_itself_and_one_too_many_waits():
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TMPDIR": tempfile.mkdtemp(prefix="ray-"),
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", PLACES]
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["places"] == len(told["found"]) == 3
    assert sorted(of_node for of_node, *_ in told["found"]) == [3, 4, 4], (
        "two fit the node of four, none the node of one"
    )
    taken = [(node_id, gpu) for _, node_id, gpus, _ in told["found"] for gpu in gpus]
    assert len(set(taken)) == len(taken) == 6, "no GPU has two workers"
    assert all(len(gpus) == 2 for _, _, gpus, _ in told["found"])
    assert all(name.count("GPU ") == 2 for *_, name in told["found"]), "the display names both"
    assert told["late"] == 0
