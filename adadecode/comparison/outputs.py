"""Outputs that are not the same in both runs: where each first differs, and the tokens around there."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adadecode.comparison.pairs import Pairs
from adadecode.report.findings import Columns
from adadecode.report.parity import KEY, first_difference, sample_name

MAX_SHOWN = 10  # in lines
MAX_KEPT = 200
NUM_AROUND = 16  # tokens of an output on either side of a divergence

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Divergence:
    """An output of one sample and repeat that is another in B, in the same way for each of `methods`.

    `at` is the position of the first token that differs, None where only the ends do; `ids` are A's and B's tokens from
    position `start` on.
    """

    name: str
    methods: tuple[str, ...]
    where: str
    at: int | None
    start: int
    ids: tuple[Ids, Ids]


@dataclass(frozen=True)
class Outputs:
    """How many of the outputs of all pairs differ, in how many places, and the first MAX_KEPT of these."""

    num_pairs: int
    num_different: int
    num_places: int
    divergences: list[Divergence]

    def lines(self) -> list[str]:
        """How many differ, and a line for each of the first that do; methods that differ alike share one."""
        if not self.num_different:
            return [f"outputs: all {self.num_pairs} are equal, token for token"] if self.num_pairs else []
        shown = self.divergences[:MAX_SHOWN]
        more = [f"and {self.num_places - len(shown)} more places"] if self.num_places > len(shown) else []
        lines = [f"{one.name}: {one.where} ({', '.join(one.methods)})" for one in shown]
        return [f"outputs: {self.num_different} of {self.num_pairs} differ", *lines, *more]


def compare_outputs(pairs: Pairs) -> Outputs:
    """The outputs whose ids or finish reasons are not equal, in the order of the pairs."""
    found: dict[tuple[str, str], Divergence] = {}
    places: set[tuple[str, str]] = set()
    num_different = 0
    for one in _differences(pairs):
        num_different += 1
        place = (one.name, one.where)
        places.add(place)
        if place in found:
            found[place] = replace(found[place], methods=(*found[place].methods, *one.methods))
        elif len(found) < MAX_KEPT:
            found[place] = one
    return Outputs(pairs.a.num_rows, num_different, len(places), list(found.values()))


def _differences(pairs: Pairs) -> Iterator[Divergence]:
    """One of each pair whose ids or finish reasons are not equal."""
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
        name = f"{sample_name(row)} repeat {row['repeat']}"
        start = max(0, (len(first) if at is None else at) - NUM_AROUND)
        around = slice(start, start + 2 * NUM_AROUND)
        yield Divergence(
            name, (row["method"],), where, at, start, (tuple(first[around].tolist()), tuple(second[around].tolist()))
        )


def outputs(table: pa.Table) -> Iterator[NDArray[Any]]:
    """Each row's output as a view into the column; an empty one where a file that is not ours has none."""
    for ids in Columns(table).lists("output_token_ids"):
        yield np.empty(0, np.int32) if ids is None else ids


def _token(ids: Any, idx: int) -> str:
    return f"token {ids[idx]}" if idx < len(ids) else "ended"
