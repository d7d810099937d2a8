"""A certification in this process: as many threads as prompts may be in flight."""

import contextlib
import threading
from itertools import islice
from queue import Empty, SimpleQueue

from adadecode.certify.progress import Watch
from adadecode.certify.prompt import do_prompt
from adadecode.certify.run import Prepared
from adadecode.evaluation.stop import StopRequest
from adadecode.records import Say, Shard, ShardOutcome

LOOK_EACH_S = 0.2  # at whether the run is to stop

Done = ShardOutcome | Exception  # what a prompt comes to


def ask_here(prepared: Prepared, say: Say, stop: StopRequest) -> str | None:
    """Does every prompt that has no commit, as many at once as is told; returns why it ended early, None where it did not.

    Begins no more once `stop` is made. When this is interrupted, what is in flight is left alone and never committed: a
    server that is silent is not waited for.
    """
    config, todo = prepared.servers.config, prepared.todo
    watch = Watch(len(prepared.shards), prepared.committed, config.max_errors, say)
    given: SimpleQueue[Shard | None] = SimpleQueue()
    done: SimpleQueue[Done] = SimpleQueue()
    threads = [
        threading.Thread(target=_work, args=(prepared, given, done), name=f"certify-{idx}", daemon=True)
        for idx in range(min(config.concurrency, len(todo)))
    ]
    for thread in threads:
        thread.start()
    left, num_flying = iter(todo), 0
    try:
        while True:
            prepared.lease.check()
            if not stop.is_made and not watch.has_failed:
                for shard in islice(left, len(threads) - num_flying):
                    given.put(shard)
                    num_flying += 1
            if not num_flying:
                return watch.failure()
            with contextlib.suppress(Empty):
                found = done.get(timeout=LOOK_EACH_S)
                num_flying -= 1
                if isinstance(found, BaseException):
                    raise found
                watch.add(found)
    finally:
        prepared.servers.stopping.set()
        for _ in threads:
            given.put(None)
        watch.say_last()


def _work(prepared: Prepared, given: "SimpleQueue[Shard | None]", done: "SimpleQueue[Done]") -> None:
    """Does the prompts that are given until None is; what each came to, or the error it raised, goes to `done`."""
    while (shard := given.get()) is not None:
        try:
            if (outcome := do_prompt(prepared.servers, prepared.folder, shard)) is not None:
                done.put(outcome)
        except Exception as error:
            done.put(error)
