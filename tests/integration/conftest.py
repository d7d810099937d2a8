"""A real local Ray cluster and a tiny saved model for the tests that need them."""

import logging
import os
from pathlib import Path

import pytest
import ray

from tests.folders import save_tiny_heads, save_tiny_model, write_prompts

EXITS = (1, 2, 3)
FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests with a cluster run in one process: two clusters on one machine get in each other's way."""
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("ray"))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A tiny Llama of four layers with its tokenizer."""
    path = tmp_path_factory.mktemp("model")
    save_tiny_model(path, num_layers=4)
    return path


@pytest.fixture(scope="session")
def heads_folder(tmp_path_factory, model_folder) -> Path:
    path = tmp_path_factory.mktemp("heads")
    save_tiny_heads(path, model_folder, EXITS)
    return path


@pytest.fixture
def prompts_file(tmp_path) -> Path:
    prompts = [" ".join(f"w{3 + (7 * i + j) % 90}" for j in range(1 + i)) for i in range(12)]
    return write_prompts(tmp_path / "prompts.jsonl", prompts)


@pytest.fixture(scope="module")
def ray_cluster():
    """Two CPUs, no dashboard, authentication explicitly off: nothing listens beyond loopback."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()
    del os.environ["RAY_AUTH_MODE"]
