"""Where the exit heads for a task's prompts lie."""

from pathlib import Path

from adadecode.demo import HEADS_DIR
from adadecode.errors import UsageError
from adadecode.methods import any_needs_heads, any_reads_heads
from adadecode.published import DEMO_MEDUSA_DIR, published
from adadecode.settings import ORIGINAL_HEADS, BenchConfig, DecodingSettings, Domain, EvalConfig, TuneConfig


def has_heads(config: DecodingSettings | TuneConfig) -> bool:
    """Whether `config` names heads, or its model has its own."""
    return config.heads is not None or config.model == "demo"


def reads_heads(config: EvalConfig | BenchConfig) -> bool:
    """Whether the heads of `config` are to be loaded: its methods need some, or ask the n-grams beside those there are."""
    needs_heads = any_needs_heads(config.methods, config.decode.exits)
    return needs_heads or (any_reads_heads(config.methods) and has_heads(config))


def heads_missing(config: DecodingSettings | TuneConfig) -> UsageError:
    """The error of a configuration without heads."""
    return UsageError(
        f"--heads is missing: model {config.model!r} has no heads of its own; make some with `adadecode train-heads`, "
        "or choose methods that need none, such as vanilla"
    )


def heads_folder(config: DecodingSettings | TuneConfig, domain: Domain | None) -> Path | None:
    """Where the heads for prompts of `domain` lie: `--heads`, a folder or a name, or the demo's own for it (None: math).

    None for `--heads original`, which needs no folder. Raises UsageError where there are none.
    """
    if not has_heads(config):
        raise heads_missing(config)
    if config.heads == ORIGINAL_HEADS:
        return None
    if config.heads is None:
        return HEADS_DIR / (domain or "math")
    own, shipped = Path(config.heads), published(config.heads)
    return own if shipped is None or own.exists() else shipped


def medusa_folder(config: DecodingSettings, domain: Domain | None) -> Path | None:
    """Where the Medusa heads for prompts of `domain` lie, of `demo` the demo's own for it (None: math); None for none."""
    name = config.decode.medusa_heads
    if name == "demo":
        return DEMO_MEDUSA_DIR / (domain or "math")
    return None if name is None else Path(name)
