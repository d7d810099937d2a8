"""What every executor shares: preparing a run folder, doing one shard in it, and closing the run."""

import functools
import importlib.metadata
import logging
import platform
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adadecode import __version__
from adadecode.config import EvalConfig
from adadecode.errors import RunFolderError
from adadecode.evaluation.plan import make_plan, plan_hash, plan_table
from adadecode.evaluation.sources import source_hashes
from adadecode.evaluation.store import RunFolder, missing_rows, new_attempt, read_commits, read_run, read_samples
from adadecode.evaluation.worker_log import shard_context
from adadecode.records import Shard, ShardOutcome
from adadecode.report.errors import error_lines
from adadecode.report.parity import recompute_parity, stored_disagreements
from adadecode.report.summary import summarise
from adadecode.tasks import expand_task, load_examples

log = logging.getLogger(__name__)

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
    errors: list[str]  # a line that says how many samples failed, and how; none without
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


@contextmanager
def open_run(config: EvalConfig, out: Path | None) -> Iterator[PreparedRun]:
    yield prepare_run(config, out)


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
        errors=error_lines(samples),
        num_missing=missing_rows(plan, samples, methods, repeats),
    )


def do_shard(worker: Any, shard: Shard, folder: RunFolder) -> tuple[ShardOutcome, float | None]:
    """Evaluates `shard` on `worker` and commits its rows, unless that was done; returns what it came to.

    Beside it how long it would have taken had every output been of `max_new_tokens`, in seconds; None: not known.
    """
    from adadecode.evaluation.worker import evaluate_shard

    if (outcome := folder.committed_outcome(shard.shard_idx)) is not None:
        return outcome, None
    with shard_context(shard.shard_idx):
        rows = evaluate_shard(worker, shard)
        return commit_rows(folder, shard, rows, worker_facts(worker)), full_length_s(rows, worker.config)


def evaluate_sample_alone(
    worker: Any, shard: Shard, sample_idx: int
) -> tuple[list[dict[str, Any]], dict[str, Any], float | None]:
    """The rows of one sample, which nothing commits, the facts for their commit, and the seconds as in `do_shard`."""
    from adadecode.evaluation.worker import evaluate_sample

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
