"""What an interval over the prompts of one run does not hold: how far workers, repeats and runs are apart."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from adadecode.comparison.pairs import PROMPT, Pairs
from adadecode.report.cells import p_text
from adadecode.report.findings import Columns
from adadecode.report.variation import Variation, between_repeats, between_workers, variation


def spread_lines(pairs: Pairs) -> list[str]:
    """A line for each side, task and method that has several workers or repeats: how far apart they are."""
    of = pairs.a.group_by(["task", "method"], use_threads=False).aggregate([]).to_pylist()
    lines: list[str] = []
    for row in of:
        found = pairs.of(row["task"], row["method"])
        for side, rows in zip(("A", "B"), found.sides, strict=True):
            parts = list(_parts(rows))
            if parts:
                lines.append(f"{side}: {row['method']} on {row['task']} varies {' and '.join(parts)}")
    return lines


def between_runs(tables: Sequence[pa.Table]) -> Variation | None:
    """The variation of e2e between runs, whose rows of one task and method (`compared_columns`) are `tables`.

    Over the samples, turns and repeats that all of them measured with the same prompt; None where these are too few.
    """
    stacked = pa.concat_tables(tables).combine_chunks()
    runs = np.repeat(np.arange(len(tables)), [table.num_rows for table in tables])
    columns = Columns(stacked)
    times, rows = columns.numbers("e2e_s"), columns.codes("sample_id", "turn", "repeat", PROMPT)
    measured = np.isfinite(times) & columns.is_ok
    kept = measured & (np.bincount(rows[measured], minlength=len(rows))[rows] == len(tables))
    return variation(runs[kept], times[kept], columns.codes("sample_id", "turn", PROMPT)[kept])


def _parts(rows: pa.Table) -> Iterator[str]:
    of_workers, of_repeats = between_workers(rows), between_repeats(rows)
    if of_workers is not None:
        yield _text("TPOT", "workers", of_workers)
    if of_repeats is not None:
        yield _text("e2e", "repeats", of_repeats)


def _text(of: str, what: str, found: Variation) -> str:
    p_value = "" if found.p_value is None else f", F test {p_text(found.p_value)}"
    return f"in {of} by {found.between:.1%} between {found.num_groups} {what} ({found.within:.1%} within one{p_value})"
