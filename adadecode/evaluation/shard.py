"""What every executor shares: preparing a run folder, doing one shard in it, and closing the run."""

import logging
import time
from collections.abc import Sequence
from typing import Any

from adadecode import __version__
from adadecode.evaluation.worker_log import shard_context
from adadecode.provenance import git_sha
from adadecode.records import Shard, ShardOutcome
from adadecode.runs.folder import RunFolder, new_attempt
from adadecode.settings import EvalConfig

log = logging.getLogger(__name__)


def do_shard(worker: Any, shard: Shard, folder: RunFolder) -> tuple[ShardOutcome, float | None]:
    """Evaluates `shard` on `worker` and commits its rows, unless that was done; returns what it came to.

    Beside it how long it would have taken had every output been of `max_new_tokens`, in seconds; None: not known.
    """
    from adadecode.evaluation.worker import evaluate_shard

    with shard_context(shard.shard_idx):
        if (outcome := folder.committed_outcome(shard.shard_idx)) is not None:
            log.info("was committed before")
            return outcome, None
        started = time.perf_counter()
        rows = evaluate_shard(worker, shard)
        log.info("evaluated in %.1f s", time.perf_counter() - started)
        return commit_rows(folder, shard, rows, worker_facts(worker)), full_length_s(rows, worker.config)


def evaluate_sample_alone(
    worker: Any, shard: Shard, sample_idx: int
) -> tuple[list[dict[str, Any]], dict[str, Any], float | None]:
    """The rows of one sample, which nothing commits, the facts for their commit, and the seconds as in `do_shard`."""
    from adadecode.evaluation.worker import evaluate_sample

    with shard_context(shard.shard_idx):
        log.info("sample %s alone", shard.examples[sample_idx].sample_id)
        rows = evaluate_sample(worker, shard, sample_idx)
        return rows, worker_facts(worker), full_length_s(rows, worker.config)


def commit_rows(folder: RunFolder, shard: Shard, rows: list[dict[str, Any]], facts: dict[str, Any]) -> ShardOutcome:
    """Commits the rows of `shard`; returns what it came to, which another attempt may have committed first."""
    attempt = {"run_id": folder.run_id, "attempt": new_attempt()}
    if folder.commit_shard(shard.task, shard.shard_idx, [{**row, **attempt} for row in rows], facts):
        log.info("committed %d rows", len(rows))
    else:
        log.info("another attempt was first; its rows count, not these %d", len(rows))
    outcome = folder.committed_outcome(shard.shard_idx)
    assert outcome is not None, shard.shard_idx
    return outcome


def worker_facts(worker: Any) -> dict[str, Any]:
    """What is stored of `worker` with each of its commits."""
    return worker.facts() | {"adadecode": __version__, "git_sha": git_sha()}


def full_length_s(rows: Sequence[dict[str, Any]], config: EvalConfig) -> float | None:
    """Seconds the generations of `rows` would have taken with outputs of `max_new_tokens`; None when none tells."""
    num_later = config.decode.max_new_tokens - 1
    timed = [row["ttft_s"] + num_later * row["tpot_s"] for row in rows if row.get("tpot_s") is not None]
    return sum(timed) / len(timed) * len(rows) if timed else None
