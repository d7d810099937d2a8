"""Which outputs are equal: the candidate's with the baseline's of the same pass, the baseline's with its own of the first.

Token ids are compared where both sides have them, text where one has none, and in both cases how the output ended.
Positions are in tokens or, of texts, in characters.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from adadecode.report.parity import consistency_of, first_difference
from adadecode.report.schema import VERIFY

BASELINE, CANDIDATE = SIDES = ("baseline", "candidate")

NAMES = ("task", "sample_id", "turn", "category", "method", "repeat")  # which row it is

COMPARED = [*NAMES, "status", "output_token_ids", "output_text", "finish_reason"]

Row = Mapping[str, Any]  # of the columns COMPARED


def by_sample(rows: Iterable[Row]) -> dict[tuple[str, str], dict[tuple[str, int], Row]]:
    """The ok rows of each (task, sample id), by (method, repeat)."""
    found: dict[tuple[str, str], dict[tuple[str, int], Row]] = {}
    for row in rows:
        of_sample = found.setdefault((row["task"], row["sample_id"]), {})
        if row["status"] == "ok":
            of_sample[row["method"], row["repeat"]] = row
    return found


def compared(rows: Iterable[Row]) -> pa.Table:
    """A VERIFY table: a line for each ok row but the baseline's of the first pass; parity is null without a partner.

    What it names after vanilla is the baseline's. Nothing of it is taken from what a row says of itself.
    """
    lines = [
        judged(row, of_sample.get((BASELINE, repeat if method == CANDIDATE else 0)))
        for of_sample in by_sample(rows).values()
        for (method, repeat), row in of_sample.items()
        if (method, repeat) != (BASELINE, 0)
    ]
    return pa.Table.from_pylist(lines, schema=VERIFY)


def judged(row: Row, partner: Row | None) -> dict[str, Any]:
    """The VERIFY line of `row`, held against `partner`."""
    line = dict.fromkeys(VERIFY.names) | {name: row[name] for name in NAMES}
    if partner is None:
        return line
    theirs, ours = _outputs(partner, row)
    idx = first_difference(theirs, ours)
    is_same = idx is None and row["finish_reason"] == partner["finish_reason"]
    line |= {"parity": "exact" if is_same else "mismatch", "first_diff_idx": idx}
    line["consistency"] = consistency_of(np.asarray(theirs), np.asarray(ours))
    if idx is not None and has_ids(row, partner):
        line["vanilla_token_id"], line["method_token_id"] = _at(theirs, idx), _at(ours, idx)
    return line


def is_other(row: Row, partner: Row) -> bool:
    """Whether the output of `row` is another than that of `partner`, as `judged` says it."""
    theirs, ours = _outputs(partner, row)
    return [*theirs] != [*ours] or row["finish_reason"] != partner["finish_reason"]


def has_ids(*rows: Row) -> bool:
    """Whether all `rows` have token ids, so that these are compared."""
    return all(row["output_token_ids"] is not None for row in rows)


def _outputs(a: Row, b: Row) -> tuple[Sequence[Any], Sequence[Any]]:
    if has_ids(a, b):
        return a["output_token_ids"], b["output_token_ids"]
    return [*(a["output_text"] or "")], [*(b["output_text"] or "")]


def _at(ids: Sequence[int], idx: int) -> int | None:
    return ids[idx] if idx < len(ids) else None
