"""Runs of a configuration in this process, on the connected cluster and as a command; what of their rows must be equal."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from adadecode.evaluation.local import run_local
from adadecode.evaluation.observer import Quiet
from adadecode.records import ShardOutcome, WorkerState
from adadecode.report.schema import SAMPLES
from adadecode.runs.folder import read_samples
from adadecode.runs.result import RunResult
from adadecode.runs.run import close_run, open_run
from adadecode.settings import EvalConfig
from ray_jobs.actors import EvalActor
from ray_jobs.evaluation import run_on_ray
from ray_jobs.scheduler import Limits

REPOSITORY = Path(__file__).parents[2]
TIMES_AND_PLACES = {
    *("run_id", "worker_id", "attempt", "started_at"),
    *("ttft_s", "decode_s", "e2e_s", "tpot_s", "step_gaps_s"),
}
DETERMINISTIC = [name for name in SAMPLES.names if name not in TIMES_AND_PLACES]


class Recorder(Quiet):
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.outcomes: list[ShardOutcome] = []
        self.lines: list[str] = []
        self.workers: list[Sequence[WorkerState]] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def on_shard(self, outcome: ShardOutcome) -> None:
        self.outcomes.append(outcome)

    def on_workers(self, states: Sequence[WorkerState]) -> None:
        self.workers.append(states)

    def on_lost_worker(self, line: str) -> None:
        self.lines.append(line)


def deterministic(out: Path) -> pa.Table:
    """The committed rows less timings and placement, in one order."""
    keys = [(name, "ascending") for name in ("task", "sample_id", "method", "repeat")]
    return read_samples(out).select(DETERMINISTIC).sort_by(keys).combine_chunks()


def run_in_process(config: EvalConfig, out: Path) -> RunResult:
    """The run without Ray, on one thread as each actor has."""
    with open_run(config.model_copy(update={"local": True, "workers": 1}), out) as prepared:
        run_local(prepared)
        return close_run(prepared)


def run_on_cluster(
    config: EvalConfig,
    out: Path,
    *,
    limits: Limits | None = None,
    actor_class: Any = EvalActor,
    stop_after: int | None = None,
    observer: Recorder | None = None,
) -> RunResult:
    """The run on the cluster this process is connected to; asked to stop after `stop_after` shards."""
    observer = observer or Recorder()
    with open_run(config, out) as prepared:
        run_on_ray(
            prepared,
            observer,
            lambda: stop_after is not None and len(observer.outcomes) >= stop_after,
            limits,
            actor_class,
        )
        return close_run(prepared)


def eval_command(config: EvalConfig, out: Path, module: str = "adadecode") -> list[str]:
    """The command that runs `config` into `out`, from the repository; `module` is `adadecode` or one with faults."""
    file = out.with_name(f"{out.name}-{config.workers}.yaml")
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    return [sys.executable, "-m", module, "eval", "--config", str(file), "--out", str(out)]
