"""Trainings on real actors: the same outputs for any number of workers, one of which is killed."""

import os
import signal
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from adadecode.errors import ExitHeadsError, ResourcesError
from adadecode.model.head_files import TENSORS
from adadecode.settings import TrainConfig
from adadecode.training.curves import CURVES
from adadecode.training.outputs import OUTPUTS_DIR
from adadecode.training.train import train_from_config
from ray_jobs.training import train_on_ray
from tests.folders import write_prompts

NUM_PROMPTS = 24


@pytest.fixture
def config(model_folder, tmp_path) -> TrainConfig:
    prompts = [" ".join(f"w{3 + (7 * i + j) % 90}" for j in range(1 + i)) for i in range(NUM_PROMPTS)]
    return TrainConfig(
        model=str(model_folder),
        task="jsonl",
        data_file=str(write_prompts(tmp_path / "many.jsonl", prompts)),
        dtype="float32",
        max_new_tokens=12,
        epochs=2,
        batch_tokens=128,
        part_prompts=3,
        threads=1,
        workers=1,
    )


def stored(out: Path) -> dict[str, bytes]:
    """The parts of the outputs; what a killed process had begun to write is none."""
    return {path.name: path.read_bytes() for path in (out / OUTPUTS_DIR).glob("part-*")}


def actor_pids(name: str) -> list[int]:
    """The actors of a class among the descendants of this process, which started the cluster."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if f"ray::{name}" in " ".join(process.cmdline()):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
def test_two_workers_give_the_outputs_and_heads_of_a_training_without_ray(ray_cluster, config, tmp_path):
    train_from_config(config.model_copy(update={"workers": None}), tmp_path / "local", lambda line: None)
    out, lines = tmp_path / "ray", list[str]()
    facts = train_on_ray(config.model_copy(update={"workers": 2}), out, lines.append)
    assert stored(out) == stored(tmp_path / "local")
    assert len(stored(out)) == 8
    assert (out / TENSORS).read_bytes() == (tmp_path / "local" / TENSORS).read_bytes()
    assert pq.read_table(out / CURVES).equals(pq.read_table(tmp_path / "local" / CURVES))
    assert facts.training["num_prompts"] == NUM_PROMPTS
    assert any(line.startswith(f"outputs: {NUM_PROMPTS}/{NUM_PROMPTS} prompts, ") for line in lines)
    assert any(line.startswith("training: step ") for line in lines)


@pytest.mark.parametrize(
    ("name", "said", "epochs"),
    [
        ("OutputsActor", "outputs: ", 1),
        ("TrainActor", "checkpoint at step ", 80),  # long enough that the kill comes in mid-training
    ],
)
@pytest.mark.slow
def test_a_sigkilled_actor_is_replaced_and_costs_no_part_and_no_bit(
    ray_cluster, config, name, said, epochs, tmp_path, monkeypatch
):
    monkeypatch.setattr("adadecode.training.outputs.PROGRESS_EVERY_S", 0.0)  # a line after every part
    config = config.model_copy(update={"workers": 2, "epochs": epochs})
    killed: list[int] = []

    def say(line: str) -> None:
        if line.startswith(said) and not killed:
            for pid in actor_pids(name)[:1]:  # none when the last lines come after its end
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    train_on_ray(config, tmp_path / "killed", say)
    assert killed, "the test must have killed an actor"
    train_from_config(config.model_copy(update={"workers": None}), tmp_path / "local", lambda line: None)
    assert stored(tmp_path / "killed") == stored(tmp_path / "local")
    assert (tmp_path / "killed" / TENSORS).read_bytes() == (tmp_path / "local" / TENSORS).read_bytes()


def test_mistakes_reach_the_driver_as_the_users_line(ray_cluster, config, tmp_path):
    with pytest.raises(ExitHeadsError, match=r"must increase and lie in 1\.\.3"):
        train_on_ray(config.model_copy(update={"exits": (4,)}), tmp_path / "exits", lambda line: None)
    with pytest.raises(ResourcesError, match="--workers 3: the cluster has 2 CPUs"):
        train_on_ray(config.model_copy(update={"workers": 3}), tmp_path / "many", lambda line: None)
