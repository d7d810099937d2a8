"""Where the exit heads for a task's prompts lie."""

from pathlib import Path

from adadecode.demo import HEADS_DIR
from adadecode.errors import UsageError
from adadecode.settings import ORIGINAL_HEADS, DecodingSettings, Domain, TuneConfig


def heads_folder(config: DecodingSettings | TuneConfig, domain: Domain | None) -> Path | None:
    """Where the heads for prompts of `domain` lie: `--heads`, or the demo's own for it (those for math when None).

    None for `--heads original`, which needs no folder.
    """
    if config.heads == ORIGINAL_HEADS:
        return None
    if config.heads is not None:
        return Path(config.heads)
    if config.model == "demo":
        return HEADS_DIR / (domain or "math")
    raise UsageError(
        f"--heads is missing: model {config.model!r} has no heads of its own; make some with `adadecode train-heads`, "
        "or leave adadecode out of --methods"
    )
