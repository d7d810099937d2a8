"""What an interval over the prompts of one run does not hold: how far workers and repeats of a run are apart."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from adadecode.comparison.pairs import Pairs
from adadecode.report.cells import p_text
from adadecode.report.findings import Columns
from adadecode.report.variation import Variation, variation


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


def _parts(rows: pa.Table) -> Iterator[str]:
    """The time per token between workers, which decode other prompts; e2e between repeats, which decode the same."""
    columns = Columns(rows)
    tpot_s, e2e_s = columns.numbers("tpot_s"), columns.numbers("e2e_s")
    measured = np.isfinite(tpot_s)
    of_workers = variation(columns.codes("worker_id")[measured], tpot_s[measured])
    if of_workers is not None:
        yield _text("TPOT", "workers", of_workers)
    measured = np.isfinite(e2e_s)
    prompts = columns.codes("task", "sample_id", "turn")[measured]
    of_repeats = variation(columns.codes("repeat")[measured], e2e_s[measured], prompts)
    if of_repeats is not None:
        yield _text("e2e", "repeats", of_repeats)


def _text(of: str, what: str, found: Variation) -> str:
    p_value = "" if found.p_value is None else f", F test {p_text(found.p_value)}"
    return f"in {of} by {found.between:.1%} between {found.num_groups} {what} ({found.within:.1%} within one{p_value})"
