"""What an interval over the prompts of one run does not hold: how far workers, repeats and runs are apart."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from adadecode.comparison.pairs import PROMPT, SIDES, Pairs
from adadecode.report.detail import spread_lines as spread_lines_of
from adadecode.report.findings import Columns
from adadecode.report.variation import Variation, variation


def spread_lines(pairs: Pairs) -> list[str]:
    """A line for each side, task and method that has several workers or repeats: how far apart they are."""
    return [f"{name}: {line}" for name, rows in zip(SIDES, pairs.sides, strict=True) for line in spread_lines_of(rows)]


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
