"""A run's metrics, read where Prometheus would read them: at the port of a real node."""

import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import pyarrow.compute as pc
import pytest
import ray

from adadecode.api import evaluate
from adadecode.evaluation.observer import Quiet
from adadecode.evaluation.progress import RunProgress
from adadecode.records import ShardOutcome, WorkerState
from adadecode.runs.folder import read_run, read_samples
from adadecode.settings import EvalConfig
from ray_jobs.metrics import RunMetrics, WorkerMetrics
from tests.unit.test_grafana import metrics_in_docs

DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def metrics_cluster():
    """As `ray_cluster`, but with metrics that are reported each tenth of a second instead of each tenth second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        often = {"metrics_report_interval_ms": 100}
        quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
        ray.init(address="local", num_cpus=1, _system_config=often, **quiet)
        yield
        ray.shutdown()


def exported(run_id: str) -> dict[str, float]:
    """The figures of `run_id` that the node's metrics port gives now, by name."""
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with build_opener(ProxyHandler({})).open(url, timeout=10) as answer:
        text = answer.read().decode()
    lines = re.findall(r"^ray_adadecode_(\w+)\{(.*)\} (\S+)$", text, flags=re.MULTILINE)
    return {name: float(value) for name, tags, value in lines if f'run="{run_id}"' in tags}


def wait_for(run_id: str, expected: dict[str, float]) -> dict[str, float]:
    """What is exported of `run_id`, as soon as what is `expected` is among it or after a minute."""
    give_up_at = time.monotonic() + DEADLINE_S
    while not expected.items() <= (found := exported(run_id)).items() and time.monotonic() < give_up_at:
        pass
    return found


def test_a_node_exports_how_the_run_stands(metrics_cluster):
    now_s = 0.0
    before = ShardOutcome(
        num_samples=4, num_error_samples=0, num_output_tokens=500, busy_s=1.0, num_exact=4, num_owed=4
    )
    shard = ShardOutcome(num_samples=4, num_error_samples=1, num_output_tokens=300, busy_s=1.0, num_exact=2, num_owed=3)
    progress = RunProgress(48, before, clock=lambda: now_s)
    workers = [WorkerState("worker-0", "a", "working", "shard 7", 3.0), WorkerState("worker-1", "a", "idle", "", 3.0)]
    metrics = RunMetrics("jsonl-1a2b")
    now_s = 10.0
    metrics.update(progress, workers)
    progress.add(shard)
    metrics.update(progress, workers)
    progress.add(shard)
    metrics.update(progress, workers)
    metrics.update(progress, workers)
    metrics.worker_restarted()
    WorkerMetrics("jsonl-1a2b").count_drafts(40, 30)
    expected: dict[str, float] = {
        "samples_planned": 48,
        "samples_done": 12,
        "error_samples": 2,
        "output_tokens_total": 600,
        "tokens_per_second": 60,
        "parity_exact": 8,
        "parity_owed": 10,
        "workers": 2,
        "workers_working": 1,
        "worker_restarts_total": 1,
        "lease_held": 1,
        "drafted_tokens_total": 40,
        "accepted_tokens_total": 30,
    }
    assert wait_for("jsonl-1a2b", expected) == expected
    assert {f"ray_adadecode_{name}" for name in expected} == metrics_in_docs()
    RunMetrics("jsonl-3c4d").update(RunProgress(5), [], is_ours=False)
    later = wait_for(
        "jsonl-3c4d",
        expected=dict.fromkeys((name for name in expected if not name.endswith("_total")), 0.0)
        | {"samples_planned": 5},
    )
    assert later["samples_planned"] == 5
    assert exported("jsonl-1a2b") == expected, "another run of the same driver has figures of its own"


class Scraping(Quiet):
    """Reads what is exported while the run goes: an actor's figures are gone with it."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self.found: dict[str, float] = {}

    def on_workers(self, states: Sequence[WorkerState]) -> None:
        self.found |= exported(read_run(self._run)["run_id"])


@pytest.mark.slow
def test_a_real_run_exports_what_the_dashboard_asks_for(metrics_cluster, tmp_path):
    config = EvalConfig(task="demo-math", limit=6, methods=("vanilla", "adadecode"), workers=1, shard_size=1)
    scraping = Scraping(tmp_path / "run")
    result = evaluate(config, tmp_path / "run", observer=scraping)
    assert result.exit_code == 0
    table = read_samples(tmp_path / "run")
    ended: dict[str, float] = {
        "samples_planned": 6,
        "samples_done": 6,
        "error_samples": 0,
        "output_tokens_total": pc.sum(table["output_len"]).as_py(),
        "parity_exact": 6,
        "parity_owed": 6,
        "workers": 0,
        "workers_working": 0,
        "lease_held": 1,
    }
    found = wait_for(read_run(tmp_path / "run")["run_id"], ended)
    assert found.keys() - ended.keys() <= {"tokens_per_second", "drafted_tokens_total", "accepted_tokens_total"}
    assert {name: found[name] for name in ended} == ended, "the end is told, or alarms would take it for a death"
    found = scraping.found | found
    names = {name.removeprefix("ray_adadecode_") for name in metrics_in_docs()}
    assert found.keys() == names - {"worker_restarts_total"}, "no worker was lost"
    for name in ("drafted", "accepted"):
        assert 0 < found[f"{name}_tokens_total"] <= pc.sum(table[f"num_{name}"]).as_py()
