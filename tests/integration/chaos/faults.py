"""Faults for runs on Ray that strike on events: a gate at which a run's actors wait, and evaluators that break."""

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import ray

from ray_jobs.actors import Evaluator, ShardWork
from ray_jobs.pool import Done

POLL_S, LONG_S = 0.005, 240.0
POINTS = ("begin", "generate", "commit")
POISON = "00007"  # the sample that ends every process that tries it


def num_commits(out: Path) -> int:
    return len(list((out / "commits").glob("*.json")))


def evaluator_pids() -> list[int]:
    """The evaluation actors among the descendants of this process, which started the cluster."""
    return [pid for pid, title in descendants(os.getpid()) if title.startswith("ray::") and "Evaluator" in title]


def descendants(pid: int) -> list[tuple[int, str]]:
    """The processes that `pid` started, and those started by them, each with its command line."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found.append((process.pid, " ".join(process.cmdline())))
    return found


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    """Returns once `is_so`; a test whose event never comes fails with `what` it waited for."""
    deadline = time.monotonic() + LONG_S
    while not is_so():
        assert time.monotonic() < deadline, f"waited {LONG_S:.0f} s in vain for {what}"
        time.sleep(POLL_S)


class Gate:
    """Where gated actors of the run at `out` wait while it is closed: a fault finds them at work, and work left.

    A folder beside the run's, which every process sees. Opens at the end of its context.
    """

    def __init__(self, out: Path) -> None:
        self._out, self._folder = out, out.with_name(f"{out.name}.gate")
        self._closed = self._folder / "closed.json"

    def __enter__(self) -> "Gate":
        (self._folder / "waiting").mkdir(parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.open()

    def close(self, after: int, point: str) -> None:
        """Has actors wait at `point` of POINTS once `after` shards are committed, and at no other."""
        new = self._folder / "new.json"
        new.write_text(json.dumps({"after": after, "point": point}), encoding="utf-8")
        new.replace(self._closed)

    def open(self) -> None:
        self._closed.unlink(missing_ok=True)

    def waiting(self) -> list[int]:
        """The processes that wait, alive."""
        marks = [int(mark.name) for mark in (self._folder / "waiting").iterdir()]
        return sorted(pid for pid in marks if is_alive(pid))

    def wait_for(self, num: int, is_over: Callable[[], bool]) -> list[int]:
        """Returns the processes that wait once there are `num` or more; the run must not be over before."""

        def is_so() -> bool:
            assert not is_over(), "the run was over before anything could happen to it"
            return len(self.waiting()) >= num

        wait_until(is_so, f"{num} actors at the gate")
        return self.waiting()

    def wait_for_at_most(self, num: int) -> None:
        """Returns once no more than `num` processes wait, as others have ended."""
        wait_until(lambda: len(self.waiting()) <= num, f"no more than {num} actors at the gate")

    def strike(self, pid: int, number: signal.Signals) -> None:
        """Sends a signal to a process that waits, and counts it among those no more."""
        os.kill(pid, number)
        (self._folder / "waiting" / str(pid)).unlink()

    def pass_through(self, point: str) -> None:
        """What an actor does at `point`: waits while the gate is closed there."""
        if not self._is_closed(point):
            return
        mark = self._folder / "waiting" / str(os.getpid())
        mark.touch()
        while self._is_closed(point):
            time.sleep(POLL_S)
        mark.unlink(missing_ok=True)

    def _is_closed(self, point: str) -> bool:
        try:
            closed = json.loads(self._closed.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return False
        return closed["point"] == point and num_commits(self._out) >= closed["after"]


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class BeforeCommits:
    """A storage that passes everything on, and calls `act` before it creates a commit."""

    def __init__(self, storage: Any, act: Callable[[], None]) -> None:
        self._storage, self._act = storage, act

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def create(self, name: str, content: bytes) -> bool:
        if name.startswith("commits/"):
            self._act()
        return self._storage.create(name, content)


class GatedEvaluator(Evaluator):
    """Passes the gate of its run when it begins a shard, before each generation, and with data on disk but no commit."""

    def load(self) -> None:
        super().load()
        gate = self._gate = Gate(Path(self._task.location))
        self._folder.storage = BeforeCommits(self._folder.storage, lambda: gate.pass_through("commit"))
        policy = self._worker.policy

        def gated_policy(task: str) -> Any:
            gate.pass_through("generate")
            return policy(task)

        object.__setattr__(self._worker, "policy", gated_policy)  # it is asked for before each generation

    def work(self, work: ShardWork) -> Done:
        self._gate.pass_through("begin")
        return super().work(work)


GATED = ray.remote(GatedEvaluator)


class PoisonedEvaluator(Evaluator):
    """Its process dies of sample POISON, whatever else is in the shard."""

    def work(self, work: ShardWork) -> Done:
        examples = work.shard.examples if work.sample_idx is None else work.shard.examples[work.sample_idx :][:1]
        if any(example.sample_id == POISON for example in examples):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().work(work)


class UnloadableEvaluator(Evaluator):
    """Its process dies while it loads the model."""

    def load(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class ForgetfulEvaluator(Evaluator):
    """Its process dies when the data of its first, second or third shard are on disk and their commit is not."""

    seed = ""

    def load(self) -> None:
        super().load()
        num_left = random.Random(self.seed + self._worker_id).randint(1, 3)

        def die_of_the_last() -> None:
            nonlocal num_left
            num_left -= 1
            if not num_left:
                os.kill(os.getpid(), signal.SIGKILL)

        self._folder.storage = BeforeCommits(self._folder.storage, die_of_the_last)
