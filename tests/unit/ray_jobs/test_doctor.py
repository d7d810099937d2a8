"""What the answers of a cluster's nodes mean to a run, with a fault planted for each line."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from adadecode.doctor.checks import CHECKS
from adadecode.doctor.finding import Finding
from adadecode.doctor.subject import Subject
from adadecode.errors import UsageError
from adadecode.settings import EvalConfig
from ray_jobs import doctor
from ray_jobs.cluster import mixed_versions
from ray_jobs.doctor import (
    dashboard_finding,
    merged,
    on_own_node,
    own_cluster,
    resources_finding,
    token_findings,
)
from ray_jobs.node_probe import NodeFacts, open_token
from ray_jobs.nodes import Answer, check_before_run, node_findings

HERE = NodeFacts("driver", "2.60.0", "3.11.7", "2.13.0", "abcd", 100.0, asks_for_token=True, open_token=None)
NODE = {"Resources": {"CPU": 4.0, "GPU": 1.0}}


def answers(*facts: NodeFacts | str, is_shared: bool = True) -> list[Answer]:
    """One of each node: its facts, or why there are none; sent at 99 s and back at 101 s."""
    return [
        Answer(f"node{idx}", None, told)
        if isinstance(told, str)
        else Answer(f"node{idx}", told, is_shared=is_shared, sent_at=99.0, received_at=101.0)
        for idx, told in enumerate(facts)
    ]


def the_lines(*found: Answer) -> list[str]:
    return [finding.line() for finding in node_findings(HERE, found, "/shared/run") if finding.status != "ok"]


def test_nodes_that_are_as_they_should_be_are_all_ok():
    found = list(node_findings(HERE, answers(HERE, HERE), "/shared/run"))
    assert [finding.check for finding in found] == ["run folder", "versions", "clocks", "authentication"]
    assert {finding.status for finding in found} == {"ok"}
    assert found[0].found == "/shared/run is written by 2 nodes and read here"


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (
            answers(HERE._replace(folder="the run folder /shared/run is not the driver's")),
            "will fail  run folder: node0: the run folder /shared/run is not the driver's: give an --out that every node",
        ),
        (
            answers(HERE, HERE._replace(folder="'/shared' cannot be written (Permission denied)")),
            "warning    run folder: node1: '/shared' cannot be written (Permission denied); the other nodes do the work",
        ),
        (
            answers(HERE, is_shared=False),
            "will fail  run folder: node0: what is written to /shared/run there is not found",
        ),
        (
            answers("no answer in 20 s"),
            "warning    nodes: node0: no answer in 20 s: it is slow or starts no worker: look",
        ),
        (
            answers(HERE, "ModuleNotFoundError: no"),
            "warning    nodes: node1: ModuleNotFoundError: no; the other nodes do",
        ),
        (
            answers("ModuleNotFoundError: No module named 'adadecode'"),
            "will fail  nodes: node0: ModuleNotFoundError: No module named 'adadecode': no worker starts there",
        ),
        (
            answers(HERE, HERE._replace(ray="2.59.0")),
            "will fail  versions: Ray is 2.59.0 on node1 and 2.60.0 here: install the same versions on every node",
        ),
        (
            answers(HERE._replace(code="ffff")),
            "will fail  versions: the code of adadecode is ffff on node0 and abcd here",
        ),
        (answers(HERE._replace(torch="2.9.0")), "warning    versions: torch is 2.9.0 on node0 and 2.13.0 here"),
        (answers(HERE._replace(clock=161.0)), "warning    clocks: the clock of node0 is 60 s ahead"),
        (answers(HERE._replace(clock=39.0)), "warning    clocks: the clock of node0 is 60 s behind"),
        (
            answers(HERE, HERE._replace(asks_for_token=False)),
            "warning    authentication: node1: no token is asked for, and whoever reaches the ports of Ray runs code there",
        ),
        (
            answers(HERE._replace(open_token="/home/a/.ray/auth_token")),
            "warning    token file: on node0 others can read /home/a/.ray/auth_token, and whoever has the token runs code "
            "on the cluster: chmod 600 /home/a/.ray/auth_token",
        ),
    ],
)
def test_a_node_that_is_not_as_it_should_be_is_one_line(found, line):
    (told,) = the_lines(*found)
    assert told.startswith(line)


def test_a_node_that_cannot_use_the_folder_fails_the_run_only_where_no_other_may_do_the_work():
    lone = HERE._replace(folder="the run folder /shared/run is not the driver's")
    statuses = {
        name: next(iter(node_findings(HERE, found, "/shared/run", num_trusted))).status
        for name, found, num_trusted in (
            ("alone", answers(lone), 0),
            ("beside the driver's node", answers(lone), 1),
            ("all of them", answers(lone, lone), 0),
        )
    }
    assert statuses == {"alone": "will fail", "beside the driver's node": "warning", "all of them": "will fail"}
    late, unshared, *_ = node_findings(HERE, answers("no answer in 20 s", lone), "/shared/run")
    assert (late.status, unshared.status) == ("warning", "warning"), "the late one may do it yet"


def test_eval_says_warnings_before_it_begins_and_ends_with_what_will_fail(monkeypatch):
    weak, open_ = Finding.warning("clocks", "off", "NTP"), Finding.warning("authentication", "none", "a token")
    found, said = [weak, open_], list[str]()
    monkeypatch.setattr("ray_jobs.nodes.check_nodes", lambda *_, **__: found)
    monkeypatch.setattr("ray_jobs.nodes.alive_nodes", list)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
    config = EvalConfig(address="head:6379")
    prepared = SimpleNamespace(config=config, folder=SimpleNamespace(location="/shared/run"))
    check_before_run(prepared, said.append)
    assert said == [weak.line()], "what is no news at each run is left to doctor"
    found.append(Finding.fails("run folder", "not shared", "share it"))
    with pytest.raises(UsageError, match=r"^run folder: not shared: share it$"):
        check_before_run(prepared, said.append)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    prepared.config = EvalConfig()
    check_before_run(prepared, said.append)
    assert len(said) == 2, "a cluster of its own is not asked"


@pytest.mark.parametrize("clock", [98.5, 99.0, 100.0, 101.0, 102.9])
def test_a_clock_is_off_by_no_more_than_the_answers_way_leaves_open(clock):
    assert the_lines(*answers(HERE._replace(clock=clock))) == []


def test_a_token_file_that_others_can_read_is_a_warning_with_the_chmod(tmp_path):
    token = tmp_path / "auth_token"
    token.write_text("0" * 64)
    environment = {"RAY_AUTH_TOKEN_PATH": str(token)}
    token.chmod(0o644)
    (found,) = token_findings(environment)
    assert (found.status, found.remedy) == ("warning", f"chmod 600 {token}")
    token.chmod(0o640)
    assert open_token(environment) == str(token)
    token.chmod(0o600)
    assert open_token(environment) is None
    token.chmod(0o644)
    for unused in ({"RAY_AUTH_TOKEN": "1" * 64}, {"RAY_AUTH_MODE": "disabled"}):
        assert open_token(environment | unused) is None
    assert open_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}) is None


def test_rays_own_token_file_is_looked_at_where_no_other_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.touch(mode=0o644)
    assert open_token({}) == str(token)


@pytest.mark.parametrize(
    ("address", "is_open", "status"),
    [
        ("127.0.0.1:8265", True, "ok"),
        ("[::1]:8265", True, "ok"),
        ("localhost:8265", True, "ok"),
        ("10.0.0.7:8265", True, "warning"),
        ("10.0.0.7:8265", False, "ok"),
        ("", True, "ok"),
        (None, True, "ok"),
    ],
)
def test_a_dashboard_beyond_loopback_that_asks_for_no_token_is_a_warning(address, is_open, status):
    found = dashboard_finding(address, is_open)
    assert found.status == status
    assert ("--dashboard-host=127.0.0.1" in found.text()) is (status == "warning")


def test_a_cluster_that_cannot_hold_the_workers_will_fail_and_one_that_may_grow_is_a_warning():
    assert resources_finding(EvalConfig(workers=2), [NODE], "1 node").status == "ok"
    found = resources_finding(EvalConfig(workers=9), [NODE], "1 node")
    assert found.line().startswith("will fail  cluster: --workers 9: the cluster has 4 CPUs and 1 GPUs; ask for 1..4")
    assert resources_finding(EvalConfig(workers="auto", address="h:1"), [], "0 nodes").status == "warning"


def test_a_cluster_of_our_own_without_a_token_is_a_warning(monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    assert {finding.status for finding in own_cluster(EvalConfig(), NODE)} == {"ok"}
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    (found,) = [finding for finding in own_cluster(EvalConfig(), NODE) if finding.status != "ok"]
    assert (found.check, found.status) == ("authentication", "warning")


def test_a_gpu_with_no_room_for_a_context_is_one_line_and_no_traceback(monkeypatch, tmp_path):
    def full(_: int) -> None:
        raise torch.OutOfMemoryError("CUDA error: out of memory")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", full)
    monkeypatch.setattr(doctor, "OF_DRIVER", ())
    monkeypatch.setattr(doctor, "OF_WORKER", tuple(check for check in CHECKS if check.name == "gpus"))
    found = list(doctor.examine_on_ray(EvalConfig(device="cuda"), str(tmp_path)))
    assert [(one.check, one.status) for one in found if one.check in ("cluster", "gpus")] == [
        ("cluster", "ok"),
        ("gpus", "will fail"),
    ]


@pytest.mark.parametrize(
    ("workers", "threads", "expected"),
    [(2, None, (2, 2)), ("auto", 1, (4, 1)), ("auto", None, (1, 4)), (9, None, (1, None))],
)
def test_a_cluster_of_our_own_is_looked_at_with_as_many_workers_and_threads_as_it_would_have(
    workers, threads, expected
):
    """Memory is needed by each worker, and rows are independent, or not, with the threads that each has."""
    subject = Subject(EvalConfig(workers=workers, threads=threads), "x")
    found = on_own_node(subject, NODE)
    assert (found.num_workers, found.config.threads) == expected


def test_what_all_nodes_say_is_said_once_and_what_one_says_with_its_name():
    fine, weak = Finding.ok("gpus", "H100"), Finding.warning("memory", "little", "more")
    of_nodes = {
        "a": [Finding.ok("files", "one"), Finding.ok("files", "two"), fine],
        "b": [Finding.ok("files", "one"), Finding.ok("files", "two"), replace(fine, found="A100"), weak],
    }
    assert [finding.line() for finding in merged(of_nodes)] == [
        "ok         gpus on 2 nodes: H100",
        "ok         files on 2 nodes: one",
        "ok         files on 2 nodes: two",
        "warning    memory on b: little: more",
    ]


def test_what_ray_says_of_mixed_versions_becomes_one_clause():
    said = (
        "Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n    Python: 3.11.7\n"
        "This process on node 10.0.0.7 was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n"
    )
    assert mixed_versions(said).startswith(
        "the cluster has Ray 2.59.0 there and 2.60.0 here: install the same versions"
    )
