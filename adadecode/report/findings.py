"""What is found wrong in tables, a line for each kind of it, and the columns that are looked at as numpy arrays."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adadecode.report import parity

Mask = NDArray[np.bool_]
RTOL = 1e-9  # of sums and quotients of float64, which are equal but for rounding
Wrong = tuple[str, Mask]  # what is wrong, and in which rows


@dataclass
class Findings:
    """Kinds of contradictions in the order in which they were found: how many of what, and the first of these."""

    _of_kind: dict[str, tuple[int, str, str]] = field(default_factory=dict[str, tuple[int, str, str]])

    def add(self, kind: str, count: int, first: str, unit: str = "rows") -> None:
        """Counts `count` more that are wrong in this way, rows or what `unit` says, the first of which is `first`."""
        before, _, earlier = self._of_kind.get(kind, (0, unit, first))
        if count:
            self._of_kind[kind] = (before + count, unit, earlier)

    def add_rows(self, check: str, found: Iterable[Wrong], samples: pa.Table) -> None:
        """Counts the rows of `samples` that the masks of `found` name, as what the `check` of that name found."""
        for kind, wrong in found:
            if wrong.any():
                self.add(f"{check}: {kind}", int(wrong.sum()), row_name(samples, int(np.argmax(wrong))))

    def lines(self) -> list[str]:
        """One line for each kind."""
        return [f"{kind}: {count} {unit}, first {first}" for kind, (count, unit, first) in self._of_kind.items()]


def row_name(samples: pa.Table, idx: int) -> str:
    """The row at `idx` as every line names one."""
    return parity.row_name(
        {name: samples[name][idx].as_py() for name in ("task", "sample_id", "turn", "method", "repeat")}
    )


class Columns:
    """The columns of a SAMPLES table as arrays, [rows]: numbers as float64 with NaN for null."""

    def __init__(self, samples: pa.Table) -> None:
        self.table = samples
        self.is_ok: Mask = self.equal("status", "ok")

    def numbers(self, name: str) -> NDArray[np.float64]:
        """A numeric column."""
        return self.table[name].cast(pa.float64()).to_numpy()

    def lengths(self, name: str) -> NDArray[np.float64]:
        """How many values each list of a column has; NaN where there is no list."""
        return pc.list_value_length(self.table[name]).cast(pa.float64()).to_numpy()

    def sums(self, name: str) -> NDArray[np.float64]:
        """The sum of each list of a column, 0 for an empty one; NaN where there is no list."""
        values, rows = self.values(name)
        sums = np.bincount(rows, weights=values, minlength=self.table.num_rows)
        return np.where(self.has(name), sums, np.nan)

    def values(self, name: str, part: str | None = None) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The values of all lists of a column one after another, NaN for null, and the row of each.

        `part` names one field of lists of structs.
        """
        column = self.table[name].combine_chunks()
        flat = pc.list_flatten(column)
        numbers = (flat if part is None else pc.struct_field(flat, part)).cast(pa.float64())
        return numbers.to_numpy(zero_copy_only=False), pc.list_parent_indices(column).to_numpy()

    def lists(self, name: str) -> Iterator[NDArray | None]:
        """Each row's list as a view into the column, None where there is none."""
        column = self.table[name].combine_chunks()
        values, offsets = column.values.to_numpy(zero_copy_only=False), column.offsets.to_numpy()
        for start, stop, has in zip(offsets[:-1], offsets[1:], self.has(name), strict=True):
            yield values[start:stop] if has else None

    def has(self, name: str) -> Mask:
        """Where a column is not null."""
        return self.table[name].is_valid().to_numpy()

    def equal(self, name: str, value: str | bool) -> Mask:
        """Where a column holds `value`; not where it is null."""
        return pc.fill_null(pc.equal(self.table[name], value), False).to_numpy()

    def among(self, name: str, values: Iterable[str]) -> Mask:
        """Where a column holds one of `values`."""
        return pc.is_in(self.table[name], pa.array(list(values), pa.string())).to_numpy()

    def codes(self, *names: str) -> NDArray[np.int64]:
        """One integer per row, equal exactly where all of these columns are equal, texts or numbers; dense from 0."""
        combined = np.zeros(self.table.num_rows, dtype=np.int64)
        for name in names:
            encoded = pc.dictionary_encode(self.table[name].combine_chunks(), null_encoding="encode")
            combined = combined * (len(encoded.dictionary) + 1) + encoded.indices.to_numpy()
        return np.unique(combined, return_inverse=True)[1]

    def list_codes(self, name: str) -> NDArray[np.int64]:
        """One integer per row, equal exactly where the lists of a column are equal; -1 where there is none."""
        seen: dict[bytes, int] = {}
        return np.array(
            [-1 if ids is None else seen.setdefault(ids.tobytes(), len(seen)) for ids in self.lists(name)], np.int64
        )


def differs(a: NDArray, b: NDArray, rtol: float = 0.0) -> Mask:
    """Where two numbers are not the same, up to `rtol` of the larger, or only one of them is there (NaN: it is not)."""
    missing = np.isnan(a), np.isnan(b)
    with np.errstate(invalid="ignore"):  # infinity less infinity
        apart = np.abs(a - b) > rtol * np.maximum(np.abs(a), np.abs(b))
    return (missing[0] != missing[1]) | (apart & ~missing[0])


def any_value(wrong: Mask, of_row: NDArray[np.int64], columns: Columns) -> Mask:
    """The rows in which any value of their lists is `wrong`."""
    found = np.zeros(columns.table.num_rows, bool)
    found[of_row[wrong]] = True
    return found


def counts_beside(rows: NDArray, values: NDArray, of_rows: NDArray, of_values: NDArray) -> NDArray[np.int64]:
    """How often each pair (`of_rows[i]`, `of_values[i]`) is among the pairs of `rows` and `values`."""
    codes = np.unique(np.concatenate([values, of_values]), return_inverse=True)[1]
    base = codes.max(initial=0) + 1
    keys, counts = np.unique(rows * base + codes[: len(values)], return_counts=True)
    wanted = of_rows * base + codes[len(values) :]
    if not len(keys):
        return np.zeros(len(wanted), np.int64)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, counts[places], 0)


def first_of_group(groups: NDArray[np.int64], is_there: Mask) -> NDArray[np.int64]:
    """For each row the position of the first row of its group for which `is_there`; -1 where there is none."""
    first = np.full(groups.max(initial=-1) + 1, -1)
    candidates = np.flatnonzero(is_there)[::-1]
    first[groups[candidates]] = candidates
    return first[groups]


def spread(of_some: Mask, some: Mask) -> Mask:
    """A mask over all rows from one over those in `some`."""
    found = np.zeros(len(some), bool)
    found[np.flatnonzero(some)] = of_some
    return found
