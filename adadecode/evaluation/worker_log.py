"""What a worker process logs: stdlib logging, every line with its run, shard and actor."""

import contextlib
import logging
import sys
import time
from collections.abc import Generator
from contextvars import ContextVar

from adadecode.printable import printable

NO_SHARD = "-"

_shard: ContextVar[str] = ContextVar("shard", default=NO_SHARD)


class WorkerFormatter(logging.Formatter):
    """`2026-11-24T11:00:00Z INFO run=R shard=7 actor=A: message`, in front of every line of a message or traceback."""

    converter = time.gmtime

    def __init__(self, run_id: str, actor: str) -> None:
        super().__init__()
        self._run_id, self._actor = run_id, actor

    def format(self, record: logging.LogRecord) -> str:
        when = self.formatTime(record, "%Y-%m-%dT%H:%M:%SZ")
        start = f"{when} {record.levelname} run={self._run_id} shard={_shard.get()} actor={self._actor}:"
        return "\n".join(f"{start} {printable(line)}" for line in super().format(record).splitlines() or [""])


class WorkerHandler(logging.StreamHandler):
    """The one handler of a worker process."""


def configure_worker_log(run_id: str, actor: str) -> None:
    """Sends what adadecode logs from INFO on to stderr, in lines that name `run_id` and `actor`.

    For worker processes. Called again, the new names replace the old ones. The root logger stays as it is and gets none
    of these lines.
    """
    logger = logging.getLogger("adadecode")
    for handler in [handler for handler in logger.handlers if isinstance(handler, WorkerHandler)]:
        logger.removeHandler(handler)
    handler = WorkerHandler(sys.stderr)
    handler.setFormatter(WorkerFormatter(run_id, actor))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


@contextlib.contextmanager
def shard_context(shard_idx: int) -> Generator[None]:
    """While it lasts, what this thread logs is about shard `shard_idx`."""
    token = _shard.set(str(shard_idx))
    try:
        yield
    finally:
        _shard.reset(token)
