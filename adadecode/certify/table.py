"""A certification as a person reads it."""

from typing import Any

import pyarrow as pa
from rich.table import Table

from adadecode.certify.compare import BASELINE
from adadecode.report.cells import cell, fraction_text, number_text
from adadecode.report.tables import figures_table, speedup_text

COLUMNS = (
    "task",
    "server",
    "n",
    "errors",
    "tokens\n/s",
    "TPOT\nms p50",
    "TTFT\nms p50",
    "accept\nrate",
    "speedup\n(95 % CI)",
    "equal",
    "correct",
)
CAPTION = (
    "n: outputs; speedup: geometric mean of n prompts' e2e ratios over the baseline, and its 95 % interval; equal: outputs "
    "of the candidate that are the baseline's of the same pass, and of the baseline that are its own of the first"
)


def certify_table(summary: pa.Table) -> Table:
    """A rich table with a line per server of a SUMMARY table; `-` stands for not measured.

    The column of errors is there when there are any.
    """
    rows = summary.to_pylist()
    has_errors = any(row["num_errors"] for row in rows)
    table = figures_table([name for name in COLUMNS if has_errors or name != "errors"], num_names=2, caption=CAPTION)
    for row in rows:
        table.add_row(*map(cell, _cells(row, has_errors)))
    return table


def _task(row: dict[str, Any]) -> str:
    return row["task"] if row["category"] is None else f"- {row['category']}"


def _cells(row: dict[str, Any], has_errors: bool) -> tuple[str, ...]:
    return (
        _task(row) if row["method"] == BASELINE else "",
        row["method"],
        str(row["n"]),
        *([str(row["num_errors"])] if has_errors else []),
        number_text(row["tokens_per_s"], ".1f"),
        number_text(row["tpot_p50_s"], ".2f", scale=1000),
        number_text(row["ttft_p50_s"], ".1f", scale=1000),
        number_text(row["acceptance_rate"], ".1%"),
        speedup_text(row),
        fraction_text(row["num_parity_exact"], row["num_parity_checked"]),
        fraction_text(row["num_correct"], row["num_scored"]),
    )
