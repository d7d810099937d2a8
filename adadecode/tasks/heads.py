"""The exit heads that go with a task: the folder the settings name, or the demo's for the task's domain."""

from pathlib import Path

from adadecode.demo import HEADS_DIR
from adadecode.errors import UsageError
from adadecode.settings import ORIGINAL_HEADS, BenchConfig, EvalConfig, TuneConfig
from adadecode.tasks import task_domain


def heads_folder(config: EvalConfig | BenchConfig | TuneConfig, task: str) -> Path | None:
    """Where the heads for `task` lie: `--heads`, or the demo's own for the task's domain (math when it has none).

    None for `--heads original`, which needs no folder.
    """
    if config.heads == ORIGINAL_HEADS:
        return None
    if config.heads is not None:
        return Path(config.heads)
    if config.model == "demo":
        return HEADS_DIR / (task_domain(task) or "math")
    raise UsageError(
        f"--heads is missing: model {config.model!r} has no heads of its own; make some with `adadecode train-heads`, "
        "or leave adadecode out of --methods"
    )
