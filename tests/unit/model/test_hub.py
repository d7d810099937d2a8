"""Workers of one node that load a model of the hub at the same time: each of its files is fetched once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from adadecode.errors import UsageError
from adadecode.model.files import ModelFiles
from adadecode.model.weight_files import fetch_weights
from tests.folders import save_tiny_model
from tests.hub import serving
from tests.model_folders import edit

LOAD = """
import json, sys
from adadecode.model.load import load_model
from adadecode.settings import ModelSettings
from adadecode.stopwatch import stopwatch
print("imported", flush=True)
sys.stdin.readline()
with stopwatch() as watch:
    model, _ = load_model(ModelSettings(model="org/model", dtype="float32", kernels="eager"))
print(json.dumps([model.model_hash, watch.seconds.get("fetch")]))
"""


def split_in_two(folder: Path) -> None:
    """The checkpoint in `folder` as an index and two files."""
    whole = folder / "model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    names = sorted(tensors)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, held in parts.items() for name in held}
    edit(folder, "model.safetensors.index.json", metadata={}, weight_map=weight_map)


@pytest.mark.slow
def test_of_workers_on_one_node_one_fetches_each_file_of_a_hubs_model(tmp_path):
    folder = save_tiny_model(tmp_path / "served", num_layers=2)
    split_in_two(folder)
    with serving(folder, "org/model", slow_s=1.0) as hub:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {"HF_ENDPOINT": hub.address, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
        environment |= {"HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", LOAD], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for _ in range(2)
        ]
        for worker in workers:
            assert worker.stdout.readline() == "imported\n"
        told = []
        for worker in workers:
            worker.stdin.write("\n")
            worker.stdin.flush()
        for worker in workers:
            told.append(worker.communicate(timeout=60)[0])
            assert worker.returncode == 0, told
    assert {"config.json", "tokenizer.json", "one.safetensors", "two.safetensors"} <= hub.fetched.keys()
    assert set(hub.fetched.values()) == {1}, hub.fetched
    (weights, fetch_s), (others_weights, others_fetch_s) = map(json.loads, told)
    assert weights == others_weights
    assert min(fetch_s, others_fetch_s) > 1.0, "the one that did not fetch waited"


def test_a_hubs_model_with_pickled_weights_alone_is_refused_and_nothing_of_them_is_fetched(tmp_path, monkeypatch):
    """In this process: where the hub and its cache are is read when its client is imported."""
    folder = save_tiny_model(tmp_path / "served", num_layers=2)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with serving(folder, "org/pickled") as hub:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        constants = {"HF_HUB_CACHE": str(tmp_path / "cache"), "ENDPOINT": hub.address}
        constants["HUGGINGFACE_CO_URL_TEMPLATE"] = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in constants.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        with pytest.raises(UsageError, match=r"its weights are pickled \(pytorch_model.bin\).*may hold code"):
            fetch_weights(ModelFiles("org/pickled", "org/pickled"))
    assert "pytorch_model.bin" not in hub.fetched
