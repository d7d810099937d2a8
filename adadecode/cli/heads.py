"""`train-heads` and `tune`: exit heads for a model, and the policy they are fastest with."""

import sys
from pathlib import Path
from typing import Any

import click

from adadecode.cli.console import console, say
from adadecode.cli.options import settings_options, some_path
from adadecode.settings import EvalConfig, TrainConfig, TuneConfig, build_settings


@click.command("train-heads")
@settings_options(TrainConfig)
@click.option("--out", callback=some_path, metavar="PATH", required=True, help="Folder for the heads.")
def train_heads_command(config_file: Path | None, out: Path, **flags: Any) -> None:
    """Train exit heads on the model's own greedy outputs; rerun the same command to resume."""
    from adadecode.api import train_heads
    from adadecode.training.table import heads_table

    facts = train_heads(build_settings(TrainConfig, config_file, flags, beside=EvalConfig), out, say=say)
    console().print(heads_table(facts.training))
    say(f"heads: {out}")


@click.command("tune")
@settings_options(TuneConfig)
@click.option("--out", callback=some_path, metavar="PATH", required=True, help="Folder for trace, policy and tables.")
def tune_command(config_file: Path | None, out: Path, **flags: Any) -> None:
    """Find the fastest policy for a model on this machine, and say how far from the best possible it is.

    Records what every candidate exit proposes (trace.parquet, reused), measures what calls cost, replays policies and
    writes the best as policy.yaml for `eval --policy`.
    """
    from adadecode.api import tune
    from adadecode.tuning.table import tune_lines, tune_table

    result = tune(build_settings(TuneConfig, config_file, flags, beside=EvalConfig), out, say=say)
    console().print(tune_table(result))
    for line in tune_lines(result):
        say(line)
    say(f"policy: {out / 'policy.yaml'}")
    sys.exit(result.exit_code)
