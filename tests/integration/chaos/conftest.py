"""A run to disturb, what it gives undisturbed, and a cluster of nodes that can be lost."""

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from ray.cluster_utils import Cluster

from adadecode.settings import DecodeSettings, EvalConfig
from tests.folders import write_prompts
from tests.integration.runs import deterministic, run_in_process

NUM_PROMPTS, NUM_NODES = 16, 2


@pytest.fixture(scope="session")
def config(model_folder, heads_folder, tmp_path_factory) -> EvalConfig:
    """Eight shards."""
    prompts = [" ".join(f"w{3 + (7 * i + j) % 90}" for j in range(1 + i % 12)) for i in range(NUM_PROMPTS)]
    return EvalConfig(
        model=str(model_folder),
        heads=str(heads_folder),
        task="jsonl",
        data_file=str(write_prompts(tmp_path_factory.mktemp("data") / "prompts.jsonl", prompts)),
        methods=("vanilla", "adadecode"),
        decode=DecodeSettings(gamma=0.05, max_new_tokens=20),
        shard_size=2,
        repeats=4,
        workers=2,
        threads=1,
        max_errors="100%",
    )


@pytest.fixture(scope="session")
def undisturbed(config, tmp_path_factory) -> pa.Table:
    """The deterministic columns of the same run, done in this process."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    run_in_process(config, out)
    return deterministic(out)


@dataclass
class Nodes:
    """A real Ray cluster on this machine: a head without CPUs and nodes of one CPU each, which can be lost and join."""

    cluster: Cluster
    nodes: list[Any] = field(default_factory=list)

    def join(self, num_cpus: int = 1) -> None:
        self.nodes.append(self.cluster.add_node(num_cpus=num_cpus))

    def lose(self, idx: int) -> None:
        """Kills the node's raylet with SIGKILL; its actors die with it."""
        self.cluster.remove_node(self.nodes.pop(idx), allow_graceful=False)

    def until_known(self) -> None:
        """Returns when the head knows which nodes there are."""
        while sum(node["Alive"] for node in ray.nodes()) != len(self.nodes) + 1:
            time.sleep(0.1)

    def at_least(self, num: int) -> None:
        while len(self.nodes) < num:
            self.join()
        self.cluster.wait_for_nodes()

    @property
    def address(self) -> str:
        return str(self.cluster.address)


@pytest.fixture
def nodes(cluster) -> Nodes:
    """The cluster with at least its two nodes, whatever the test before did to them."""
    cluster.at_least(NUM_NODES)
    return cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "dashboard_host": "127.0.0.1"}
    )
    found = Nodes(cluster)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    yield found
    ray.shutdown()
    cluster.shutdown()
    del os.environ["RAY_AUTH_MODE"]


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "run"
