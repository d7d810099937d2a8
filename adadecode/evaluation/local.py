"""The in-process executor: the same plan and the same shard function, without Ray."""

from collections.abc import Callable

from adadecode.evaluation.observer import QUIET, Observer
from adadecode.evaluation.run_worker import load_run_worker
from adadecode.evaluation.shard import do_shard
from adadecode.runs.kernels import kernels_lines
from adadecode.runs.run import PreparedRun


def run_local(
    prepared: PreparedRun, observer: Observer = QUIET, is_stopping: Callable[[], bool] = lambda: False
) -> None:
    """Evaluates every shard not yet committed, in order; tells `observer` what each came to, after its commit.

    Begins no more once `is_stopping`.
    """
    if not prepared.todo:
        return
    config = prepared.config
    worker = load_run_worker(config, prepared.tasks, "local", config.threads, prepared.folder.storage)
    for line in (*kernels_lines(prepared.folder.storage), *worker.notes()):
        observer.say(line)
    for shard in prepared.todo:
        prepared.lease.check()
        if is_stopping():
            return
        outcome, _ = do_shard(worker, shard, prepared.folder)
        observer.on_shard(outcome)
