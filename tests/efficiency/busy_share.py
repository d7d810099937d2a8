"""The share of wall time that a run's workers spent decoding, from its first generation to its last, start-up left out.

Prints one JSON object. Decoding is `e2e_s`: prefill and all rounds, not comparing, hashing or writing.

    python tests/efficiency/busy_share.py RUN
"""

import json
from datetime import timedelta

import click

from adadecode.runs.folder import read_samples


@click.command()
@click.argument("run")
def main(run: str) -> None:
    """Measures the finished run at RUN."""
    rows = read_samples(run).select(["worker_id", "started_at", "e2e_s"]).to_pylist()
    busy_s: dict[str, float] = {}
    for row in rows:
        busy_s[row["worker_id"]] = busy_s.get(row["worker_id"], 0.0) + row["e2e_s"]
    began = {worker: min(row["started_at"] for row in rows if row["worker_id"] == worker) for worker in busy_s}
    ended = max(row["started_at"] + timedelta(seconds=row["e2e_s"]) for row in rows)
    wall_s = {worker: (ended - start).total_seconds() for worker, start in began.items()}
    click.echo(
        json.dumps(
            {
                "num_rows": len(rows),
                "num_workers": len(busy_s),
                "busy_share": sum(busy_s.values()) / sum(wall_s.values()),
                "busy_share_per_worker": {worker: busy_s[worker] / wall_s[worker] for worker in sorted(busy_s)},
                "wall_s": max(wall_s.values()),
            }
        )
    )


if __name__ == "__main__":
    main()
