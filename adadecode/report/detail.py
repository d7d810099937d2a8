"""What stands behind `--detail`: figures that are not among the first five, times, what workers and repeats differ in."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pyarrow as pa
from rich.table import Table

from adadecode.report.cells import cell, number_text, p_text
from adadecode.report.findings import Columns
from adadecode.report.stats import Percentiles, percentiles
from adadecode.report.summary import whole_tasks
from adadecode.report.tables import by_task, figures_table
from adadecode.report.variation import Variation, between_repeats, between_workers

LATENCIES = ("ttft_s", "tpot_s", "e2e_s")
COLUMNS = (
    "task",
    "method",
    "decode\ntokens/s",
    "layers\n/token",
    "tokens\n/round",
    "\ndrafted",
    "\naccepted",
    "speedup\nof totals",
)
CAPTION = (
    "decode tokens/s: without the first token; speedup of totals: of all prompts' time together, without an interval"
)
TIMES_COLUMNS = ("task", "method", "time", "n", "p50 ms", "p90 ms", "p99 ms")
TIMES_CAPTION = "p99 from 100 values on"


class Latency(NamedTuple):
    """The percentiles of one time, `ttft`, `tpot` or `e2e`, of a method on a task."""

    task: str
    method: str
    time: str
    found: Percentiles


def detail_table(summary: pa.Table) -> Table:
    """A rich table with one line per row of a SUMMARY table; `-` stands for not measured."""
    table = figures_table(COLUMNS, num_names=2, caption=CAPTION)
    for task, row in by_task(summary.to_pylist()):
        figures = (
            number_text(row["decode_tokens_per_s"], ".1f"),
            number_text(row["layers_per_token"], ".2f"),
            number_text(row["tokens_per_round"], ".2f"),
            number_text(row["num_drafted"], "d"),
            number_text(row["num_accepted"], "d"),
            number_text(row["speedup_total"], ".2f") + ("x" if row["speedup_total"] is not None else ""),
        )
        table.add_row(*map(cell, (task, row["method"], *figures)))
    return table


def latencies(summary: pa.Table, rows: pa.Table | None) -> Iterator[Latency]:
    """The times of each task and method, of `rows` of SAMPLES, or of the SUMMARY alone, which has no 99th percentile."""
    columns = None if rows is None else Columns(rows)
    for row in whole_tasks(summary).to_pylist():
        for name in LATENCIES:
            found = Percentiles(
                row[f"{name[:-2]}_p50_s"], row[f"{name[:-2]}_p90_s"], row["num_tpot"] if name == "tpot_s" else row["n"]
            )
            if columns is not None:
                of = columns.is_ok & columns.equal("task", row["task"]) & columns.equal("method", row["method"])
                found = percentiles(columns.numbers(name)[of])
            yield Latency(row["task"], row["method"], name.removesuffix("_s"), found)


def times_table(found: Iterable[Latency]) -> Table:
    """A rich table with a line for each of `found`."""
    table = figures_table(TIMES_COLUMNS, num_names=3, caption=TIMES_CAPTION)
    shown = None
    for task, method, time, of in found:
        names = ("", "") if (task, method) == shown else (task, method)
        shown = (task, method)
        table.add_row(*map(cell, (*names, time, *percentile_texts(of))))
    return table


def percentile_texts(found: Percentiles) -> tuple[str, ...]:
    """The number of values, and the percentiles in milliseconds."""
    return str(found.n), *(number_text(value, ".2f", scale=1000) for value in (found.p50, found.p90, found.p99))


def spread_lines(rows: pa.Table) -> list[str]:
    """A line for each task and method of ok `rows` that has several workers or repeats: how far apart they are."""
    columns, lines = Columns(rows), list[str]()
    for of in rows.group_by(["task", "method"], use_threads=False).aggregate([]).to_pylist():
        mask = columns.is_ok & columns.equal("task", of["task"]) & columns.equal("method", of["method"])
        parts = list(_spread(rows.filter(pa.array(mask))))
        if parts:
            lines.append(f"{of['method']} on {of['task']} varies {' and '.join(parts)}")
    return lines


def _spread(rows: pa.Table) -> Iterator[str]:
    of_workers, of_repeats = between_workers(rows), between_repeats(rows)
    if of_workers is not None:
        yield _text("TPOT", "workers", of_workers)
    if of_repeats is not None:
        yield _text("e2e", "repeats", of_repeats)


def _text(of: str, what: str, found: Variation) -> str:
    p_value = "" if found.p_value is None else f", F test {p_text(found.p_value)}"
    return f"in {of} by {found.between:.1%} between {found.num_groups} {what} ({found.within:.1%} within one{p_value})"
