"""A sweep's cells in one table."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from rich import box
from rich.table import Table
from rich.text import Text

from adadecode.report.cells import fraction_text, number_text
from adadecode.report.schema import SWEEP
from adadecode.report.tables import CAPTION, method_label, speedup_text

COLUMNS = (
    "cell",
    "task",
    "method",
    "n",
    "tokens\n/s",
    "speedup\n(95 % CI)",
    "accept\nrate",
    "layers\n/token",
    "parity",
    "consis-\ntency",
)
FOLDING: dict[str, Any] = {
    "cell": {"overflow": "fold", "min_width": 8},
    "task": {"overflow": "fold", "min_width": 6},
    "method": {"overflow": "fold", "min_width": 10},
    "speedup\n(95 % CI)": {"min_width": 11},
}


def join_cells(summaries: Mapping[str, pa.Table]) -> pa.Table:
    """A SWEEP table: the rows of each cell's SUMMARY table with the cell's name, in the cells' order."""
    rows = [{"cell": cell, **row} for cell, summary in summaries.items() for row in summary.to_pylist()]
    return pa.Table.from_pylist(rows, schema=SWEEP)


def sweep_table(sweep: pa.Table) -> Table:
    """A rich table with one line per row of a SWEEP table; `-` stands for not measured. It wants up to 120 columns."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, caption=CAPTION, caption_justify="left")
    for name in COLUMNS:
        justify = "left" if name in COLUMNS[:3] else "right"
        table.add_column(name, justify=justify, **FOLDING.get(name, {"no_wrap": True}))
    shown_cell = None
    for row in sweep.to_pylist():
        cell = row["cell"] if row["cell"] != shown_cell else ""
        shown_cell = row["cell"]
        # Text, because a string would have its brackets read as markup
        table.add_row(*(Text(text) for text in (cell, row["task"], method_label(row), *_cells(row))))
    return table


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(row["n"]) + (f" ({row['num_errors']} err)" if row["num_errors"] else ""),
        number_text(row["tokens_per_s"], ".1f"),
        speedup_text(row),
        number_text(row["acceptance_rate"], ".1%"),
        number_text(row["layers_per_token"], ".2f"),
        fraction_text(row["num_parity_exact"], row["num_parity_checked"]),
        number_text(row["consistency"], ".3f"),
    )
