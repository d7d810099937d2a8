"""The page of a sweep, from the file over all of its cells."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from adadecode.errors import EXIT_FAILED, EXIT_MISMATCH, EXIT_OK, RunFolderError
from adadecode.methods import names_that_owe
from adadecode.page.content import TERMS, definitions, esc, interval, lines, titled
from adadecode.page.figures import summary_table
from adadecode.page.layout import Page, Part, laid_out
from adadecode.page.sweep_charts import sweep_charts
from adadecode.report.schema import SWEEP
from adadecode.report.summary import num_owed, parity_line, whole_tasks
from adadecode.runs.typed import typed_table

SWEEP_FILE = "sweep.parquet"
Row = Mapping[str, Any]


def sweep_page(location: str, content: bytes) -> Page:
    """The page of the sweep at `location`, whose SWEEP_FILE has `content`; judged by that file alone."""
    try:
        table = typed_table(content, SWEEP)
    except ValueError as error:
        raise RunFolderError(f"{location!r}: {SWEEP_FILE} cannot be read ({error}); sweep again to have it") from error
    rows = table.to_pylist()
    cells = {
        str(name): table.filter(pc.equal(table["cell"], name)) for name in dict.fromkeys(table["cell"].to_pylist())
    }
    problems, exit_code = _judged(cells)
    parity = [f"{name}: {parity_line(of)}" for name, of in cells.items()]
    own = f"each cell has a page of its own: adadecode report {location}/CELL --html"
    figures = titled("Summary", summary_table(rows, "cell")) + titled("What was checked", lines([*parity, own]))
    html = laid_out(
        title="AdaDecode: sweep",
        told=_sentence(rows, len(cells), problems),
        charts=list(sweep_charts(rows)),
        parts=[
            Part("figures", "Figures", figures),
            Part("provenance", "Provenance", definitions([("sweep", location)], "facts")),
        ],
        terms=TERMS,
        problems=problems,
    )
    return Page(html, exit_code, problems)


def _sentence(rows: Sequence[Row], num_cells: int, problems: Sequence[str]) -> str:
    """How many cells, the fastest of those whose outputs are owed, and whether all of them are exact; escaped."""
    told = [row for row in rows if row["category"] is None and row["method"] != row["baseline"]]
    told = [row for row in told if row["speedup_geomean"] is not None]
    exact = [row for row in told if row["method"] in names_that_owe("exact")]
    best = max(exact or told, key=lambda row: row["speedup_geomean"], default=None)
    if best is None:
        return f"{num_cells} cells; no speedup was measured."
    parity = f"not as it should be: {len(problems)} of them" if problems else "parity holds in all"
    return (
        f"{num_cells} cells; the fastest is <strong>{best['speedup_geomean']:.2f}x</strong>, {esc(best['cell'])} with "
        f"{esc(best['method'])} on {esc(best['task'])} {interval(best)}; {parity}."
    )


def _judged(cells: Mapping[str, pa.Table]) -> tuple[list[str], int]:
    """A line for each cell whose parity is broken or unproved, or of which nothing was measured; the exit code of all."""
    lines: list[str] = []
    code = EXIT_OK
    for name, summary in cells.items():
        rows = whole_tasks(summary).to_pylist()
        owing = [row for row in rows if row["method"] in names_that_owe("exact")]
        checked = sum(row["num_parity_checked"] or 0 for row in owing)
        broken = checked - sum(row["num_parity_exact"] or 0 for row in owing)
        failed = [row["method"] for row in rows if row["n"] == 0]
        if broken:
            lines.append(f"cell {name}: parity broken on {broken} of {checked} checked outputs")
            code = EXIT_MISMATCH
        elif checked < num_owed(summary) or failed:
            lines.append(
                f"cell {name}: every sample of {', '.join(failed)} failed"
                if failed
                else f"cell {name}: {num_owed(summary) - checked} outputs of vanilla have none to compare with"
            )
            code = code or EXIT_FAILED
    return lines, code
