"""What every executor shares: preparing a run folder, doing one shard in it, and closing the run."""

import functools
import importlib.metadata
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adadecode import __version__
from adadecode.config import EvalConfig
from adadecode.errors import RunFolderError
from adadecode.evaluation.outcome import outcome_of
from adadecode.evaluation.plan import make_plan, plan_hash, plan_table
from adadecode.evaluation.sources import source_hashes
from adadecode.evaluation.store import RunFolder, missing_rows, new_attempt, read_commits, read_run, read_samples
from adadecode.records import Shard, ShardOutcome
from adadecode.report.parity import recompute_parity, stored_disagreements
from adadecode.report.schema import SAMPLES
from adadecode.report.summary import summarise
from adadecode.tasks import expand_task, load_examples

PACKAGES = ("torch", "transformers", "ray", "datasets", "pyarrow", "tokenizers", "numpy", "scipy")


@dataclass(frozen=True)
class PreparedRun:
    """A run whose folder is open and whose shards are known."""

    config: EvalConfig
    folder: RunFolder
    tasks: tuple[str, ...]
    shards: tuple[Shard, ...]
    plan: pa.Table

    @functools.cached_property
    def todo(self) -> tuple[Shard, ...]:
        """The shards that had no commit when this process opened the run."""
        done = read_commits(self.folder.path)
        return tuple(shard for shard in self.shards if shard.shard_idx not in done)


@dataclass(frozen=True)
class RunResult:
    """What a run comes to, judged from its committed rows."""

    folder: Path
    summary: pa.Table
    verify: pa.Table
    disagreements: list[str]
    num_missing: int


def plan_run(config: EvalConfig) -> tuple[tuple[Shard, ...], pa.Table]:
    """The shards of `config` and the plan table; reads the data sets, loads no model."""
    examples = {
        task: load_examples(
            task,
            data_file=Path(config.data_file) if config.data_file else None,
            prompt_field=config.prompt_field,
            offset=config.offset,
            limit=config.limit,
        )
        for task in expand_task(config.task)
    }
    shards = make_plan(examples, config.shard_size)
    return shards, plan_table(shards)


def prepare_run(config: EvalConfig, out: Path | None) -> PreparedRun:
    """Plans the run and opens its folder, `results/<task>-<fingerprint>` when `out` is None."""
    shards, plan = plan_run(config)
    tasks = tuple(dict.fromkeys(shard.task for shard in shards))
    hashes = source_hashes(config, tasks) | {"plan": plan_hash(plan)}
    fingerprint = config.fingerprint(**hashes)
    facts = {
        "config": config.model_dump(mode="json"),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "provenance": provenance() | {"hashes": hashes},
    }
    folder = RunFolder.open(out or Path("results") / f"{config.task}-{fingerprint[:8]}", fingerprint, facts)
    folder.write_table("plan.parquet", plan)
    return PreparedRun(config, folder, tasks, shards, plan)


def close_run(prepared: PreparedRun) -> RunResult:
    """Writes verify.parquet and summary.parquet from the committed rows and sets the run's status."""
    folder = prepared.folder
    result = judge(folder.path, prepared.plan, prepared.config.methods, prepared.config.repeats)
    folder.write_table("verify.parquet", result.verify)
    folder.write_table("summary.parquet", result.summary)
    workers = {commit["worker"]["worker_id"]: commit["worker"] for commit in read_commits(folder.path).values()}
    folder.update_run(status="incomplete" if result.num_missing else "complete", workers=list(workers.values()))
    return result


def reopen_result(path: Path) -> RunResult:
    """What the run in `path` comes to, recomputed from its tables alone; writes nothing."""
    config = read_run(path)["config"]
    try:
        plan = pq.read_table(path / "plan.parquet")
    except (OSError, pa.ArrowException) as error:
        raise RunFolderError(f"{str(path)!r}: plan.parquet cannot be read; run the same command again") from error
    return judge(path, plan, config["methods"], config["repeats"])


def judge(path: Path, plan: pa.Table, methods: Sequence[str], repeats: int) -> RunResult:
    """Summary, parity and missing rows of the committed rows in `path`."""
    samples = read_samples(path)
    verify = recompute_parity(samples)
    hashes = sorted({commit["worker"].get("model_hash", "unknown") for commit in read_commits(path).values()})
    mixed = [f"shards were computed with different weights: {', '.join(hashes)}"] if len(hashes) > 1 else []
    return RunResult(
        folder=path,
        summary=summarise(samples),
        verify=verify,
        disagreements=mixed + stored_disagreements(samples, verify),
        num_missing=missing_rows(plan, samples, methods, repeats),
    )


def do_shard(worker: Any, shard: Shard, folder: RunFolder) -> ShardOutcome:
    """Evaluates `shard` on `worker` and commits its rows, unless another attempt was first; returns what they come to."""
    from adadecode.evaluation.worker import evaluate_shard

    rows = evaluate_shard(worker, shard, folder.run_id, new_attempt())
    facts = worker.facts() | {"adadecode": __version__, "git_sha": git_sha()}
    folder.commit_shard(shard.task, shard.shard_idx, rows, facts)
    return outcome_of(pa.Table.from_pylist(rows, schema=SAMPLES))


def provenance() -> dict[str, Any]:
    """Where the code that plans this run comes from: versions, git revision, platform."""
    return {
        "adadecode": __version__,
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES if _installed(name)},
        "platform": platform.platform(),
        "git_sha": git_sha(),
        "git_dirty": bool(_git("status", "--porcelain")) if git_sha() else None,
    }


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@functools.cache
def git_sha() -> str | None:
    """The revision of the checkout this package runs from; None when git does not track its files."""
    return _git("rev-parse", "HEAD") if _git("ls-files", "--error-unmatch", Path(__file__).name) else None


def _git(*arguments: str) -> str | None:
    """The output of git in this file's folder; None when it fails."""
    folder = Path(__file__).resolve().parent
    try:
        result = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
