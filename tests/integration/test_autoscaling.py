"""`--workers auto` on a head without work, with Ray's own autoscaler: nodes are asked for, used and let go.

The nodes are raylets of this machine, which Ray's fake provider starts and ends; the autoscaler is the real one.
"""

import json
import os
import secrets
import subprocess
import sys
import tempfile

import pyarrow.parquet as pq
import pytest
import ray

from adadecode.runs.folder import read_run
from tests.heads import BIN, free_ports, started_head
from tests.integration.runs import deterministic
from tests.integration.test_submit import adadecode

HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"  # the one that the fake provider expects
HEAD_TYPE = "ray.head.default"
DEADLINE_S = 90.0


@pytest.fixture
def scaled_head(tmp_path):
    """A head without CPUs and an autoscaler that may start two nodes of one CPU; gives its address and environment."""
    assert not ray.is_initialized()
    port, dashboard, agent = free_ports(3)
    config = {
        "cluster_name": "scaled",
        "max_workers": 2,
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "external",  # as which it needs no file of defaults, which Ray's wheel lacks
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": f"127.0.0.1:{port}",
            "launch_multiple": True,
            "head_node_id": HEAD_ID,
        },
        "head_node_type": HEAD_TYPE,
        "available_node_types": {
            HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
        },
        **{key: {} for key in ("auth", "docker", "file_mounts")},
        **{f"{when}_commands": [] for when in ("initialization", "setup", "head_setup", "worker_setup")},
        **{f"{when}_commands": [] for when in ("head_start_ray", "worker_start_ray")},
        **{key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        "file_mounts_sync_continuously": False,
        "upscaling_speed": 1.0,
    }
    config_file = tmp_path / "autoscaling.json"
    config_file.write_text(json.dumps(config))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "RAY_TMPDIR": tempfile.mkdtemp(prefix="ray-"),  # a head leaves its address there for whoever comes next
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "RAY_NODE_TYPE_NAME": HEAD_TYPE,  # as `ray up` and KubeRay set it
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    options = [f"--autoscaling-config={config_file}"]
    with started_head(environment, port, dashboard, agent, *options, num_cpus=0):
        yield f"127.0.0.1:{port}", environment


# A process of its own, as Ray reads a token once in a process: nodes that were ever there, and CPUs that are in the end.
COUNT_NODES = f"""
import json, sys, time, ray
ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
give_up_at, num_cpus = time.monotonic() + {DEADLINE_S}, None
while num_cpus != 0 and time.monotonic() < give_up_at:
    time.sleep(0.5)
    num_cpus = sum(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
print(json.dumps([len(ray.nodes()), num_cpus]))
"""


@pytest.mark.slow
def test_nodes_are_asked_for_used_and_let_go(scaled_head, model_folder, heads_folder, prompts_file, tmp_path):
    address, environment = scaled_head
    run = ["--model", str(model_folder), "--heads", str(heads_folder), "--task", "jsonl", "--gamma", "0.05"]
    run += ["--data-file", str(prompts_file), "--max-new-tokens", "128", "--repeats", "24", "--shard-size", "1"]
    run += ["--methods", "vanilla,adadecode", "--threads", "1"]
    scaled = ["eval", *run, "--address", address, "--workers", "auto", "--out", str(tmp_path / "scaled")]
    done = adadecode(*scaled, environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert pq.read_table(tmp_path / "scaled" / "verify.parquet").num_rows > 0
    local = adadecode("eval", *run, "--local", "--out", str(tmp_path / "local"), environment=environment)
    assert local.returncode == 0, local.stdout + local.stderr
    assert deterministic(tmp_path / "scaled").equals(deterministic(tmp_path / "local"))
    assert len(read_run(tmp_path / "scaled")["workers"]) == 2

    counting = [sys.executable, "-c", COUNT_NODES, address]
    counted = subprocess.run(counting, env=environment, capture_output=True, text=True, timeout=2 * DEADLINE_S)
    num_nodes, num_cpus = json.loads(counted.stdout.splitlines()[-1])
    assert num_nodes == 3, "the head and the two nodes that were started"
    assert num_cpus == 0, "idle nodes stay"
