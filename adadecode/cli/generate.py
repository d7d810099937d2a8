"""`generate` and `bench`: one prompt looked at, and speed measured."""

import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from adadecode.cli.console import console, say, say_on_stderr
from adadecode.cli.options import settings_options, some_path
from adadecode.errors import EXIT_MISMATCH, EXIT_OK, UsageError
from adadecode.methods import OURS, REFERENCE
from adadecode.settings import BenchConfig, EvalConfig, GenerateConfig, RivalSettings, build_settings

BENCH_WIDTH = 150
WARMUP_TOKENS = 16


@click.command("generate")
@click.argument("prompt", required=False)
@settings_options(GenerateConfig, leave_out=RivalSettings.model_fields)  # it decodes by none of their methods
@click.option("--compare", is_flag=True, help="Run vanilla too and compare tokens and speed.")
@click.option("--chat", "is_chat", is_flag=True, help="Talk with the model, whose answers come as they are verified.")
def generate_command(prompt: str | None, config_file: Path | None, compare: bool, is_chat: bool, **flags: Any) -> None:
    """Continue PROMPT, or what comes on standard input, coloured by the depth each token was drafted at, then statistics.

    With --chat PROMPT is the first message of a conversation, which /exit or Ctrl-D ends and /reset begins anew.
    """
    from adadecode.cli.chat import WARM_UP, chat, check_chat
    from adadecode.language_model import load_configured
    from adadecode.report.generation import coloured_text, statistics_lines

    if is_chat and compare:
        raise UsageError("--chat --compare: a conversation has one method; drop one of the two")
    if prompt is None and not is_chat:
        prompt = piped_text()
    lm = load_configured(build_settings(GenerateConfig, config_file, flags, beside=EvalConfig))
    for line in lm.notes:
        say_on_stderr(line)
    if is_chat:
        check_chat(lm)
        lm.generate(WARM_UP, max_new_tokens=WARMUP_TOKENS)
        chat(lm, prompt)
        return
    assert prompt is not None
    methods = (REFERENCE, OURS) if compare else (OURS,)
    for method in methods:
        lm.generate(prompt, method=method, max_new_tokens=WARMUP_TOKENS)  # the first of each pays for what is new
    generations = {method: lm.generate(prompt, method=method).generation for method in methods}
    out = console()
    out.print(coloured_text(generations[OURS], lm.tokenizer, lm.model.num_layers))
    for method, generation in generations.items():
        for line in statistics_lines(method, generation):
            out.print(line, highlight=False)
    if compare:
        same = generations[OURS].output_token_ids == generations[REFERENCE].output_token_ids
        say("tokens equal to vanilla's" if same else "tokens DIFFER from vanilla's")
        sys.exit(EXIT_OK if same else EXIT_MISMATCH)


def piped_text() -> str:
    """What comes on standard input, without the line break that ends it; raises UsageError where a person would type it."""
    if sys.stdin.isatty():
        raise UsageError("PROMPT is missing: give one, pipe text in, or give --chat for a conversation")
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError("standard input is not text in UTF-8: give some, or a PROMPT") from error
    if not text.strip():
        raise UsageError("PROMPT is missing, and standard input is empty: give one, pipe text in, or give --chat")
    return text.removesuffix("\n").removesuffix("\r")


@click.command("bench")
@settings_options(BenchConfig)
@click.option("--out", callback=some_path, metavar="PATH", help="Folder for bench.json, bench.txt and bench.parquet.")
def bench_command(config_file: Path | None, out: Path | None, **flags: Any) -> None:
    """Measure speed here: rounds, their parts, and what is between them.

    The last line is the result as one JSON object.
    """
    import json

    from adadecode.api import run_bench
    from adadecode.bench.bench import write_bench
    from adadecode.bench.table import bench_lines, bench_tables
    from adadecode.files import make_folder

    config = build_settings(BenchConfig, config_file, flags, beside=EvalConfig)
    if out is not None:
        make_folder(out)
    result, rows = run_bench(config, say=say_on_stderr)
    shown = Console(width=max(BENCH_WIDTH, console().width), record=True)
    for table in bench_tables(result):
        shown.print(table)
    for line in bench_lines(result):
        shown.print(line, highlight=False, markup=False)
    if out is not None:
        write_bench(out, result, rows, shown.export_text())
    say(json.dumps(result.to_json()))
    sys.exit(result.exit_code)
