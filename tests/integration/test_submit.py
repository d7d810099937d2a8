"""A job submitted to a head started by hand, with token authentication and the dashboard on loopback."""

import contextlib
import fcntl
import os
import pty
import secrets
import select
import signal
import socket
import subprocess
import tempfile
import termios
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import ProxyHandler, Request, build_opener

import pyarrow.parquet as pq
import pytest
import ray

from adadecode.runs.folder import read_run
from tests.completion_server import CompletionServer
from tests.heads import BIN, free_ports, started_head
from tests.integration.runs import deterministic
from tests.planted_secrets import VARIABLES, found_in, places_of_secrets, plant_files
from tests.planting import Row, plant

REPOSITORY = Path(__file__).parents[2]


class Head(NamedTuple):
    """Where a head's dashboard is, the environment to reach it, and where a driver joins it."""

    address: str
    environment: dict[str, str]
    join_at: str
    agent_port: int


@pytest.fixture(scope="module")
def head():
    """`ray start --head` in a process group of its own."""
    assert not ray.is_initialized()
    port, dashboard, agent = free_ports(3)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "PATH": "/usr/local/bin:/usr/bin:/bin",  # as of a head that was started by the path of its `ray` alone
        "OMP_NUM_THREADS": "1",
        "RAY_TMPDIR": tempfile.mkdtemp(prefix="ray-"),  # a head leaves its address there for whoever comes next
        **VARIABLES,  # secrets, which every process of the cluster knows and none may tell
    }
    address = f"http://127.0.0.1:{dashboard}"
    with started_head(environment, port, dashboard, agent):
        yield Head(address, environment, f"127.0.0.1:{port}", agent)


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


def adadecode(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess:
    command = [str(BIN / "adadecode"), *arguments]
    return subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)


def test_a_submitted_job_succeeds_with_the_tables_of_a_local_run_and_each_exit_code_comes_back(head, tmp_path):
    address, environment, *_ = head
    run = ["eval", "--task", "demo", "--limit", "2", "--max-new-tokens", "16", "--shard-size", "1", "--threads", "1"]
    submit = ["submit", "--address", address, *run]
    submitted = adadecode(*submit, "--workers", "2", "--out", str(tmp_path / "demo"), environment=environment)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert submitted.stdout.endswith("job demo: SUCCEEDED, exit code 0\n")
    assert "parity 4/4, logits 4/4" in submitted.stdout
    local = adadecode(*run, "--local", "--out", str(tmp_path / "local"), environment=environment)
    assert local.returncode == 0, local.stdout + local.stderr
    assert deterministic(tmp_path / "demo").equals(deterministic(tmp_path / "local"))
    assert read_run(tmp_path / "demo")["fingerprint"] == read_run(tmp_path / "local")["fingerprint"]

    plant(tmp_path / "demo", break_token)
    broken = adadecode(*submit, "--workers", "2", "--out", str(tmp_path / "demo"), environment=environment)
    assert broken.returncode == 3, broken.stdout + broken.stderr
    assert "0 to do" in broken.stdout, "a run that is submitted again is resumed"
    assert broken.stdout.endswith("job demo-2: FAILED, exit code 3\n")

    wrong = adadecode(*submit, "--gamma", "1.5", "--out", str(tmp_path / "wrong"), environment=environment)
    assert wrong.returncode == 2, "the driver's own exit code, not Ray's 1"
    assert "--gamma 1.5" in wrong.stdout

    no_token = {**environment, "RAY_AUTH_TOKEN": "0" * 64}
    refused = adadecode(*submit, "--out", str(tmp_path / "refused"), environment=no_token)
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    assert refused.stderr.startswith("adadecode: --address")


def break_token(rows: list[Row]) -> None:
    """Makes one token of adadecode's first row another."""
    row = next(row for row in rows if row["method"] == "adadecode")
    row["output_token_ids"][4] += 1 if row["output_token_ids"][4] == 0 else -1


@pytest.mark.slow
def test_a_run_is_one_job_that_is_stopped_left_and_resumed(head, tmp_path):
    address, environment, *_ = head
    out = tmp_path / "long"
    run = ["eval", "--task", "demo-math", "--limit", "16", "--repeats", "12", "--shard-size", "1", "--workers", "1"]
    submit = [str(BIN / "adadecode"), "submit", "--address", address, *run, "--threads", "1", "--out", str(out)]

    def of_jobs(command: str, *arguments: str) -> subprocess.CompletedProcess:
        return adadecode("jobs", command, "--address", address, *arguments, environment=environment)

    with on_a_terminal(submit, environment) as (process, terminal):  # Ctrl-C, and yes: the job is stopped
        read_until(terminal, "/16 samples, ")  # some are committed
        os.write(terminal, b"\x03")
        read_until(terminal, "stop job long too? [y/N]")
        os.write(terminal, b"y\n")
        said = read_until(terminal, "exit code")
        assert process.wait(60) == 4, said
    assert "planned rows are missing" in said, "its driver had the time to write its tables"
    assert "job long: STOPPED, exit code 4" in said

    twice = [adadecode(*submit[1:4], "--no-wait", *submit[4:], environment=environment) for _ in range(2)]
    assert [done.returncode for done in twice] == [0, 0]
    assert "job long-2: adadecode eval" in twice[0].stdout
    assert f"job long-2: runs for {out} already" in twice[1].stdout
    assert f"adadecode jobs logs --address {address} --follow long-2" in twice[0].stdout
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(
        submit, env=environment, cwd=REPOSITORY, **streams
    ) as left:  # Ctrl-C without a terminal: it is left running
        assert any("job long-2: runs" in line for line in left.stdout)
        time.sleep(1)
        left.send_signal(signal.SIGINT)
        said = left.stdout.read()
        assert left.wait(60) == 4
    assert "job long-2 is left running" in said
    assert f"adadecode jobs stop --address {address} long-2" in said
    with subprocess.Popen(submit, env=environment, cwd=REPOSITORY, **streams) as following:
        assert any("samples in" in line for line in following.stdout)
        stopped = of_jobs("stop", "long-2")
        assert (stopped.returncode, stopped.stdout.splitlines()[-1]) == (0, "job long-2: STOPPED")
        assert following.stdout.read().endswith("job long-2: STOPPED, exit code 4\n")
        assert following.wait(60) == 4
    again = of_jobs("stop", "long-2")
    assert (again.returncode, again.stdout) == (0, "job long-2 had ended before: STOPPED\n")

    done = adadecode(*submit[1:], environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "job long-3: SUCCEEDED, exit code 0" in done.stdout
    assert len(deterministic(out)) == 16 * 12 * 3
    assert "16/16 samples" in of_jobs("logs", "long-3").stdout
    assert of_jobs("logs", "--follow", "long-2").returncode == 4
    assert of_jobs("logs", "none").returncode == of_jobs("stop", "none").returncode == 2
    listed = of_jobs("ls").stdout.splitlines()
    assert [line.split()[:2] for line in listed[2:5]] == [
        ["long-3", "SUCCEEDED"],
        ["long-2", "STOPPED"],
        ["long", "STOPPED"],
    ]
    assert max(map(len, listed)) <= 80


@contextlib.contextmanager
def on_a_terminal(command: list[str], environment: dict[str, str]) -> Generator[tuple[subprocess.Popen, int]]:
    """A process whose input and output are a terminal that it heeds, and the other end of that."""
    near, far = pty.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    with subprocess.Popen(
        command,
        env=environment,
        cwd=REPOSITORY,
        stdin=far,
        stdout=far,
        stderr=far,
        start_new_session=True,
        preexec_fn=take_terminal,
    ) as process:
        os.close(far)
        try:
            yield process, near
        finally:
            process.kill()
            os.close(near)


def read_until(terminal: int, text: str) -> str:
    """What a terminal shows up to `text`; all of it, where the process ends before."""
    said = b""
    deadline = time.monotonic() + 120
    while text.encode() not in said and time.monotonic() < deadline:
        if select.select([terminal], [], [], 1.0)[0]:
            try:
                said += os.read(terminal, 65536)
            except OSError:  # the process has ended
                break
    assert text.encode() in said, said.decode()
    return said.decode().replace("\r\n", "\n")


@pytest.mark.slow
def test_a_submitted_certification_gets_no_key_and_its_verdict_comes_back(head, prompts_file, tmp_path):
    address, environment, *_ = head
    with CompletionServer() as server:
        run = ["--baseline", server.url, "--candidate", server.url, "--task", "jsonl", "--data-file", str(prompts_file)]
        run += ["--limit", "2", "--max-new-tokens", "4", "--out", str(tmp_path / "certified")]
        with_key = {**environment, "ADADECODE_CANDIDATE_API_KEY": "planted-key-of-a-server"}
        done = adadecode("submit", "--address", address, "certify", *run, environment=with_key)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ADADECODE_CANDIDATE_API_KEY is not sent" in done.stderr
    assert not any("authorization" in {name.lower() for name in asked.headers} for asked in server.asked)


@pytest.mark.slow
def test_a_head_whose_agents_port_another_ray_has_is_told_in_a_line(head, tmp_path):
    """The first head's agent listens where the second's should."""
    port, dashboard = free_ports(2)
    environment = head.environment | {"RAY_TMPDIR": tempfile.mkdtemp(prefix="ray-")}
    with started_head(environment, port, dashboard, head.agent_port):
        run = ["eval", "--task", "demo-math", "--limit", "1", "--out", str(tmp_path / "run")]
        address = f"http://127.0.0.1:{dashboard}"
        done = adadecode("submit", "--address", address, *run, environment=environment)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "another Ray on that host has the agent's port" in line


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
        assert any(line.startswith("job job") for line in submitted.stdout)  # reads up to it
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
    address, environment, *_ = head
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
    address, environment, *_ = head
    run = ["--model", str(model_folder), "--heads", str(heads_folder), "--task", "jsonl", "--data-file"]
    run += [str(prompts_file), "--limit", "2", "--max-new-tokens", "8", "--methods", "vanilla,adadecode"]
    grid = ["--gammas", "0.05,0.5", "--workers", "2", "--threads", "1", "--out", str(tmp_path / "grid")]
    done = adadecode("submit", "--address", address, "sweep", *run, *grid, environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    cells = {row["cell"] for row in pq.read_table(tmp_path / "grid" / "sweep.parquet").to_pylist()}
    assert len(cells) == 2, cells
    assert f"exec python -m adadecode sweep --model {model_folder}" in done.stdout


@pytest.mark.slow
def test_a_submitted_training_makes_heads_that_a_submitted_tune_takes(head, model_folder, prompts_file, tmp_path):
    address, environment, *_ = head
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


@pytest.mark.slow
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
