"""The tables of a page: the summary, percentiles of times, scores, how far workers and repeats are apart."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from adadecode.methods import REFERENCE
from adadecode.page.content import table
from adadecode.report.cells import fraction_text, number_text, p_text
from adadecode.report.detail import Latency, percentile_texts
from adadecode.report.scores import mean_scores
from adadecode.report.stats import MIN_FOR_P99, Percentiles
from adadecode.report.tables import parity_text, speedup_text
from adadecode.report.variation import Variation, between_repeats, between_workers

TIMES = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "e2e"}  # as a page names them
Row = Mapping[str, Any]


def summary_table(summary: Sequence[Row], first: str | None = None) -> str:
    """The figures of SUMMARY rows as the terminal shows them; the column `first`, such as a sweep's `cell`, before them."""
    num_vanilla = {
        (row.get(first or ""), row["task"], row["category"]): row["n"] for row in summary if row["method"] == REFERENCE
    }
    columns = (
        "task",
        "method",
        "n",
        "errors",
        "tokens/s",
        "TPOT ms p50",
        "TTFT ms p50",
        "acceptance",
        "tokens a round",
    )
    columns += ("layers a token", "speedup (95 % interval)", "parity", "correct")
    rows = [
        (
            *(() if first is None else (row[first],)),
            row["task"] if row["category"] is None else f"{row['task']} / {row['category']}",
            row["method"],
            row["n"],
            row["num_errors"],
            number_text(row["tokens_per_s"], ".1f"),
            number_text(row["tpot_p50_s"], ".2f", 1000),
            number_text(row["ttft_p50_s"], ".1f", 1000),
            number_text(row["acceptance_rate"], ".1%"),
            number_text(row["tokens_per_round"], ".2f"),
            number_text(row["layers_per_token"], ".2f"),
            speedup_text(dict(row)),
            parity_text(dict(row), num_vanilla.get((row.get(first or ""), row["task"], row["category"]))),
            fraction_text(row["num_correct"], row["num_scored"]),
        )
        for row in summary
    ]
    return table(columns if first is None else (first, *columns), rows, "All figures, as the summary has them")


def percentiles_table(found: Iterable[Latency]) -> str:
    """The percentiles of every time that was measured, with how many values they are of."""
    rows = [(task, method, TIMES[time], *latency_texts(of)) for task, method, time, of in found]
    columns = ("task", "method", "time", "n", "p50, ms", "p90, ms", "p99, ms")
    return table(columns, rows, f"Percentiles of times; p99 is shown from {MIN_FOR_P99} values on")


def latency_texts(found: Percentiles) -> tuple[str, ...]:
    """The number of values and the percentiles in ms; why there is no 99th, where there is none."""
    *texts, p99 = percentile_texts(found)
    if found.p99 is None:
        p99 = f"n < {MIN_FOR_P99}" if found.n < MIN_FOR_P99 else "needs the rows"
    return *texts, p99


def scores_table(scores: pa.Table) -> str:
    """The mean score of each metric, of a SCORES table."""
    rows = [
        (
            *(row["task"], row["metric"], row["method"], row["n"], number_text(row["score"], ".3f"), row["without"]),
            f"{row['scorer']} {row['scorer_version']}",
        )
        for row in mean_scores(scores)
    ]
    columns = ("task", "metric", "method", "n", "mean score", "without a score", "scorer")
    return table(columns, rows, "Mean scores by metric")


def spread_rows(rows: pa.Table, named: Iterable[tuple[str, str]]) -> Iterator[tuple[str, ...]]:
    """Task, method, what is apart in what, by how much, of those `named` with several workers or repeats in ok `rows`."""
    for task, method in named:
        of = rows.filter((pc.field("task") == task) & (pc.field("method") == method)).combine_chunks()
        found = (("workers", "TPOT", between_workers(of)), ("repeats", "e2e", between_repeats(of)))
        for what, time, spread in found:
            if spread is not None:
                yield task, method, what, time, *spread_texts(spread)


def spread_texts(spread: Variation) -> tuple[str, ...]:
    """How many groups, how far they are apart, what varies within one, the F test's p."""
    p_value = None if spread.p_value is None else p_text(spread.p_value)
    return str(spread.num_groups), f"{spread.between:.1%}", f"{spread.within:.1%}", p_value or "not tested"


def spread_table(rows: Sequence[tuple[str, ...]], *first: str) -> str:
    """What `spread_rows` says, the column `first` before it where one is named."""
    columns = (*first, "task", "method", "between", "in", "how many", "apart by", "within one", "F test")
    return table(columns, rows, "Variation that an interval over prompts does not hold, as shares of a time")
