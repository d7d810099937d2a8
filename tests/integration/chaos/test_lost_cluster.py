"""A run whose cluster is lost while it works ends with its tables and one line, and the same command goes on."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster

from adadecode.runs.folder import read_commits, read_run
from adadecode.settings import EvalConfig
from tests.integration.chaos.faults import Gate, descendants
from tests.integration.runs import REPOSITORY, deterministic, eval_command

pytestmark = pytest.mark.chaos
TITLES = {
    "gcs_server": "/gcs/gcs_server ",
    "raylet": "/raylet/raylet ",
    "runtime env agent": "ray::RuntimeEnvAgent",
    "dashboard agent": "ray::DashboardAgent",
}
HEAD = {"num_cpus": 1, "include_dashboard": False}
IS_HEAD = "--head"  # to a raylet


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


def kill_part(of: int, name: str) -> None:
    """Kills the part `name` of the only cluster that process `of` started."""
    (pid,) = (pid for pid, command in descendants(of) if TITLES[name] in f"{command.split(' --')[0]} ")
    os.kill(pid, signal.SIGKILL)


def lose(config: EvalConfig, out: Path, name: str, *, is_ours: bool) -> None:
    """Runs `config` until two shards are committed and kills a part of its cluster; checks how the command ends."""
    command = eval_command(config, out, "tests.integration.chaos.gated")
    with Gate(out) as gate:
        gate.close(2, "generate")
        driver = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        gate.wait_for(1, lambda: driver.poll() is not None)
        kill_part(driver.pid if is_ours else os.getpid(), name)
        output, errors = driver.communicate()
    assert driver.returncode == 1, output + errors
    reason, missing = errors.strip().splitlines()[-2:]
    assert "planned rows are missing; go on with: " in missing
    assert f"--out {out}" in missing
    assert reason.startswith("adadecode: the Ray cluster is gone (")
    assert "Traceback" not in output + errors
    assert read_run(out)["status"] == "incomplete"
    assert pq.read_table(out / "summary.parquet").num_rows == len(config.methods)
    assert [json.loads(file.read_bytes())["released"] for file in (out / "lease").iterdir()] == [True]


def finish(config: EvalConfig, out: Path) -> None:
    """Runs the same command again, without faults; what was committed stays."""
    before = {idx: commit["attempt"] for idx, commit in read_commits(out).items()}
    assert before
    again = subprocess.run(eval_command(config, out), capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert before.items() <= {idx: commit["attempt"] for idx, commit in read_commits(out).items()}.items()


@pytest.mark.parametrize("name", TITLES)
def test_a_command_that_loses_the_cluster_it_started_ends_as_documented_and_goes_on(config, undisturbed, out, name):
    config = config.model_copy(update={"workers": 1})
    lose(config, out, name, is_ours=True)
    finish(config, out)
    assert deterministic(out).equals(undisturbed)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A cluster to join, of three nodes of one CPU with the head among them, that this process started."""
    cluster = Cluster(initialize_head=True, head_node_args=HEAD)
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


def test_a_command_on_three_nodes_loses_one_and_then_lacks_nothing(cluster, config, undisturbed, out):
    config = config.model_copy(update={"workers": 3, "address": cluster.address})
    command = eval_command(config, out, "tests.integration.chaos.gated")
    with Gate(out) as gate:
        gate.close(2, "generate")
        driver = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        at_work = gate.wait_for(3, lambda: driver.poll() is not None)
        raylets = {psutil.Process(pid).ppid() for pid in at_work}
        assert len(raylets) == 3, "a worker on each node"
        (of_head,) = (pid for pid in raylets if IS_HEAD in psutil.Process(pid).cmdline())
        os.kill(max(raylets - {of_head}), signal.SIGKILL)
        gate.wait_for_at_most(2)
        gate.open()
        output, _ = driver.communicate()
    assert driver.returncode == 0, output
    assert len(read_commits(out)) == len(undisturbed) // (2 * config.repeats * len(config.methods))
    assert deterministic(out).equals(undisturbed)


def test_a_command_whose_head_is_killed_ends_as_documented_and_goes_on_under_a_new_one(
    cluster, config, undisturbed, out
):
    config = config.model_copy(update={"workers": "auto", "address": cluster.address})
    lose(config, out, "gcs_server", is_ours=False)
    cluster.shutdown()
    new = Cluster(initialize_head=True, head_node_args=HEAD | {"gcs_server_port": int(config.address.split(":")[1])})
    try:
        assert new.address == config.address
        finish(config, out)
    finally:
        new.shutdown()
    assert deterministic(out).equals(undisturbed)
