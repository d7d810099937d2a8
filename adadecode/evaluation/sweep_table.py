"""What a person reads of a sweep: the figures of all of its cells as one rich table."""

from typing import Any

import pyarrow as pa
from rich.table import Table

from adadecode.methods import REFERENCE
from adadecode.report.cells import cell, number_text
from adadecode.report.summary import whole_tasks
from adadecode.report.tables import figures_table, method_label, parity_text, speedup_text

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


def sweep_table(sweep: pa.Table) -> Table:
    """A rich table with one line per cell, task and method of a SWEEP table, without those of categories.

    `-` stands for not measured. It wants up to 120 columns.
    """
    table = figures_table(COLUMNS, num_names=3)
    shown_cell, rows = None, whole_tasks(sweep).to_pylist()
    vanilla = {(row["cell"], row["task"]): row["n"] for row in rows if row["method"] == REFERENCE}
    for row in rows:
        name = row["cell"] if row["cell"] != shown_cell else ""
        shown_cell = row["cell"]
        figures = _figures(row, vanilla.get((row["cell"], row["task"])))
        table.add_row(cell(name), cell(row["task"]), method_label(row), *map(cell, figures))
    return table


def _figures(row: dict[str, Any], num_vanilla: int | None) -> tuple[str, ...]:
    """What the table shows of a SWEEP row after its cell, task and method."""
    return (
        str(row["n"]) + (f" ({row['num_errors']} err)" if row["num_errors"] else ""),
        number_text(row["tokens_per_s"], ".1f"),
        speedup_text(row),
        number_text(row["acceptance_rate"], ".1%"),
        number_text(row["layers_per_token"], ".2f"),
        parity_text(row, num_vanilla),
        number_text(row["consistency"], ".3f"),
    )
