"""The in-process executor: the same plan and the same shard function, without Ray."""

import os
from collections.abc import Callable

from adadecode.evaluation.run import PreparedRun, do_shard
from adadecode.evaluation.worker import load_worker
from adadecode.records import Shard


def run_local(prepared: PreparedRun, on_shard: Callable[[Shard], None]) -> None:
    """Evaluates every shard not yet committed, in order; calls `on_shard` after each commit."""
    if not prepared.todo:
        return
    config = prepared.config
    worker = load_worker(config, prepared.tasks, "local", config.threads or os.cpu_count() or 1)
    for shard in prepared.todo:
        do_shard(worker, shard, prepared.folder)
        on_shard(shard)
