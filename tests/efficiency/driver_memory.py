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

from adadecode.records import Shard
from adadecode.runs.run import close_run, open_run
from adadecode.settings import EvalConfig, build_settings

MAX_PEAK_BYTES = 2**30
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
                "task": shard.task,
                "sample_id": example.sample_id,
                "method": method,
                "repeat": 0,
                "turn": 0,
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
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(given.samples, given.shard_size, Path(folder))
    print(json.dumps(found))
    if found["peak_bytes"] > MAX_PEAK_BYTES:
        raise SystemExit(f"the driver took more than {MAX_PEAK_BYTES} bytes")


def measure(num_samples: int, shard_size: int, folder: Path) -> dict[str, Any]:
    """Plans, commits, closes and opens again a run of `num_samples`; returns seconds and peaks of memory."""
    prompts = folder / "prompts.jsonl"
    with prompts.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"prompt": f"{i} " + "w " * 64}) + "\n" for i in range(num_samples))
    flags = {"local": True, "task": "jsonl", "data_file": str(prompts), "methods": METHODS, "shard_size": shard_size}
    config = build_settings(EvalConfig, None, flags)
    tokens = np.random.default_rng(0).integers(0, 128_000, OUTPUT_LEN)
    began, in_commit_s = time.perf_counter(), 0.0
    with open_run(config, folder / "run") as prepared:
        planned = time.perf_counter()
        for shard in prepared.shards:
            rows = rows_of(shard, tokens)
            started = time.perf_counter()
            facts = {"worker_id": "worker-0", "model_hash": "m"}
            assert prepared.folder.commit_shard(shard.shard_idx, rows, facts, "attempt")
            in_commit_s += time.perf_counter() - started
        committed, before_close = time.perf_counter(), peak_bytes()
        result = close_run(prepared)
        closed = time.perf_counter()
    assert result.num_missing == 0, result.num_missing
    assert not result.disagreements, result.disagreements[:3]
    with open_run(config, folder / "run") as prepared:
        assert not prepared.todo
        opened = time.perf_counter()
    return {
        "num_samples": num_samples,
        "num_shards": len(prepared.shards),
        "plan_s": round(planned - began, 1),
        "commit_s": round(in_commit_s, 1),
        "close_s": round(closed - committed, 1),
        "open_again_s": round(opened - closed, 1),
        "peak_before_close_bytes": before_close,
        "peak_bytes": peak_bytes(),
    }


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
