"""`doctor` and the quick look of `eval` on a cluster of three real nodes, with faults planted between them."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import ray

REPOSITORY = Path(__file__).parents[2]

# Keeps a cluster of three nodes until its input ends; says its address, then plants other versions when it is told to.
CLUSTER = """
import json, sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
for _ in range(2):
    cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
for line in sys.stdin:
    from ray._common.usage import usage_constants, usage_lib
    from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
    from ray._raylet import GcsClient
    gcs = GcsClient(address=cluster.address)
    told = json.dumps(usage_lib.get_cluster_metadata(gcs) | {"ray_version": line.strip()}).encode()
    gcs.internal_kv_put(usage_constants.CLUSTER_METADATA_KEY, told, overwrite=True, namespace=KV_NAMESPACE_CLUSTER)
    print("planted", flush=True)
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[subprocess.Popen, str, dict[str, str]]]:
    """Three nodes with token authentication in processes of their own: the process, its address, the environment."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TMPDIR": tempfile.mkdtemp(prefix="ray-"),
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
    }
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        yield process, process.stdout.readline().strip(), environment
        process.stdin.close()
        process.wait(timeout=60)


def run(*arguments: object, environment: dict[str, str]) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "adadecode", *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)


def problems(done: subprocess.CompletedProcess) -> list[str]:
    """The lines that are not ok."""
    return [line for line in done.stdout.splitlines() if not line.startswith("ok ")]


# A node whose files at $1 are its own: what others write there it does not see, and the other way round.
LONE_NODE = 'mount -t tmpfs none "$1" && shift && exec "$@"'
MOUNTS_OF_ITS_OWN = ["unshare", "--user", "--map-root-user", "--mount"]
WAIT_FOR_NODES = """
import sys, time, ray
ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
give_up_at = time.monotonic() + 60
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]) and time.monotonic() < give_up_at:
    time.sleep(0.2)
"""


@contextlib.contextmanager
def node_that_does_not_share(folder: Path, address: str, environment: dict[str, str]) -> Generator[None]:
    """A fourth node in the cluster, which sees another `folder`."""
    start = [str(Path(sys.executable).parent / "ray"), "start", "--block", f"--address={address}", "--num-cpus=1"]
    start += ["--disable-usage-stats", "--dashboard-agent-listen-port=0"]
    command = [*MOUNTS_OF_ITS_OWN, "bash", "-c", LONE_NODE, "node", str(folder), *start]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_node_that_does_not_share_the_run_folder_is_named_by_doctor_and_by_eval(
    cluster, model_folder, prompts_file, tmp_path
):
    if shutil.which("unshare") is None or subprocess.run([*MOUNTS_OF_ITS_OWN, "true"], capture_output=True).returncode:
        pytest.skip("this system gives users no namespaces of their own")
    _, address, environment = cluster
    shared = tmp_path / "shared"
    shared.mkdir()
    flags = ["--model", model_folder, "--task", "jsonl", "--data-file", prompts_file, "--methods", "vanilla"]
    flags += ["--limit", 1, "--max-new-tokens", 2, "--threads", 1, "--address", address, "--out", shared / "run"]
    with node_that_does_not_share(shared, address, environment):
        subprocess.run([sys.executable, "-c", WAIT_FOR_NODES, address, "4"], env=environment, check=True, timeout=120)
        looked = run("doctor", *flags, environment=environment)
        evaluated = run("eval", *flags, "--workers", 4, environment=environment)
    said = f"the run folder {shared / 'run'} is not the driver's; the other nodes do the work: give an --out"
    (line,) = problems(looked)
    assert line.startswith("warning    run folder: ")
    assert said in line
    assert looked.returncode == 1
    (line,) = [line for line in evaluated.stdout.splitlines() if line.startswith("warning ")]
    assert said in line
    assert evaluated.returncode == 0, evaluated.stdout + evaluated.stderr


@pytest.mark.slow
def test_doctor_looks_at_every_node_and_names_each_planted_fault_in_one_line(
    cluster, model_folder, heads_folder, prompts_file, tmp_path
):
    process, address, environment = cluster
    flags = ["--model", model_folder, "--heads", heads_folder, "--task", "jsonl", "--data-file", prompts_file]
    flags += ["--limit", 3, "--max-new-tokens", 8, "--threads", 1, "--address", address, "--out", tmp_path / "run"]
    fine = run("doctor", *flags, environment=environment)
    assert fine.returncode == 0, fine.stdout + fine.stderr
    assert problems(fine) == []
    for name in ("versions", "rows on 3 nodes", "methods on 3 nodes"):
        assert f"ok         {name}: " in fine.stdout, fine.stdout
    assert f"{tmp_path / 'run'} is written by 3 nodes and read here" in fine.stdout
    assert not (tmp_path / "run").exists()

    wrong = run("doctor", *flags, environment={**environment, "RAY_AUTH_TOKEN": "0" * 64})
    (line,) = problems(wrong)
    assert wrong.returncode == 2
    assert line.startswith(f"will fail  cluster: --address '{address}': the Ray cluster there asks for a token; set")

    too_many = run("doctor", *flags, "--workers", 4, environment=environment)
    (line,) = problems(too_many)
    assert line.startswith("will fail  cluster: --workers 4: the cluster has 3 CPUs and 0 GPUs; ask for 1..3 workers")

    evaluated = run("eval", *flags, "--workers", 2, environment=environment)
    assert evaluated.returncode == 0, evaluated.stdout + evaluated.stderr
    assert "parity 3/3" in evaluated.stdout

    process.stdin.write("2.59.0\n")
    process.stdin.flush()
    assert process.stdout.readline() == "planted\n"
    for command in ("doctor", "eval"):
        mixed = run(command, *flags, "--out", tmp_path / "mixed", environment=environment)
        line = problems(mixed)[0] if command == "doctor" else mixed.stderr.splitlines()[-1]
        assert mixed.returncode == 2
        assert (
            f"--address '{address}': the cluster has Ray 2.59.0 there and {ray.__version__} here: install the same"
            in line
        )
