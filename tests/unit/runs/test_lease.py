"""One driver per run folder: refused while its owner lives, taken over when it is dead, released or stale."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from adadecode.errors import LeaseError, RunFolderError
from adadecode.runs.folder import read_run
from adadecode.runs.lease import Lease, driver_status, is_gone, this_owner
from adadecode.runs.run import close_run, open_run
from adadecode.runs.storage import Storage, open_storage
from adadecode.settings import EvalConfig

ROOT = Path(__file__).parents[3]
HOLD = """
import json, sys
from adadecode.runs.lease import Lease
from adadecode.runs.storage import open_storage
with Lease(open_storage(sys.argv[1]), heartbeat_s=0.05, stale_s=float(sys.argv[2])) as lease:
    if len(sys.argv) > 3:
        lease._content["owner"]["host"] = sys.argv[3]
        lease._write()
    print("held", flush=True)
    sys.stdin.readline()
    lease._thread.join(5.0)
    print("lost" if lease.lost else "kept", flush=True)
"""


@pytest.fixture
def hold():
    """Starts a process that holds the lease at a location, as another host's where one is named."""
    started = []

    def start(location: str, *host: str) -> subprocess.Popen:
        command = [sys.executable, "-c", HOLD, location, "1.0", *host]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in (str(ROOT), *sys.path) if path)}
        process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_driver_is_refused_naming_the_first(location, hold):
    owner = hold(location)
    with pytest.raises(LeaseError, match=rf"is in use by .+@.+, process {owner.pid}, since ") as caught:
        Lease(open_storage(location)).__enter__()
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_a_driver_on_another_host_is_refused_as_soon_as_its_heart_beats(location, hold):
    hold(location, "elsewhere")
    with pytest.raises(LeaseError, match="@elsewhere, process"):
        Lease(open_storage(location), heartbeat_s=0.1, stale_s=60.0).__enter__()


def test_a_killed_owner_is_followed_at_once_and_a_released_lease_too(location, hold):
    owner = hold(location)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    storage = open_storage(location)
    with Lease(storage, stale_s=10_000.0) as lease:
        assert storage.list("lease") == ["lease/00002.json"], "the former owner's file is deleted"
        lease.check()
    assert json.loads(storage.read("lease/00002.json"))["released"] is True
    with Lease(storage, stale_s=10_000.0):
        assert storage.list("lease") == ["lease/00003.json"]


def test_a_stopped_owner_elsewhere_is_followed_when_stale_and_finds_out_when_it_wakes(location, hold):
    owner = hold(location, "elsewhere")
    owner.send_signal(signal.SIGSTOP)
    with Lease(open_storage(location), heartbeat_s=0.1, stale_s=1.0) as lease:
        owner.send_signal(signal.SIGCONT)
        answer, _ = owner.communicate("\n")
        assert answer == "lost\n"
        lease.check()
    assert not lease.lost


def test_of_many_takers_exactly_one_holds_the_lease(location):
    taken, refused, all_tried = [], [], threading.Barrier(8)

    def take() -> None:
        lease = Lease(open_storage(location))
        try:
            with lease:
                taken.append(lease)
                all_tried.wait(60)
        except LeaseError:
            refused.append(lease)
            all_tried.wait(60)

    takers = [threading.Thread(target=take) for _ in range(8)]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join()
    assert (len(taken), len(refused)) == (1, 7)


def test_an_owner_that_lost_its_lease_is_told_so_and_leaves_the_next_ones_alone(tmp_path):
    storage = open_storage(tmp_path)
    with Lease(storage, heartbeat_s=0.01) as lease:
        storage.create("lease/00002.json", b"{}")
        lease._thread.join(60)
        with pytest.raises(LeaseError, match="another driver took the run over"):
            lease.check()
    assert storage.read("lease/00002.json") == b"{}"


def test_a_process_number_that_was_given_again_is_another_process():
    owner = this_owner()
    assert not is_gone(owner)
    assert is_gone(owner | {"started": owner["started"] - 1})
    assert not is_gone(owner | {"started": 1, "host": "elsewhere"})


def test_a_second_evaluation_exits_2_and_leaves_the_folder_alone(tiny, usage_error, hold, tmp_path):
    owner = hold(str(tmp_path / "run"))
    line = usage_error("eval", "--local", *tiny.flags(), "--out", tmp_path / "run")
    assert f"process {owner.pid}" in line
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lease"]


class Failing:
    """A storage that passes everything on but what a test replaces."""

    def __init__(self, storage: Storage, **replaced: Callable[..., Any]) -> None:
        self._storage, self.replaced, self.num_asked = storage, replaced, 0

    def __getattr__(self, name: str) -> Any:
        if name in self.replaced:
            self.num_asked += 1
            return self.replaced[name]
        return getattr(self._storage, name)


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def away(*_: object) -> None:
    raise RunFolderError("the disk does not answer")


@pytest.mark.parametrize("what", ["list", "replace", "read"])
def test_a_disk_that_does_not_answer_for_long_takes_the_lease_from_nobody(tmp_path, what):
    storage: Any = Failing(open_storage(tmp_path))
    with Lease(storage, heartbeat_s=0.01, stale_s=0.02) as lease:
        storage.replaced[what] = away
        until(lambda: storage.num_asked > 10)  # longer than a lease takes to be stale
        assert not lease.lost
        storage.replaced.clear()
        lease.confirm()
    assert json.loads(storage.read("lease/00001.json"))["released"] is True


def test_a_driver_whose_disk_was_away_learns_that_another_took_over(tmp_path):
    storage: Any = Failing(open_storage(tmp_path))
    with Lease(storage, heartbeat_s=0.01) as lease:
        storage.replaced["list"] = away
        until(lambda: storage.num_asked > 3)
        open_storage(tmp_path).create("lease/00002.json", b"{}")
        storage.replaced.clear()
        lease._thread.join(60)
        with pytest.raises(LeaseError, match="another driver took the run over"):
            lease.check()


@pytest.mark.parametrize("seen", [[], None])
def test_a_listing_without_any_file_is_an_error_and_no_loss(tmp_path, seen):
    storage: Any = Failing(open_storage(tmp_path))
    with Lease(storage, heartbeat_s=0.01) as lease:
        if seen is None:  # the file itself is gone
            storage.delete("lease/00001.json")
        storage.replaced["list"] = lambda folder: []
        until(lambda: storage.num_asked > 3)
        assert not lease.lost
        with pytest.raises(RunFolderError, match=r"lease/00001\.json is not there any more, nor another's") as caught:
            lease.confirm()
        assert not isinstance(caught.value, LeaseError)


def test_a_driver_that_took_the_same_number_in_a_folder_that_was_emptied_has_the_lease(tmp_path):
    storage = open_storage(tmp_path)
    with Lease(storage, heartbeat_s=60) as lease:
        storage.delete("lease/00001.json")
        with Lease(open_storage(tmp_path), heartbeat_s=60) as other:
            other.confirm()
            with pytest.raises(LeaseError, match="another driver took the run over"):
                lease.confirm()


def test_a_lease_whose_file_is_there_but_not_listed_is_refused_after_a_few_tries(tmp_path, monkeypatch):
    monkeypatch.setattr("adadecode.runs.lease.TAKING_PAUSES_S", (0.001,) * 5)
    open_storage(tmp_path).create("lease/00001.json", b"{}")
    storage: Any = Failing(open_storage(tmp_path), list=lambda folder: [])
    with pytest.raises(
        LeaseError, match=r"the lease cannot be taken, at 5 tries: .* lease/ does not list what is in it"
    ):
        Lease(storage).__enter__()
    assert storage.num_asked == 5


def test_a_run_that_was_taken_over_is_not_closed_by_its_former_driver(tiny, cli, tmp_path):
    out = tmp_path / "run"
    assert cli("eval", "--local", *tiny.flags(methods="vanilla"), "--out", out).exit_code == 0
    tables = {name: (out / name).read_bytes() for name in ("run.json", "summary.parquet", "verify.parquet")}
    with open_run(EvalConfig.model_validate(read_run(out)["config"]), out) as prepared:
        open_storage(out).create("lease/00009.json", b"{}")  # no heartbeat has noticed it
        prepared.folder.update_run(status="of the next driver")
        with pytest.raises(LeaseError, match="another driver took the run over"):
            close_run(prepared)
    assert read_run(out)["status"] == "of the next driver"
    assert all((out / name).read_bytes() == tables[name] for name in tables if name != "run.json")


def test_a_run_that_says_it_is_running_is_told_from_one_whose_driver_was_killed(location, hold):
    owner, storage = hold(location), open_storage(location)
    assert re.fullmatch(rf"running \(process {owner.pid} on .+, last sign of life \d s ago\)", driver_status(storage))
    owner.kill()
    owner.wait()
    dead = r"interrupted: no driver is alive; the same command continues \(last sign of life \d s ago\)"
    assert re.fullmatch(dead, driver_status(storage))


def test_a_driver_elsewhere_is_alive_while_its_last_heartbeat_is_young(location, hold):
    hold(location, "elsewhere")
    storage = open_storage(location)
    assert driver_status(storage).startswith("running (process ")
    (name,) = storage.list("lease")
    content = json.loads(storage.read(name)) | {"beat_at": "2026-01-01T00:00:00+00:00"}
    storage.replace("lease/00002.json", json.dumps(content).encode())  # of a driver that beats no more
    assert driver_status(storage).startswith("interrupted: no driver is alive; the same command continues (last sign")


@pytest.mark.parametrize(("age_s", "says"), [(20, "running (process "), (100, "interrupted: no driver is alive;")])
def test_a_minute_without_a_heartbeat_counts_as_the_death_of_a_driver_elsewhere(location, age_s, says):
    beat_at = datetime.now(UTC) - timedelta(seconds=age_s)
    lease = {"owner": this_owner() | {"host": "elsewhere"}, "since": "2026-01-01T00:00:00+00:00", "beat": 7}
    storage = open_storage(location)
    storage.replace(
        "lease/00001.json", json.dumps(lease | {"beat_at": beat_at.isoformat(), "released": False}).encode()
    )
    assert driver_status(storage).startswith(says)


@pytest.mark.parametrize(
    "content", [None, b"{", b"[" * 100_000, b'{"owner": {}, "since": "x", "beat": 1, "released": true}']
)
def test_a_run_without_a_lease_that_is_held_is_interrupted(location, content):
    storage = open_storage(location)
    if content is not None:
        storage.replace("lease/00001.json", content)
    assert driver_status(storage) == "interrupted: no driver is alive; the same command continues"
