"""What every executor shares: preparing a run folder, doing one shard in it, and closing the run."""

import functools
import hashlib
import importlib.metadata
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from adadecode import __version__
from adadecode.config import EvalConfig
from adadecode.evaluation.plan import make_plan, plan_hash, plan_table
from adadecode.evaluation.store import RunFolder, missing_rows, new_attempt
from adadecode.records import Shard
from adadecode.report.parity import recompute_parity, stored_disagreements
from adadecode.report.summary import summarise
from adadecode.tasks import expand_task, load_examples

PACKAGES = ("torch", "transformers", "ray", "datasets", "pyarrow", "tokenizers", "numpy", "scipy")
HASHED_SUFFIXES = {".json", ".safetensors", ".model", ".txt", ".jinja"}


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
        done = self.folder.commits()
        return tuple(shard for shard in self.shards if shard.shard_idx not in done)


@dataclass(frozen=True)
class RunResult:
    """What a closed run comes to."""

    summary: pa.Table
    verify: pa.Table
    disagreements: list[str]
    num_missing: int
    run: dict[str, Any]


def plan_run(config: EvalConfig) -> tuple[tuple[Shard, ...], pa.Table]:
    """The shards of `config` and the plan table; reads the data sets, loads no model."""
    examples = {
        task: load_examples(
            task,
            data_file=Path(config.data_file) if config.data_file else None,
            prompt_field=config.prompt_field,
            limit=config.limit,
        )
        for task in expand_task(config.task)
    }
    shards = make_plan(examples, config.shard_size)
    return shards, plan_table(shards)


def prepare_run(config: EvalConfig, out: Path, sources: dict[str, Path]) -> PreparedRun:
    """Plans the run and opens its folder; `sources` are the local model and heads folders whose content it depends on."""
    shards, plan = plan_run(config)
    facts = {name: hash_folder(path) for name, path in sources.items()}
    fingerprint = config.fingerprint(plan=plan_hash(plan), **facts)
    folder = RunFolder.open(
        out,
        fingerprint,
        {
            "config": config.model_dump(mode="json"),
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "provenance": provenance() | {"plan_hash": plan_hash(plan), "source_hashes": facts},
        },
    )
    folder.write_table("plan.parquet", plan)
    return PreparedRun(config, folder, tuple(dict.fromkeys(shard.task for shard in shards)), shards, plan)


def close_run(prepared: PreparedRun) -> RunResult:
    """Writes verify.parquet and summary.parquet from the committed rows and sets the run's status."""
    folder, config = prepared.folder, prepared.config
    samples = folder.samples()
    verify, summary = recompute_parity(samples), summarise(samples)
    folder.write_table("verify.parquet", verify)
    folder.write_table("summary.parquet", summary)
    num_missing = missing_rows(prepared.plan, samples, config.methods, config.repeats)
    workers = {commit["worker"]["worker_id"]: commit["worker"] for commit in folder.commits().values()}
    run = folder.update_run(status="incomplete" if num_missing else "complete", workers=list(workers.values()))
    return RunResult(summary, verify, stored_disagreements(samples, verify), num_missing, run)


def do_shard(worker: Any, shard: Shard, folder: RunFolder) -> bool:
    """Evaluates `shard` on `worker` and commits its rows; False when another attempt was first."""
    from adadecode.evaluation.worker import evaluate_shard

    rows = evaluate_shard(worker, shard, folder.run_id, new_attempt())
    return folder.commit_shard(shard.task, shard.shard_idx, rows, worker.facts())


def hash_folder(path: Path) -> str:
    """A hash of the model files in a folder, or of one file."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.suffix in HASHED_SUFFIXES)
    for file in files:
        with file.open("rb") as stream:
            digest.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def provenance() -> dict[str, Any]:
    """Where the code that plans this run comes from: versions, git revision, platform."""
    return {
        "adadecode": __version__,
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES if _installed(name)},
        "platform": platform.platform(),
        "git_sha": _git("rev-parse", "HEAD"),
        "git_dirty": None if (status := _git("status", "--porcelain")) is None else bool(status),
    }


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _git(*arguments: str) -> str | None:
    """The output of git in this package's own checkout; None when it is installed without one."""
    folder = Path(__file__).resolve().parent
    try:
        result = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
