"""The in-process executor: the same plan and the same shard function, without Ray."""

from collections.abc import Callable

from adadecode.evaluation.observer import QUIET, Observer
from adadecode.evaluation.run_worker import load_run_worker
from adadecode.evaluation.shard import do_shard
from adadecode.evaluation.shelf import ModelShelf
from adadecode.model.load import load_model
from adadecode.runs.kernels import kernels_lines
from adadecode.runs.run import PreparedRun


def run_local(
    prepared: PreparedRun,
    observer: Observer = QUIET,
    is_stopping: Callable[[], bool] = lambda: False,
    models: ModelShelf | None = None,
) -> None:
    """Evaluates every shard not yet committed, in order; tells `observer` what each came to, after its commit.

    Begins no more once `is_stopping`. Models come from the shelf `models`, where there is one, and stay on it.
    """
    if not prepared.todo:
        return
    config = prepared.config
    load = load_model if models is None else models.load
    worker = load_run_worker(config, prepared.tasks, "local", config.threads, prepared.folder.storage, load)
    for line in (*kernels_lines(prepared.folder.storage), *worker.notes()):
        observer.say(line)
    profiled = prepared.todo[0] if config.profile is not None else None
    for shard in prepared.todo:
        prepared.lease.check()
        if is_stopping():
            return
        observer.on_shard(do_shard(worker, shard, prepared.folder, shard is profiled).outcome)
