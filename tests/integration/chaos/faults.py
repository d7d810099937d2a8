"""Faults for runs on Ray: processes that are killed or stopped at moments drawn from a seed, and evaluators that break."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil

from ray_jobs.actors import Evaluator, ShardWork
from ray_jobs.pool import Done

POLL_S = 0.005
POISON = "00007"  # the sample that ends every process that tries it


def num_commits(out: Path) -> int:
    return len(list((out / "commits").glob("*.json")))


def evaluator_pids() -> list[int]:
    """The evaluation actors among the descendants of this process, which started the cluster."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "ray::" in (title := " ".join(process.cmdline())) and "Evaluator" in title:
                found.append(process.pid)
        except psutil.Error:
            continue
    return sorted(found)


def wait_for_commits(out: Path, num: int, running: Future[Any]) -> None:
    """Returns when `num` shards are committed, or the run has ended."""
    while num_commits(out) < num and not running.done():
        time.sleep(POLL_S)


class Saboteur(threading.Thread):
    """Does `harm` once after each number of commits in `moments`, a random fraction of a second later.

    Ends with the run: `with Saboteur(...)`. `num_done` counts what was done.
    """

    def __init__(self, out: Path, rng: random.Random, moments: list[int], harm: Callable[[], bool]) -> None:
        super().__init__(daemon=True)
        self._out, self._rng, self._moments, self._harm = out, rng, sorted(moments), harm
        self._over = threading.Event()
        self.num_done = 0

    def run(self) -> None:
        for moment in self._moments:
            while num_commits(self._out) < moment:
                if self._over.wait(POLL_S):
                    return
            time.sleep(self._rng.random() * 0.3)
            while not self._harm():
                if self._over.wait(POLL_S):
                    return
            self.num_done += 1

    def __enter__(self) -> "Saboteur":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


def signal_one(rng: random.Random, number: signal.Signals) -> bool:
    """Sends a signal to one evaluation actor; False when there is none yet."""
    pids = evaluator_pids()
    if not pids:
        return False
    try:
        os.kill(rng.choice(pids), number)
    except ProcessLookupError:
        return False
    return True


class PoisonedEvaluator(Evaluator):
    """Its process dies of sample POISON, whatever else is in the shard."""

    def work(self, work: ShardWork) -> Done:
        examples = work.shard.examples if work.sample_idx is None else work.shard.examples[work.sample_idx :][:1]
        if any(example.sample_id == POISON for example in examples):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().work(work)


class DyingBeforeCommits:
    """A storage that passes everything on, but may end the process instead of creating a commit."""

    def __init__(self, storage: Any, rng: random.Random) -> None:
        self._storage, self._rng = storage, rng

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def create(self, name: str, content: bytes) -> bool:
        if name.startswith("commits/") and self._rng.random() < 0.3:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._storage.create(name, content)


class ForgetfulEvaluator(Evaluator):
    """Its process may die when a shard's data are on disk and its commit is not."""

    seed = ""

    def load(self) -> None:
        super().load()
        self._folder.storage = DyingBeforeCommits(self._folder.storage, random.Random(self.seed + self._worker_id))
