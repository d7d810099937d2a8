"""`adadecode certify` by Ray actors: every prompt once, whoever dies, and keys nowhere but with the servers."""

import contextlib
import json
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from ray._private import worker as ray_worker

from adadecode import api
from adadecode.certify.sides import Servers
from adadecode.errors import UsageError
from adadecode.runs.folder import read_samples
from adadecode.settings import CertifyConfig
from tests.completion_server import server_process
from tests.folders import write_prompts

KEY = "sk-5d1c07be-secret"
NUM_PROMPTS, PASSES = 48, 2
PROMPTS = [f"prompt {idx}" for idx in range(NUM_PROMPTS)]


@pytest.fixture
def settings(tmp_path, monkeypatch) -> dict:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    data = {"task": "jsonl", "data_file": str(write_prompts(tmp_path / "prompts.jsonl", PROMPTS))}
    return data | {"passes": PASSES, "max_new_tokens": 4, "timeout_s": 20.0, "workers": 2, "concurrency": 4}


def pids_of(name: str) -> list[int]:
    """The processes with `name` in their command among the descendants of this one, which started the cluster."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if name in " ".join(process.cmdline()):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def committers(folder: Path) -> set[str]:
    """The workers that have committed a prompt."""
    return {json.loads(file.read_text())["worker"]["worker_id"] for file in (folder / "commits").glob("*.json")}


def is_in_memory(pid: int, text: str) -> bool:
    """Whether a process has `text` somewhere in its memory."""
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in maps:
            span, rights, *_ = line.split()
            start, end = (int(part, 16) for part in span.split("-"))
            with contextlib.suppress(OSError, OverflowError):  # not all of it can be read
                memory.seek(start)
                if "w" in rights and text.encode() in memory.read(end - start):
                    return True
    return False


def logs() -> bytes:
    """What every process of the cluster has logged."""
    assert ray_worker._global_node is not None
    files = Path(ray_worker._global_node.get_logs_dir_path()).rglob("*")
    return b"".join(file.read_bytes() for file in files if file.is_file())


def test_two_workers_ask_for_every_prompt_once(ray_cluster, settings, tmp_path):
    with server_process(tmp_path / "server.log", delay_s=0.05) as server:
        config = CertifyConfig(baseline=server.url, candidate=server.url, **settings | {"limit": 8})
        result = api.certify(config, tmp_path / "run")
        num_asked = Counter(server.asked())
        alone = config.model_copy(update={"workers": None})
        assert api.certify(alone, tmp_path / "run").exit_code == 0  # the same run, of which nothing is left to ask
        assert Counter(server.asked()) == num_asked
    assert (result.exit_code, result.verdict.outcome, result.verdict.num_prompts) == (0, "exact", 8)
    assert num_asked == dict.fromkeys(PROMPTS[:8], 2 * PASSES)
    rows = read_samples(tmp_path / "run").to_pylist()
    assert {row["worker_id"] for row in rows} <= {
        "worker-0",
        "worker-1",
    }  # one may have done all before the other began


@pytest.mark.slow
def test_a_worker_that_cannot_ask_a_server_says_from_where(ray_cluster, settings, tmp_path, monkeypatch):
    monkeypatch.setattr("ray_jobs.certify.without_secrets", elsewhere)
    with server_process(tmp_path / "server.log") as server:
        config = CertifyConfig(baseline=server.url, candidate=server.url, **settings)
        with pytest.raises(UsageError, match=r"from worker-[01] on .*: --baseline-model 'gone': .* serves tiny"):
            api.certify(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "incomplete"


def elsewhere(servers: Servers) -> CertifyConfig:
    """Settings whose baseline has another model, as of a server that was replaced while workers start."""
    return servers.config.model_copy(update={"baseline_model": "gone"})


@pytest.mark.slow
def test_a_sigkilled_worker_costs_what_it_had_in_flight_and_no_key_is_kept(ray_cluster, settings, tmp_path):
    lines, environments = list[str](), list[str]()

    with (
        server_process(tmp_path / "baseline.log", key=KEY) as baseline,
        server_process(tmp_path / "candidate.log", delay_s=0.05) as candidate,
    ):

        def kill() -> None:
            until = time.monotonic() + 60
            while len(committers(tmp_path / "run")) < 2:
                assert time.monotonic() < until, "one worker did it all"
                time.sleep(0.01)
            pids = pids_of("ray::AskActor")
            environments.extend(str(psutil.Process(pid).environ()) for pid in pids)
            os.kill(pids[0], signal.SIGKILL)

        urls = {"baseline": baseline.url, "candidate": candidate.url.replace("//", f"//user:{KEY}@")}
        killer = threading.Thread(target=kill)
        killer.start()
        config = CertifyConfig(**urls, **settings)
        result = api.certify(config, tmp_path / "run", keys={"baseline": KEY}, say=lines.append)
        killer.join()
        num_asked = Counter(candidate.asked())

    assert result.exit_code == 0, [*lines, *result.lines()]
    assert any(line.startswith("worker-") and " is gone: " in line for line in lines), lines
    rows = read_samples(tmp_path / "run").to_pylist()
    assert len(rows) == NUM_PROMPTS * PASSES * 2
    assert all(row["status"] == "ok" and row["parity"] != "mismatch" for row in rows)
    workers = {row["sample_id"]: {row["worker_id"]} for row in rows}
    assert workers == {row["sample_id"]: {row["worker_id"]} for row in reversed(rows)}  # one for all rows of a prompt
    assert len(set.union(*workers.values())) >= 2
    assert set(num_asked) == set(PROMPTS)
    again = [prompt for prompt, times in num_asked.items() if times != PASSES]
    assert len(again) <= 2  # those that the killed one had in flight
    assert all(PASSES < num_asked[prompt] <= 2 * PASSES for prompt in again)
    (head,) = pids_of("/gcs_server")
    assert is_in_memory(
        head, json.loads((tmp_path / "run" / "run.json").read_text())["fingerprint"]
    )  # it keeps what actors are made from
    assert not is_in_memory(head, KEY)
    assert b"AskActor" in logs()
    assert KEY.encode() not in logs()
    assert len(environments) == 2
    assert not any(KEY in environment for environment in environments)
    assert [
        file for file in (tmp_path / "run").rglob("*") if file.is_file() and KEY.encode() in file.read_bytes()
    ] == []
