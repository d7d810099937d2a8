"""Evaluators of which one is broken: where it runs or from when on. The others wait until it has shown it."""

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

import ray

from adadecode.errors import KernelsError, RunFolderError
from ray_jobs.actors import Evaluator, ShardWork
from ray_jobs.pool import Done

POLL_S = 0.02


class Broken(Evaluator):
    """What the broken ones share: `node_id` is where they are, `shown` the file that says that one broke."""

    node_id = ""
    shown = Path()

    @property
    def is_there(self) -> bool:
        return ray.get_runtime_context().get_node_id() == self.node_id

    def wait_until_shown(self) -> None:
        while not self.shown.exists():
            time.sleep(POLL_S)


class DyingAtWork(Broken):
    """At the bad place a process loads, and dies of the first work that it is given."""

    def work(self, work: ShardWork) -> Done:
        if self.is_there:
            with self.shown.open("a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        self.wait_until_shown()
        return super().work(work)


class RefusingToLoad(Broken):
    """At the bad place loading raises, before any other has loaded."""

    def load(self) -> None:
        if self.is_there:
            self.shown.touch()
            raise KernelsError("--kernels native: no C++ compiler; install g++")
        self.wait_until_shown()
        super().load()


class Stale(Broken):
    """The first process that commits finds every handle of its file system stale; the next there does not."""

    def work(self, work: ShardWork) -> Done:
        if not self.is_first_to_commit():
            self.wait_until_shown()
            return super().work(work)
        os.fsync = stale
        try:
            return super().work(work)
        except RunFolderError:
            self.shown.touch()
            raise

    def is_first_to_commit(self) -> bool:
        try:
            self.shown.with_suffix(".begun").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


class StaleEverywhere(Stale):
    """Every process finds the handles of its file system stale."""

    def is_first_to_commit(self) -> bool:
        return True


def stale(*_: Any) -> None:
    """Stands in for a call of the operating system."""
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
