"""What a run in a bucket asks of it, by the number of its commits: requests, bytes, and seconds at a given latency.

The rows are made up, of realistic size; nothing is decoded. The store is `counting_store.py`'s, asked through s3fs as any
other. Prints one JSON object for each step of a run's life.

    python tests/efficiency/bucket_commits.py --shards 10000
"""

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import click
import numpy as np

from adadecode.records import Shard
from adadecode.runs.result import read_result
from adadecode.runs.run import PreparedRun, close_run, open_run
from adadecode.settings import EvalConfig, build_settings
from tests.efficiency.counting_store import BUCKET, counting_store, told
from tests.efficiency.driver_memory import METHODS, OUTPUT_LEN, rows_of

T = TypeVar("T")
NUM_WRITERS = 16


def commit_all(prepared: PreparedRun, shards: Sequence[Shard]) -> None:
    """Commits the shards with made-up rows, some at once."""
    tokens = np.random.default_rng(0).integers(0, 128_000, OUTPUT_LEN)

    def commit(shard: Shard) -> None:
        facts = {"worker_id": "worker-0", "model_hash": "m"}
        assert prepared.folder.commit_shard(shard.shard_idx, rows_of(shard, tokens), facts, "attempt")

    with ThreadPoolExecutor(NUM_WRITERS) as pool:
        list(pool.map(commit, shards))


@click.command()
@click.option("--shards", default=10_000, show_default=True)
@click.option("--shard-size", default=1, show_default=True)
@click.option("--latency-ms", default=20.0, show_default=True, help="Of each request, beside what this machine takes.")
def main(shards: int, shard_size: int, latency_ms: float) -> None:
    """Measures one run of that many commits."""
    with TemporaryDirectory() as folder, counting_store() as endpoint:
        prompts = Path(folder, "prompts.jsonl")
        lines = [json.dumps({"prompt": f"{idx} " + "w " * 64}) for idx in range(shards * shard_size)]
        prompts.write_text("\n".join(lines), encoding="utf-8")
        flags = {"local": True, "task": "jsonl", "data_file": str(prompts), "methods": METHODS}
        config = build_settings(EvalConfig, None, flags | {"shard_size": shard_size})
        out = f"s3://{BUCKET}/run"

        def step(name: str, do: Callable[[], T], num: int = 1) -> T:
            """Does it and prints what it asked of the store, each figure divided by `num`."""
            told(endpoint)
            began, began_cpu = time.monotonic(), time.process_time()
            found = do()
            wall_s, cpu_s = time.monotonic() - began, time.process_time() - began_cpu
            counts = told(endpoint)
            facts: dict[str, Any] = {"step": name, "commits": shards, "samples": shards * shard_size}
            facts |= {"latency_ms": latency_ms, "wall_s": round(wall_s / num, 3), "cpu_s": round(cpu_s / num, 3)}
            for unit in ("requests", "bytes"):
                facts[unit] = round(sum(count[unit] for count in counts.values()) / num, 1)
            facts["by_kind"] = {kind: round(count["requests"] / num, 1) for kind, count in sorted(counts.items())}
            click.echo(json.dumps(facts))
            return found

        with open_run(config, out) as prepared:
            *most, last = prepared.shards
            commit_all(prepared, most)
            told(endpoint, latency_ms / 1000)
            step("a commit", lambda: commit_all(prepared, [last]))
            result = step("close", lambda: close_run(prepared))
        assert not result.num_missing, result.lines()
        with open_run(config, out) as prepared:
            assert not prepared.todo
            step("the lease, per 30 s", lambda: time.sleep(30))

        def resume() -> None:
            with open_run(config, out) as prepared:
                assert not prepared.todo

        step("resume, nothing to do", resume)
        assert step("report", lambda: read_result(out)).num_missing == 0


if __name__ == "__main__":
    main()
