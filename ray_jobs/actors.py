"""The actor that owns a GPU (or a share of the CPU), loads the model once and evaluates shards."""

import os
import traceback
from dataclasses import dataclass

import ray

from adadecode.config import EvalConfig
from adadecode.errors import DeviceLostError, RunFolderError
from adadecode.records import Shard


@dataclass(frozen=True)
class ActorTask:
    """What an actor needs to know of its run; sent once."""

    config: EvalConfig
    tasks: tuple[str, ...]
    folder: str  # its location, the same on every node
    fingerprint: str
    threads: int


@ray.remote
class EvalActor:
    """Evaluates shards of one run, one at a time; rows go from here to the run folder, not through the driver."""

    def __init__(self, worker_id: str, task: ActorTask) -> None:
        self._worker_id, self._task = worker_id, task

    def load(self) -> str:
        """Loads the model and warms it up; returns the worker id. Separate from `__init__`, so that errors arrive whole."""
        from adadecode.evaluation.store import RunFolder
        from adadecode.evaluation.worker import load_worker

        task = self._task
        self._folder = RunFolder(task.folder)
        if self._folder.fingerprint != task.fingerprint:
            raise RunFolderError(f"{task.folder!r} was taken over by another run: choose another --out")
        self._worker = load_worker(task.config, task.tasks, self._worker_id, task.threads)
        return self._worker_id

    def work(self, shard: Shard) -> int:
        """Evaluates and commits `shard`; returns its number."""
        from adadecode.evaluation.run import do_shard

        try:
            do_shard(self._worker, shard, self._folder)
        except DeviceLostError:
            traceback.print_exc()
            os._exit(1)  # not a raise: the driver shall replace this process and give the shard to the next
        return shard.shard_idx
