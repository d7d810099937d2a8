"""`generate` and `bench`: one prompt looked at, and speed measured."""

import sys
from pathlib import Path
from typing import Any

import click

from adadecode.cli.console import console
from adadecode.cli.options import settings_options
from adadecode.errors import EXIT_MISMATCH, EXIT_OK
from adadecode.methods import REFERENCE
from adadecode.settings import BenchConfig, GenerateConfig, build_settings

BENCH_WIDTH = 150
SHOWN = "adadecode"


@click.command("generate")
@click.argument("prompt")
@settings_options(GenerateConfig)
@click.option("--compare", is_flag=True, help="Run vanilla too and compare tokens and speed.")
def generate_command(prompt: str, config_file: Path | None, compare: bool, **flags: Any) -> None:
    """Continue PROMPT, coloured by the depth each token was drafted at, then the statistics."""
    from adadecode.api import load_configured
    from adadecode.report.generation import coloured_text, statistics_lines

    lm = load_configured(build_settings(GenerateConfig, config_file, flags))
    methods = (REFERENCE, SHOWN) if compare else (SHOWN,)
    for method in methods:
        lm.generate(prompt, method=method)  # the first of each pays for what is new
    generations = {method: lm.generate(prompt, method=method).generation for method in methods}
    out = console()
    out.print(coloured_text(generations[SHOWN], lm.tokenizer, lm.model.num_layers))
    for method, generation in generations.items():
        for line in statistics_lines(method, generation):
            out.print(line, highlight=False)
    if compare:
        same = generations[SHOWN].output_token_ids == generations[REFERENCE].output_token_ids
        click.echo("tokens equal to vanilla's" if same else "tokens DIFFER from vanilla's")
        sys.exit(EXIT_OK if same else EXIT_MISMATCH)


@click.command("bench")
@settings_options(BenchConfig)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for bench.json, bench.txt and bench.parquet.")
def bench_command(config_file: Path | None, out: Path | None, **flags: Any) -> None:
    """Measure speed here: rounds, their parts, and what is between them.

    The last line is the result as one JSON object.
    """
