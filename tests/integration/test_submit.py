"""A job submitted to a head started by hand, with token authentication and the dashboard on loopback."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple
from urllib.request import ProxyHandler, Request, build_opener

import pyarrow.parquet as pq
import pytest
import ray

from adadecode.runs.folder import read_run
from tests.integration.runs import deterministic
from tests.planted_secrets import VARIABLES, found_in, places_of_secrets, plant_files

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class Head(NamedTuple):
    """Where a head's dashboard is, the environment to reach it, and where a driver joins it."""

    address: str
    environment: dict[str, str]
    join_at: str


@pytest.fixture(scope="module")
def head():
    """`ray start --head` in a process group of its own."""
    assert not ray.is_initialized()
    port, dashboard, agent = free_ports(3)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "RAY_TMPDIR": tempfile.mkdtemp(prefix="ray-"),  # a head leaves its address there for whoever comes next
        **VARIABLES,  # secrets, which every process of the cluster knows and none may tell
    }
    command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", f"--port={port}"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    command += [f"--dashboard-agent-listen-port={agent}", "--disable-usage-stats"]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        wait_for_head(process, dashboard)
        yield Head(address, environment, f"127.0.0.1:{port}")
    finally:
        process.terminate()  # `--block` ends the processes it started
        try:
            process.wait(timeout=20)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


class Wire:
    """A way to the port `to` that can be cut, with every connection that is on it, and mended."""

    def __init__(self, to: int) -> None:
        self._to, self._sockets = to, []
        self._open()

    def _open(self, port: int = 0) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it was cut
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
                self._sockets += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(65536):
                sink.sendall(content)
            sink.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        for one in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._sockets.clear()

    def mend(self) -> None:
        self._open(self.port)


def wait_for_head(process: subprocess.Popen, dashboard_port: int) -> None:
    """Returns once the dashboard accepts connections."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert process.poll() is None, "the head ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", dashboard_port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError("no dashboard after 90 s")


def adadecode(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess:
    command = [str(BIN / "adadecode"), *arguments]
    return subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)


def test_a_submitted_job_succeeds_with_the_tables_of_a_local_run(
    head, model_folder, heads_folder, prompts_file, tmp_path
):
    address, environment, _ = head
    run = ["--model", str(model_folder), "--heads", str(heads_folder), "--task", "jsonl"]
    run += ["--data-file", str(prompts_file), "--limit", "6", "--gamma", "0.05", "--max-new-tokens", "16"]
    run += ["--methods", "vanilla,adadecode", "--shard-size", "2", "--threads", "1"]
    submit = ["submit", "--address", address, "eval", *run]
    submitted = adadecode(*submit, "--workers", "2", "--out", str(tmp_path / "job"), environment=environment)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert "SUCCEEDED" in submitted.stdout
    assert "parity 6/6, logits 6/6" in submitted.stdout
    local = adadecode("eval", "--local", *run, "--out", str(tmp_path / "local"), environment=environment)
    assert local.returncode == 0, local.stdout + local.stderr
    assert deterministic(tmp_path / "job").equals(deterministic(tmp_path / "local"))
    assert read_run(tmp_path / "job")["fingerprint"] == read_run(tmp_path / "local")["fingerprint"]

    wrong = adadecode(*submit, "--gamma", "1.5", "--out", str(tmp_path / "wrong"), environment=environment)
    assert wrong.returncode == 2, "the driver's own exit code, not Ray's 1"
    assert "--gamma 1.5" in wrong.stdout

    no_token = {**environment, "RAY_AUTH_TOKEN": "0" * 64}
    refused = adadecode(*submit, "--out", str(tmp_path / "refused"), environment=no_token)
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    assert refused.stderr.startswith("adadecode: --address")


@pytest.mark.parametrize("tokens", [{"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": "disabled"}, {}])
def test_an_address_that_asks_for_another_token_is_one_line_that_says_so(head, tokens, tmp_path):
    environment = {**head.environment, "HOME": str(tmp_path), **tokens}  # where Ray looks for a token too
    if not tokens:
        del environment["RAY_AUTH_TOKEN"]
    refused = adadecode("eval", "--address", head.join_at, "--out", str(tmp_path / "run"), environment=environment)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("adadecode: ")]
    assert f"--address '{head.join_at}': the Ray cluster there asks for a token; set RAY_AUTH_MODE=token and" in line
    assert "Traceback" not in refused.stderr


@pytest.mark.slow
def test_a_job_is_followed_across_a_lost_connection_and_its_log_is_there_once(head, model_folder, tmp_path):
    wire = Wire(int(head.address.rpartition(":")[2]))
    submit = ["submit", "--address", f"http://127.0.0.1:{wire.port}", "eval", "--model", str(model_folder)]
    run = ["--task", "demo-math", "--limit", "4", "--methods", "vanilla", "--max-new-tokens", "4"]
    run += ["--workers", "1", "--threads", "1", "--out", str(tmp_path / "job")]
    command = [str(BIN / "adadecode"), *submit, *run]
    with subprocess.Popen(
        command,
        env={**head.environment, "PYTHONUNBUFFERED": "1"},
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as submitted:
        assert any(line.startswith("job raysubmit_") for line in submitted.stdout)  # reads up to it
        wire.cut()
        assert any("is lost; trying again for" in line for line in submitted.stdout)
        wire.mend()
        output = submitted.stdout.read()
    assert submitted.returncode == 0, output
    assert output.count("4 samples in 1 shards") == output.count("SUCCEEDED") == 1, output
    assert output.count(f"tables: {tmp_path / 'job'}") == 1, output


@pytest.mark.slow
def test_a_working_folder_is_sent_without_what_may_be_secret(head, model_folder, prompts_file, tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    for name in ("prompts.jsonl", ".env.jsonl"):
        (folder / name).write_bytes(prompts_file.read_bytes())
    submit = ["submit", "--address", head.address, "--working-dir", str(folder), "eval", "--model", str(model_folder)]
    run = ["--task", "jsonl", "--limit", "1", "--methods", "vanilla", "--max-new-tokens", "4", "--local"]
    for name, expected in (("prompts.jsonl", 0), (".env.jsonl", 2)):
        job = [*submit, *run, "--data-file", name, "--out", str(tmp_path / f"run{name}")]
        done = adadecode(*job, environment=head.environment)
        assert done.returncode == expected, done.stdout + done.stderr


@pytest.mark.slow
def test_a_job_leaves_no_secret_in_its_run_its_log_its_record_or_what_ray_keeps(
    head, model_folder, heads_folder, prompts_file, tmp_path
):
    address, environment, _ = head
    token = environment["RAY_AUTH_TOKEN"]
    work, left = tmp_path / "work", tmp_path / "left"
    work.mkdir()
    plant_files(work)
    (work / "prompts.jsonl").write_bytes(prompts_file.read_bytes())
    run = [
        "--model",
        str(model_folder),
        "--heads",
        str(heads_folder),
        "--task",
        "jsonl",
        "--data-file",
        "prompts.jsonl",
    ]
    run += ["--limit", "4", "--methods", "vanilla,adadecode", "--max-new-tokens", "8", "--threads", "1"]
    job = ["submit", "--address", address, "--working-dir", str(work), "eval", *run, "--out", str(left / "run")]
    done = adadecode(*job, environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    page = adadecode("report", str(left / "run"), "--html", "--out", str(left / "page.html"), environment=environment)
    assert page.returncode == 0, page.stderr
    asked = Request(f"{address}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
    with build_opener(ProxyHandler({})).open(asked, timeout=60) as answer:
        record = answer.read()
    assert b"prompts.jsonl" in record
    for told in (done.stdout + done.stderr + page.stdout + page.stderr).encode(), record:
        assert found_in(told, (token,)) == []
    assert list(places_of_secrets(left, (token,))) == []
    kept_by_ray = Path(environment["RAY_TMPDIR"])
    assert any(path.name == "prompts.jsonl" for path in kept_by_ray.rglob("*")), "the folder that was sent"
    assert list(places_of_secrets(kept_by_ray, (token,))) == []


@pytest.mark.slow
def test_a_submitted_sweep_ends_with_a_table_of_all_cells(head, model_folder, heads_folder, prompts_file, tmp_path):
    address, environment, _ = head
    run = ["--model", str(model_folder), "--heads", str(heads_folder), "--task", "jsonl", "--data-file"]
    run += [str(prompts_file), "--limit", "2", "--max-new-tokens", "8", "--methods", "vanilla,adadecode"]
    grid = ["--gammas", "0.05,0.5", "--workers", "2", "--threads", "1", "--out", str(tmp_path / "grid")]
    done = adadecode("submit", "--address", address, "sweep", *run, *grid, environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    cells = {row["cell"] for row in pq.read_table(tmp_path / "grid" / "sweep.parquet").to_pylist()}
    assert len(cells) == 2, cells
    assert f"python -m adadecode sweep --model {model_folder}" in done.stdout


@pytest.mark.slow
def test_a_submitted_training_makes_heads_that_a_submitted_tune_takes(head, model_folder, prompts_file, tmp_path):
    address, environment, _ = head
    submit = ["submit", "--address", address]
    data = ["--model", str(model_folder), "--task", "jsonl", "--data-file", str(prompts_file), "--max-new-tokens", "12"]
    heads = ["--exits", "1,2,3", "--epochs", "1", "--batch-tokens", "128", "--workers", "2", "--threads", "1"]
    heads += ["--out", str(tmp_path / "heads")]
    trained = adadecode(*submit, "train-heads", *data, *heads, environment=environment)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    tune = ["--heads", str(tmp_path / "heads"), "--folds", "2", "--repeats", "1", "--out", str(tmp_path / "tuned")]
    tuned = adadecode(*submit, "tune", *data, *tune, environment=environment)
    assert tuned.returncode == 0, tuned.stdout + tuned.stderr
    assert (tmp_path / "tuned" / "policy.yaml").exists()


def test_doctor_looks_at_a_cluster_that_asks_for_a_token_and_at_its_node(
    head, model_folder, heads_folder, prompts_file, tmp_path
):
    run = ["--model", str(model_folder), "--heads", str(heads_folder), "--task", "jsonl", "--data-file"]
    run += [str(prompts_file), "--threads", "1", "--address", head.join_at, "--out", str(tmp_path / "run")]
    done = adadecode("doctor", *run, environment=head.environment)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(line.startswith("ok ") for line in lines), done.stdout
    wanted = ("run folder", "versions", "clocks", "authentication", "dashboard", "memory on", "rows on", "methods on")
    for name in wanted:
        assert any(line.startswith(f"ok         {name}") for line in lines), (name, done.stdout)
    assert not (tmp_path / "run").exists()
