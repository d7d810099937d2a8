"""The rows of a sample that no worker survived."""

from datetime import UTC, datetime
from typing import Any

from adadecode.methods import METHODS, in_turn
from adadecode.records import Shard
from adadecode.report.schema import LOST_BY
from adadecode.settings import EvalConfig

LOST = "WorkerLost"  # their error_type
LOST_FACTS = {"worker_id": LOST_BY}  # of the commit of a shard whose samples are all lost


def lost_rows(config: EvalConfig, shard: Shard, sample_idx: int, reason: str) -> list[dict[str, Any]]:
    """An error row for each method and repeat of the sample, with `reason` as its message; `run_id` and `attempt` lack."""
    example = shard.examples[sample_idx]
    return [
        {
            "task": shard.task,
            "sample_id": example.sample_id,
            "repeat": repeat,
            "shard": shard.shard_idx,
            "reference": example.reference,
            "worker_id": LOST_BY,
            "method": method,
            "lossy": METHODS[method].is_lossy,
            "order_idx": order_idx,
            "started_at": datetime.now(UTC),
            "status": "error",
            "finish_reason": "error",
            "error_type": LOST,
            "error_message": f"the sample ended every worker that tried it: {reason}"[:1000],
        }
        for repeat in range(config.repeats)
        for order_idx, method in enumerate(in_turn(config.methods, shard.shard_idx + sample_idx + repeat))
    ]
