"""`eval`, `plan` and `report`: runs, what they would take, what they came to."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adadecode.cli.console import console, resume_command, say, say_on_stderr
from adadecode.cli.options import integers, settings_options, some_path, some_text, some_texts
from adadecode.cli.watch import Watcher
from adadecode.errors import EXIT_MISMATCH, EXIT_OK, AdaDecodeError, StoppedError, UsageError, worst_code
from adadecode.evaluation.stop import StopRequest
from adadecode.settings import MAX_WORKERS, EvalConfig, build_settings

if TYPE_CHECKING:
    import pyarrow as pa

    from adadecode.evaluation.shelf import ModelShelf
    from adadecode.runs.listing import ListedRun
    from adadecode.runs.result import RunResult

DEFAULT_GPUS = (1, 2, 4, 8)


@click.command("eval")
@settings_options(EvalConfig)
@click.option(
    "--out",
    callback=some_text,
    help="Run folder, or s3:// or gs:// URL.  [default: results/<task>-<fingerprint>]",
)
def eval_command(config_file: Path | None, out: str | None, **flags: Any) -> None:
    """Evaluate AdaDecode against vanilla decoding; rerun the same command to finish what is missing.

    Without arguments: the embedded model on the embedded prompts.
    """
    config = build_settings(EvalConfig, config_file, flags)
    with StopRequest(config.grace_s, say_on_stderr) as stop:
        sys.exit(report_result(evaluate(config, out, stop, Watcher()), resume_command()))


def evaluate(
    config: EvalConfig, out: str | None, stop: StopRequest, watcher: Watcher, models: "ModelShelf | None" = None
) -> "RunResult":
    """`adadecode.evaluate`, shown by `watcher` as it goes; says how to go on when it ends early."""
    from adadecode import api

    try:
        result = api.evaluate(config, out, observer=watcher, stop=stop, command=resume_command(), models=models)
        from adadecode.report.tables import model_notes
        from adadecode.runs.folder import read_run

        names = {} if config.local else {"model": config.model, "draft_model": config.decode.draft_model}
        for of, name in names.items():  # those of a local run were said when it was loaded
            for note in model_notes(read_run(result.folder), of):
                say_on_stderr(f"adadecode: --{of.replace('_', '-')} {name!r}: {note}")
        return result
    except StoppedError as error:
        raise StoppedError(f"{error}; go on with: {resume_command()}") from error
    except AdaDecodeError as error:
        if watcher.closed is not None and watcher.closed.num_missing and not isinstance(error, UsageError):
            line = watcher.closed.missing_line(resume_command())
            click.get_current_context().find_root().call_on_close(lambda: say_on_stderr(line))  # after the error
        raise


def report_result(result: "RunResult", resume: str | None = None) -> int:
    """Prints the summary, the parity and what is wrong; returns the exit code. `resume` is the command that goes on."""
    print_result(result, result.lines(), resume)
    return result.exit_code


def print_result(result: "RunResult", lines: list[str], resume: str | None = None, *, detail: bool = False) -> None:
    """Prints the summary, in `detail` or not, with `lines` under it, and why the exit code is not 0 on stderr."""
    from adadecode.report.detail import spread_lines

    print_summary(result.summary, result.rows, detail)
    spread = spread_lines(result.rows) if detail and result.rows is not None else []
    for line in [*lines, *spread]:
        say(line)
    for line in result.problem_lines(resume):
        say_on_stderr(line)


def print_summary(summary: "pa.Table", rows: "pa.Table | None", detail: bool) -> None:
    """Prints the table of five figures, and in `detail` the others and the times of `rows`."""
    from adadecode.report.detail import detail_table, latencies, times_table
    from adadecode.report.tables import summary_table

    console().print(summary_table(summary))
    if detail:
        console().print(detail_table(summary))
        console().print(times_table(latencies(summary, rows)))


@click.command("plan")
@settings_options(EvalConfig)
@click.option("--rates", callback=some_text, help="Run folder (or its URL) whose measured times predict this run's.")
@click.option("--gpus", callback=integers, help="Numbers of workers to predict for, with --rates.  [default: 1,2,4,8]")
def plan_command(config_file: Path | None, rates: str | None, gpus: tuple[int, ...] | None, **flags: Any) -> None:
    """Show how a run would be sharded; with --rates, how long it would take. Loads no model and writes nothing."""
    from adadecode.runs.plan import num_planned, plan_hash
    from adadecode.runs.run import plan_run

    config = build_settings(EvalConfig, config_file, flags)
    if gpus is not None and rates is None:
        raise UsageError(f"--gpus {','.join(map(str, gpus))}: without --rates no time is known; give a finished run")
    if gpus is not None and not 1 <= min(gpus) <= max(gpus) <= MAX_WORKERS:
        raise UsageError(
            f"--gpus {','.join(map(str, gpus))}: numbers of workers, each from 1 to {MAX_WORKERS}, such as 1,2,4,8"
        )
    config, shards, plan = plan_run(config)
    for task in dict.fromkeys(shard.task for shard in shards):
        of_task = [shard for shard in shards if shard.task == task]
        num_samples = sum(len(shard.examples) for shard in of_task)
        say(f"{task}: {num_samples} samples in {len(of_task)} shards of at most {config.shard_size}")
    num_turns = sum(example.num_turns for shard in shards for example in shard.examples)
    turns = "" if num_turns == plan.num_rows else f" of {num_turns} turns in all"
    say(
        f"{plan.num_rows} samples{turns} x {len(config.methods)} methods x {config.repeats} repeats = "
        f"{num_planned(plan, config.methods, config.repeats)} rows; plan hash {plan_hash(plan)}"
    )
    if rates is not None:
        from adadecode.evaluation.capacity import plan_capacity, read_rates
        from adadecode.evaluation.capacity_table import capacity_lines, methods_table, times_table

        capacity = plan_capacity(shards, plan, config, read_rates(rates), gpus or DEFAULT_GPUS)
        console().print(methods_table(capacity))
        console().print(
            times_table(capacity, "GPU" if config.device == "cuda" and config.gpus_per_worker == 1 else "worker")
        )
        for line in capacity_lines(capacity):
            say(line)


@click.command("report")
@click.argument("runs", nargs=-1, required=True, callback=some_texts)
@click.option("--detail", is_flag=True, help="Show all figures, times, and how far workers and repeats are apart.")
@click.option(
    "--html", is_flag=True, help="Write a page of a run, a sweep or several runs instead: one file, no network needed."
)
@click.option(
    "--out",
    callback=some_path,
    help="With --html: file to write.  [default: report.html in RUN; here for several RUNS or a URL]",
)
def report_command(runs: tuple[str, ...], detail: bool, html: bool, out: Path | None) -> None:
    """Print a run's settings and its tables, recomputed and judged as `verify` does; or list the runs in a folder.

    Several RUNS are printed one after another, and with --html are one page beside each other. The exit code is the worst
    of theirs: 3 a parity mismatch or contradictory tables, 4 planned rows missing, 1 nothing measured. With --html it is
    the same, after the page is written.
    """
    if html and detail:
        raise UsageError("--detail --html: the page has all figures; give one of the two")
    if html:
        from adadecode.cli.pages import write_report

        sys.exit(write_report(runs, out))
    if out is not None:
        raise UsageError(f"--out {str(out)!r} without --html: report prints, and writes a page with --html alone")
    from adadecode.runs.listing import runs_below

    listed = [runs_below(run) for run in runs]  # so that one that is none is told before the first is printed
    for run, below in zip(runs, listed, strict=True):
        if detail and below is not None:
            raise UsageError(f"{run!r} --detail: it holds runs, and a detail is of one; give one of them")
    codes: list[int] = []
    for run, below in zip(runs, listed, strict=True):
        if len(runs) > 1:
            say(f"== {run}")
        codes.append(print_run(run, detail=detail) if below is None else print_listing(below))
    sys.exit(worst_code(codes))


def print_listing(listed: "list[ListedRun]") -> int:
    """Prints a line for each task of the runs in a folder; returns the exit code."""
    from adadecode.runs.listing import listing_table

    console().print(listing_table(listed))
    return EXIT_OK


def print_run(run: str, *, detail: bool) -> int:
    """Prints a run, in `detail` or not, a certification or what was published of a run; returns its exit code."""
    from adadecode.certify.result import is_certification, read_certification
    from adadecode.cli.certify import print_certification
    from adadecode.evaluation.start_up import start_up_lines
    from adadecode.report.tables import provenance_lines
    from adadecode.runs.engines import stored_facts
    from adadecode.runs.folder import read_run
    from adadecode.runs.lease import driver_status
    from adadecode.runs.listing import read_published
    from adadecode.runs.result import read_result
    from adadecode.runs.starts import start_lines
    from adadecode.runs.storage import open_storage

    facts = read_run(run)
    if facts.get("status") == "running":
        facts["status"] = driver_status(open_storage(run))
    if is_certification(facts):
        if detail:
            raise UsageError(f"{run!r} --detail: a certification has one table, without it")
        for line in provenance_lines(facts):
            say(line)
        return print_certification(read_certification(run))
    if (published := read_published(run)) is not None:
        for line in (*provenance_lines(facts), *start_lines(facts)):
            say(line)
        return print_published(facts, *published, detail=detail)
    result = read_result(run)
    start_up = start_up_lines(stored_facts(facts)) if detail else []
    status = facts["status"] if result.status == "running" else result.status
    for line in (*provenance_lines(facts | {"status": status}), *start_lines(facts)):
        say(line)
    print_result(result, [*result.findings(), *start_up], detail=detail)
    return result.exit_code


def print_published(run: dict[str, Any], summary: "pa.Table", lines: list[str], *, detail: bool = False) -> int:
    """Prints a run that was published without its rows, and what contradicts it; returns the exit code."""
    from adadecode.runs.engines import published_engine_lines

    print_summary(summary, None, detail)
    for line in (
        *lines,
        *published_engine_lines(run),
        "its rows are not here: the table is as it was published, nothing was recomputed",
    ):
        say(line)
    return EXIT_MISMATCH if lines else EXIT_OK
