"""The command line: parse, build the settings, call the library, print.

Heavy imports wait for the command that needs them.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from adadecode import __version__
from adadecode.cli.evaluate import console, evaluate, report_result, resume_command, say_on_stderr
from adadecode.cli.options import (
    data_flags,
    decode_flags,
    integers,
    kernel_flags,
    model_flags,
    names,
    policy_flags,
    run_flags,
)
from adadecode.errors import EXIT_INCOMPLETE, EXIT_MISMATCH, EXIT_OK, AdaDecodeError, UsageError
from adadecode.evaluation.stop import StopRequest
from adadecode.settings import BenchConfig, EvalConfig, TrainConfig, TuneConfig, build_settings

BENCH_WIDTH = 150
DEFAULT_GPUS = (1, 2, 4, 8)


class OneLineErrors(click.Group):
    """Turns an AdaDecodeError into one line on stderr and its documented exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except AdaDecodeError as error:
            click.echo(f"adadecode: {error}", err=True)
            ctx.exit(error.exit_code)


@click.group(cls=OneLineErrors)
@click.version_option(__version__)
def main() -> None:
    """Lossless early-exit decoding, evaluated over whole data sets on Ray.

    Exit codes: 0 ok, 1 the run failed, 2 usage, 3 parity mismatch, 4 planned rows missing.
    """


@main.command("eval")
@model_flags
@kernel_flags
@data_flags
@decode_flags
@run_flags
@click.option("--out", help="Run folder, or s3:// or gs:// URL.  [default: results/<task>-<fingerprint>]")
def eval_command(config_file: Path | None, out: str | None, **flags: Any) -> None:
    """Evaluate AdaDecode against vanilla decoding; rerun the same command to finish what is missing.

    Without arguments: the embedded model on the embedded prompts.
    """
    config = build_settings(EvalConfig, config_file, flags)
    with StopRequest(config.grace_s, say_on_stderr) as stop:
        sys.exit(report_result(evaluate(config, out, stop), resume_command()))


@main.command("plan")
@model_flags
@kernel_flags
@data_flags
@decode_flags
@run_flags
@click.option("--rates", help="Run folder (or its URL) whose measured times predict this run's.")
@click.option("--gpus", callback=integers, help="Numbers of workers to predict for, with --rates.  [default: 1,2,4,8]")
def plan_command(config_file: Path | None, rates: str | None, gpus: tuple[int, ...] | None, **flags: Any) -> None:
    """Show how a run would be sharded; with --rates, how long it would take. Loads no model and writes nothing."""
    from adadecode.runs.plan import plan_hash
    from adadecode.runs.run import plan_run

    config = build_settings(EvalConfig, config_file, flags)
    if gpus is not None and rates is None:
        raise UsageError(f"--gpus {','.join(map(str, gpus))}: without --rates no time is known; give a finished run")
    if gpus is not None and min(gpus) < 1:
        raise UsageError(f"--gpus {','.join(map(str, gpus))}: numbers of workers, each at least 1, such as 1,2,4,8")
    shards, plan = plan_run(config)
    rows_per_sample = len(config.methods) * config.repeats
    for task in dict.fromkeys(shard.task for shard in shards):
        of_task = [shard for shard in shards if shard.task == task]
        num_samples = sum(len(shard.examples) for shard in of_task)
        click.echo(f"{task}: {num_samples} samples in {len(of_task)} shards of at most {config.shard_size}")
    click.echo(
        f"{plan.num_rows} samples x {len(config.methods)} methods x {config.repeats} repeats = "
        f"{plan.num_rows * rows_per_sample} rows; plan hash {plan_hash(plan)}"
    )
    if rates is not None:
        from adadecode.evaluation.capacity import capacity_lines, methods_table, plan_capacity, read_rates, times_table

        capacity = plan_capacity(shards, plan, config, read_rates(rates), gpus or DEFAULT_GPUS)
        console().print(methods_table(capacity))
        console().print(times_table(capacity, "GPU" if config.device == "cuda" else "worker"))
        for line in capacity_lines(capacity):
            click.echo(line)


@main.command("sweep")
@model_flags
@kernel_flags
@data_flags
@click.option("--gammas", help="Gammas with commas.  [default: the policy's]")
@click.option("--exits", "exit_sets", multiple=True, help="Exit layers, such as 4,8,12; repeat for more cells.")
@click.option("--max-drafts", "max_drafts_list", help="Numbers with commas.  [default: the policy's]")
@click.option("--tasks", "task_list", help="Tasks with commas; default: --task.")
@policy_flags
@run_flags
@click.option("--out", default="results/sweep", show_default=True, help="Folder, or s3:// or gs:// URL.")
def sweep_command(
    config_file: Path | None,
    gammas: str | None,
    exit_sets: Sequence[str],
    max_drafts_list: str | None,
    task_list: str | None,
    out: str,
    **flags: Any,
) -> None:
    """Evaluate a grid of settings, or the `cells` that --config names; rerun to finish it.

    One run folder per cell under --out, and sweep.parquet over all of them.
    """
    from adadecode.evaluation.sweep import Grid, check_heads_exist, plan_cells, write_sweep
    from adadecode.evaluation.sweep_table import sweep_table
    from adadecode.runs.storage import join

    grid = Grid(
        _split(task_list, str),
        _split(gammas, float),
        tuple(_split(text, int) for text in exit_sets),
        _split(max_drafts_list, int),
    )
    cells = plan_cells(config_file, grid, flags)
    check_heads_exist(cells)
    codes, summaries = [], {}
    with StopRequest(max(cell.config.grace_s for cell in cells), say_on_stderr) as stop:
        for idx, cell in enumerate(cells):
            click.echo(f"cell {idx + 1}/{len(cells)}: {cell.name}")
            result = evaluate(cell.config, join(out, cell.name), stop)
            codes.append(report_result(result, resume_command()))
            summaries[cell.name] = result.summary
            if stop.is_made and idx + 1 < len(cells):
                say_on_stderr(f"{len(cells) - idx - 1} cells were not begun; go on with: {resume_command()}")
                sys.exit(max(EXIT_INCOMPLETE, *codes))
    console().print(sweep_table(write_sweep(out, summaries)))
    click.echo(f"sweep: {out}")
    sys.exit(max(codes))


def _split(text: str | None, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    """The values in `text`, none when it is None."""
    if text is None:
        return ()
    try:
        return tuple(kind(part.strip()) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{text!r} must be {kind.__name__} values with commas") from None


@main.command("generate")
@click.argument("prompt")
@model_flags
@kernel_flags
@decode_flags
@click.option("--compare", is_flag=True, help="Run vanilla too and compare tokens and speed.")
@click.option("--domain", type=click.Choice(["math", "code"]), default="math", help="Which of the demo's heads.")
def generate_command(prompt: str, config_file: Path | None, compare: bool, domain: str, **flags: Any) -> None:
    """Continue PROMPT, coloured by the depth each token was drafted at, then the statistics."""
    from adadecode.evaluation.local import generate_once
    from adadecode.report.generation import coloured_text, statistics_lines

    flags |= {"local": True, "workers": 1, "task": f"demo-{domain}", "methods": ("vanilla", "adadecode")}
    config = build_settings(EvalConfig, config_file, flags)
    worker, generations = generate_once(config, prompt, config.methods if compare else ("adadecode",))
    out = console()
    out.print(coloured_text(generations["adadecode"], worker.tokenizer, worker.model.num_layers))
    for method, generation in generations.items():
        for line in statistics_lines(method, generation):
            out.print(line, highlight=False)
    if compare:
        same = generations["adadecode"].output_token_ids == generations["vanilla"].output_token_ids
        click.echo("tokens equal to vanilla's" if same else "tokens DIFFER from vanilla's")
        sys.exit(EXIT_OK if same else EXIT_MISMATCH)


@main.command("bench")
@model_flags
@kernel_flags
@click.option(
    "--shape", help="Synthetic weights of a published size: llama-3.1-8b, llama-3.2-1b, qwen3-8b, llama-160m."
)
@data_flags
@decode_flags
@click.option(
    "--methods",
    callback=names,
    help="[default: vanilla,vanilla-w1,adadecode; also: transformers, adadecode-unverified (lossy)]",
)
@click.option("--repeats", type=int, help="Measurements of each method, after one to warm up.  [default: 5]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for bench.json, bench.txt and bench.parquet.")
def bench_command(config_file: Path | None, out: Path | None, **flags: Any) -> None:
    """Measure speed here: rounds, their parts, and what is between them; 128 new tokens unless told.

    The last line is the result as one JSON object.
    """
    import json

    from adadecode.bench.bench import make_folder, run_bench, write_bench
    from adadecode.bench.table import bench_lines, bench_tables

    config = build_settings(BenchConfig, config_file, flags)
    if out is not None:
        make_folder(out)
    result, rows = run_bench(config, lambda line: click.echo(line, err=True))
    shown = Console(width=max(BENCH_WIDTH, console().width), record=True)
    for table in bench_tables(result):
        shown.print(table)
    for line in bench_lines(result):
        shown.print(line, highlight=False, markup=False)
    if out is not None:
        write_bench(out, result, rows, shown.export_text())
    click.echo(json.dumps(result.to_json()))
    sys.exit(result.exit_code)


@main.command("train-heads")
@model_flags
@data_flags
@click.option("--kind", help="transform, low-rank, full, shortlist or original.  [default: transform]")
@click.option("--rank", type=int, help="Rank of low-rank heads.  [default: 32]")
@click.option("--exits", callback=integers, help="Exit layers, any number.  [default: L/4, L/2, 3L/4]")
@click.option("--max-new-tokens", type=int, help="Longest output to learn from.  [default: 256]")
@click.option("--seed", type=int, help="Order of the batches and choice of held-out prompts.  [default: 0]")
@click.option("--epochs", type=int, help="[default: 8]")
@click.option("--batch-tokens", type=int, help="Tokens per training step.  [default: 1024]")
@click.option("--learning-rate", type=float, help="[default: 0.001]")
@click.option("--held-out", type=float, help="Share of the prompts kept for the report.  [default: 0.1]")
@click.option("--kl-top-k", type=int, help="KL over this many tokens and the rest, to save memory.  [default: all]")
@click.option("--shortlist-len", type=int, help="Tokens of the cheap heads.  [default: V / 4, at most 32768]")
@click.option("--outputs", help="Folder of other heads whose outputs to learn from.  [default: --out]")
@click.option("--part-prompts", type=int, help="Prompts whose outputs are stored together.  [default: 512]")
@click.option("--workers", type=int, help="Ray actors that generate.  [default: in this process, without Ray]")
@click.option("--address", help="HOST:PORT of a running Ray head, with --workers.  [default: this machine]")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the heads.")
def train_heads_command(config_file: Path | None, out: Path, **flags: Any) -> None:
    """Train exit heads on the model's own greedy outputs; rerun the same command to resume."""
    from adadecode.training.table import heads_table

    config = build_settings(TrainConfig, config_file, flags)
    if config.workers is None:
        from adadecode.training.train import train_from_config

        facts = train_from_config(config, out, click.echo)
    else:
        from ray_jobs.cluster import connect
        from ray_jobs.training import train_on_ray

        connect(config.address)
        facts = train_on_ray(config, out, click.echo)
    console().print(heads_table(facts.training))
    click.echo(f"heads: {out}")


@main.command("tune")
@model_flags
@kernel_flags
@data_flags
@click.option("--heads", help="Folder of exit heads.  [default for demo: its own]")
@click.option("--exits", callback=integers, help="Candidate exits.  [default: all that have heads]")
@click.option("--head", help="What an exit test runs: full or shortlist.  [default: shortlist if there is one]")
@click.option("--max-drafts", type=int, help="Most drafts that are considered, 1 to 7.  [default: 5]")
@click.option("--max-new-tokens", type=int, help="[default: 256]")
@click.option("--held-out", type=float, help="Share of the prompts the search does not see.  [default: 0.25]")
@click.option("--folds", type=int, help="Of the cross-validation.  [default: 5]")
@click.option("--repeats", type=int, help="Measurements of each held-out prompt and policy.  [default: 3]")
@click.option("--seed", type=int, help="Choice of held-out prompts and folds.  [default: 0]")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for trace, policy and tables.")
def tune_command(config_file: Path | None, out: Path, **flags: Any) -> None:
    """Find the fastest policy for a model on this machine, and say how far from the best possible it is.

    Records what every candidate exit proposes (trace.parquet, reused), measures what calls cost, replays policies and
    writes the best as policy.yaml for `eval --policy`.
    """
    from adadecode.tuning.table import tune_lines, tune_table
    from adadecode.tuning.tune import tune_from_config

    result = tune_from_config(build_settings(TuneConfig, config_file, flags), out, click.echo)
    console().print(tune_table(result))
    for line in tune_lines(result):
        click.echo(line)
    click.echo(f"policy: {out / 'policy.yaml'}")
    sys.exit(result.exit_code)


@main.command("report")
@click.argument("run")
def report_command(run: str) -> None:
    """Print a run's tables, from its committed rows."""
    from adadecode.report.errors import error_lines
    from adadecode.report.summary import parity_line, summarise
    from adadecode.report.tables import mismatch_lines, provenance_lines, summary_table
    from adadecode.runs.folder import read_commits, read_run
    from adadecode.runs.run import read_committed

    facts, committed = read_run(run), read_committed(run, read_commits(run))
    for line in provenance_lines(facts):
        click.echo(line)
    summary = summarise(committed.narrow, committed.verify)
    console().print(summary_table(summary))
    click.echo(parity_line(summary))
    for line in error_lines(committed.narrow) + mismatch_lines(committed.verify):
        click.echo(line)


@main.command("verify")
@click.argument("run")
def verify_command(run: str) -> None:
    """Recompute the parity of a run from its tables alone: token ids, lengths, digests, stored claims, planned rows."""
    from adadecode.runs.run import reopen_result

    sys.exit(report_result(reopen_result(run)))


@main.command("tasks")
def tasks_command() -> None:
    """List the data sets."""
    from rich.table import Table

    from adadecode.tasks import TASKS

    table = Table("task", "what", "source", "demo heads")
    for name, task in TASKS.items():
        table.add_row(name, task.description, task.source, task.domain or "-")
    console().print(table)


@main.command("submit", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--address", default="http://127.0.0.1:8265", show_default=True, help="The head's dashboard.")
@click.option("--working-dir", help="Folder sent to the cluster, where adadecode is not installed there.")
@click.argument("command", type=click.Choice(["eval", "train-heads"]))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def submit_command(address: str, working_dir: str | None, command: str, arguments: tuple[str, ...]) -> None:
    """Run `adadecode eval` or `train-heads` with ARGUMENTS as a Ray job; exits with the driver's own exit code.

    --out must be on storage every node sees; a relative one is taken from this folder.
    """
    from ray_jobs.submit import submit_job

    arguments = with_absolute_out(arguments)
    sys.exit(submit_job(command, arguments, address, working_dir, lambda text: click.echo(text, nl=False)))


def with_absolute_out(arguments: Sequence[str]) -> tuple[str, ...]:
    """`arguments` with --out absolute or a URL: a job runs in a folder of its own; raises UsageError without one."""
    from adadecode.runs.storage import absolute

    given = list(arguments)
    for idx, argument in enumerate(given):
        if argument.startswith("--out="):
            given[idx : idx + 1] = ["--out", argument.removeprefix("--out=")]
    if "--out" not in given:
        raise UsageError("--out is missing: a job needs a run folder on storage every node of the cluster sees")
    value_idx = given.index("--out") + 1
    if value_idx == len(given):
        raise UsageError("--out needs a folder")
    given[value_idx] = absolute(given[value_idx])
    return tuple(given)
