"""The driver's memory and time for a large run: its shards committed by a real store, then the run closed.

The rows are made up, of realistic size; nothing is decoded. The last line is one JSON object.
"""

import argparse
import json
import resource
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from adadecode.config import EvalConfig, build_settings
from adadecode.evaluation.plan import make_plan, plan_table
from adadecode.evaluation.run import PreparedRun, close_run
from adadecode.evaluation.store import RunFolder
from adadecode.records import Example, Shard

OUTPUT_LEN = 256
METHODS = ("vanilla", "vanilla-w1", "adadecode")


def rows_of(shard: Shard, tokens: np.ndarray) -> list[dict[str, Any]]:
    """A row per sample and method, outputs all equal."""
    rows = []
    for idx, example in enumerate(shard.examples):
        ids = np.roll(tokens, shard.shard_idx + idx).tolist()
        for order_idx, method in enumerate(METHODS):
            e2e_s = 1.0 + 0.01 * ((shard.shard_idx + idx + order_idx) % 17)
            row = {
                "run_id": "run",
                "task": shard.task,
                "sample_id": example.sample_id,
                "method": method,
                "repeat": 0,
                "shard": shard.shard_idx,
                "status": "ok",
                "prompt_len": 64,
                "prompt_token_ids": ids[:64],
                "output_len": OUTPUT_LEN,
                "output_token_ids": ids,
                "output_text": " ".join(map(str, ids)),
                "finish_reason": "length",
                "ttft_s": 0.02,
                "decode_s": e2e_s - 0.02,
                "e2e_s": e2e_s,
                "tpot_s": (e2e_s - 0.02) / (OUTPUT_LEN - 1),
                "step_gaps_s": [0.004] * (OUTPUT_LEN - 1),
                "num_rounds": OUTPUT_LEN - 1,
                "layers_per_token": 32.0,
                "logits_digest": f"{shard.shard_idx:032x}",
                "lossy": False,
                "width": 6,
                "order_idx": order_idx,
                "worker_id": "worker-0",
                "attempt": "attempt",
                "started_at": datetime(2026, 1, 1, tzinfo=UTC),
            }
            if method != "vanilla":
                row |= {"parity": "exact", "logits_equal": True}
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--shard-size", type=int, default=4)
    parser.add_argument("--out", help="[default: a temporary folder]")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        result = measure(given.samples, given.shard_size, given.out or str(Path(temporary) / "run"))
    print(json.dumps(result))


def measure(num_samples: int, shard_size: int, out: str) -> dict[str, Any]:
    begin = time.perf_counter()
    examples = [Example(f"{i:06d}", "w " * 64, "w " * 64) for i in range(num_samples)]
    config = build_settings(EvalConfig, None, {"local": True, "methods": METHODS, "shard_size": shard_size})
    shards = make_plan({"jsonl": examples}, shard_size)
    plan = plan_table(shards)
    folder = RunFolder.open(out, "f00d", {"config": config.model_dump(mode="json")})
    prepared = PreparedRun(config, folder, ("jsonl",), shards, plan)
    planned = time.perf_counter()
    tokens = np.random.default_rng(0).integers(0, 128_000, OUTPUT_LEN)
    in_commit_s = 0.0
    for shard in shards:
        rows = rows_of(shard, tokens)
        started = time.perf_counter()
        assert folder.commit_shard(shard.task, shard.shard_idx, rows, {"worker_id": "worker-0", "model_hash": "m"})
        in_commit_s += time.perf_counter() - started
    committed = time.perf_counter()
    before_close = peak_bytes()
    assert folder.check_commits() == []
    checked = time.perf_counter()
    result = close_run(prepared)
    assert result.num_missing == 0, result.num_missing
    assert not result.disagreements, result.disagreements[:3]
    return {
        "num_samples": num_samples,
        "num_shards": len(shards),
        "plan_s": round(planned - begin, 1),
        "commit_s": round(in_commit_s, 1),
        "check_s": round(checked - committed, 1),
        "close_s": round(time.perf_counter() - checked, 1),
        "peak_before_close_bytes": before_close,
        "peak_bytes": peak_bytes(),
    }


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
