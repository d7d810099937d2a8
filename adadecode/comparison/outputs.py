"""Outputs that are not the same in both runs: where each first differs, and the two tokens there."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adadecode.comparison.pairs import Pairs
from adadecode.report.findings import Columns
from adadecode.report.parity import KEY, first_difference, sample_name

MAX_SHOWN = 10


def difference_lines(pairs: Pairs) -> list[str]:
    """How many of the outputs differ, and a line for each of the first that do; methods that differ alike share one."""
    found: dict[str, list[str]] = {}
    num_different = 0
    for name, method, where in _differences(pairs):
        num_different += 1
        found.setdefault(f"{name}: {where}", []).append(method)
    if not found:
        return [f"outputs: all {pairs.a.num_rows} are equal, token for token"] if pairs.a.num_rows else []
    lines = [f"{line} ({', '.join(methods)})" for line, methods in found.items()]
    more = [f"and {len(lines) - MAX_SHOWN} more places"] if len(lines) > MAX_SHOWN else []
    return [f"outputs: {num_different} of {pairs.a.num_rows} differ", *lines[:MAX_SHOWN], *more]


def _differences(pairs: Pairs) -> Iterator[tuple[str, str, str]]:
    """The sample and repeat, the method, and what is different, of each pair whose ids or finish reasons are not equal."""
    ids = zip(*(outputs(side) for side in pairs.sides), strict=True)
    ends = zip(*(side["finish_reason"].to_pylist() for side in pairs.sides), strict=True)
    for idx, ((first, second), (end, other_end)) in enumerate(zip(ids, ends, strict=True)):
        at = first_difference(first, second)
        if at is None and end == other_end:
            continue
        row = {name: pairs.a[name][idx].as_py() for name in KEY}
        where = f"equal tokens, but A ended by {end}, B by {other_end}"
        if at is not None:
            where = f"differs at output position {at}: A {_token(first, at)}, B {_token(second, at)}"
        yield f"{sample_name(row)} repeat {row['repeat']}", row["method"], where


def outputs(table: pa.Table) -> Iterator[NDArray[Any]]:
    """Each row's output as a view into the column; an empty one where a file that is not ours has none."""
    for ids in Columns(table).lists("output_token_ids"):
        yield np.empty(0, np.int32) if ids is None else ids


def _token(ids: Any, idx: int) -> str:
    return f"token {ids[idx]}" if idx < len(ids) else "ended"
