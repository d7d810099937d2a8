"""One shard's work, the same for every executor: its samples evaluated, their rows committed."""

import logging
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from adadecode.evaluation.profiling import profile_shard
from adadecode.evaluation.rows import SampleRow, commit_rows
from adadecode.evaluation.worker import Worker, evaluate_sample, evaluate_shard
from adadecode.evaluation.worker_log import shard_context
from adadecode.printable import printable
from adadecode.provenance import code_hash, git_sha
from adadecode.records import Shard, ShardOutcome
from adadecode.runs.folder import RunFolder
from adadecode.settings import EvalConfig
from adadecode.version import __version__

log = logging.getLogger(__name__)
DRAFTS = ("num_drafted", "num_accepted")


class ShardDone(NamedTuple):
    """What a shard came to, and of the work that was done for it now: `full_length_s` and how many drafts were kept."""

    outcome: ShardOutcome
    full_s: float | None = None
    num_drafted: int = 0
    num_accepted: int = 0


def do_shard(worker: Worker, shard: Shard, folder: RunFolder, is_profiled: bool = False) -> ShardDone:
    """Evaluates `shard` on `worker` and commits its rows, unless that was done; profiles the worker then if it shall be."""
    with shard_context(shard.shard_idx):
        if (outcome := folder.committed_outcome(shard.shard_idx)) is not None:
            log.info("was committed before")
            return ShardDone(outcome)
        started = time.perf_counter()
        rows = evaluate_shard(worker, shard)
        log.info("evaluated in %.1f s", time.perf_counter() - started)
        outcome = commit_rows(folder, shard, rows, commit_facts(worker))
        if is_profiled:
            profile_shard(worker, shard, folder.storage)
        num_drafted, num_accepted = (sum(getattr(row, name) or 0 for row in rows) for name in DRAFTS)
        return ShardDone(outcome, full_length_s(rows, worker.config), num_drafted, num_accepted)


def evaluate_sample_alone(
    worker: Worker, shard: Shard, sample_idx: int
) -> tuple[list[SampleRow], dict[str, Any], float | None]:
    """The rows of one sample, which nothing commits, the facts for their commit, and `full_length_s` of them."""
    with shard_context(shard.shard_idx):
        log.info("sample %s alone", printable(shard.examples[sample_idx].sample_id))
        rows = evaluate_sample(worker, shard, sample_idx)
        return rows, commit_facts(worker), full_length_s(rows, worker.config)


def commit_facts(worker: Worker) -> dict[str, Any]:
    """What is stored of `worker` with each of its commits."""
    return worker.facts() | {"adadecode": __version__, "code_hash": code_hash(), "git_sha": git_sha()}


def full_length_s(rows: Sequence[SampleRow], config: EvalConfig) -> float | None:
    """Seconds the generations of `rows` would have taken with outputs of `max_new_tokens`; None when none tells."""
    num_later = config.decode.max_new_tokens - 1
    timed = [row.ttft_s + num_later * row.tpot_s for row in rows if row.ttft_s is not None and row.tpot_s is not None]
    return sum(timed) / len(timed) * len(rows) if timed else None
