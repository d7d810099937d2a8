"""The rows of two runs, pair by pair: the same task, sample, turn, method and repeat, with the same prompt."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adadecode.methods import REFERENCE
from adadecode.report.findings import Columns, Mask
from adadecode.report.parity import KEY, pair_codes
from adadecode.report.row_checks import without_impossible_times
from adadecode.report.schema import SAMPLES
from adadecode.report.summary import NUMBERS

COLUMNS = [*KEY, "status", "output_token_ids", "finish_reason", "worker_id", "sampling_key", *NUMBERS]
PROMPT = "prompt_hash"
SIDES = ("A", "B")


@dataclass(frozen=True)
class Pairs:
    """Rows `a` and `b`, one beside the other, both ok and of one prompt; `left_out` counts rows by why they have no other.

    The counts are by reason and method.
    """

    a: pa.Table
    b: pa.Table
    left_out: Mapping[tuple[str, str], int]

    @property
    def sides(self) -> tuple[pa.Table, pa.Table]:
        return self.a, self.b

    @cached_property
    def prompts(self) -> NDArray[np.int64]:
        """A number for each pair, equal where the sample is: [pairs]."""
        return Columns(self.a).codes("task", "sample_id")

    def where(self, mask: Mask) -> "Pairs":
        """The pairs in `mask`, with nothing left out."""
        wanted = pa.array(mask)
        return Pairs(self.a.filter(wanted), self.b.filter(wanted), {})

    def of(self, task: str, method: str) -> "Pairs":
        """The pairs of one task and method."""
        columns = Columns(self.a)
        return self.where(columns.equal("task", task) & columns.equal("method", method))

    def numbers(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """A numeric column of both sides, NaN for null."""
        return Columns(self.a).numbers(name), Columns(self.b).numbers(name)

    def vanilla_s(self, of: "Pairs") -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The e2e seconds of vanilla of the same sample, turn and repeat as each pair in `of`; NaN where there is none."""
        both = pa.concat_tables([self.a.select(KEY), of.a.select(KEY)])
        codes = pair_codes(both)
        mine, theirs = codes[: self.a.num_rows], codes[self.a.num_rows :]
        is_vanilla = Columns(self.a).equal("method", REFERENCE)
        found = []
        for times in self.numbers("e2e_s"):
            of_code = np.full(codes.max(initial=-1) + 1, np.nan)
            of_code[mine[is_vanilla]] = times[is_vanilla]
            found.append(of_code[theirs])
        return found[0], found[1]


def rows_together(parts: Sequence[pa.Table]) -> pa.Table:
    """The rows of a run from `parts` that `compared_columns` made, without times that no clock can have shown."""
    return without_impossible_times(
        pa.concat_tables([compared_columns(SAMPLES.empty_table()), *parts]).combine_chunks()
    )


def compared_columns(samples: pa.Table) -> pa.Table:
    """The columns COLUMNS of `samples` and a hash of each prompt, null where a row has none."""
    prompts = Columns(samples).lists("prompt_token_ids")
    hashes = [None if ids is None else hashlib.blake2b(ids.tobytes(), digest_size=16).digest() for ids in prompts]
    return samples.select(COLUMNS).append_column(PROMPT, pa.array(hashes, pa.binary(16)))


def pair_rows(a: pa.Table, b: pa.Table, *, one_limit: bool = True) -> Pairs:
    """The pairs of two tables of `compared_columns`, each without duplicates, in the order of `a`.

    Without `one_limit` of tokens, pairs of which it cut one output alone are left out: the other decoded on.
    """
    at = _at(a).join(_at(b), list(KEY), join_type="full outer", right_suffix="_b")
    rows_a, rows_b = (pc.fill_null(at[name], -1).to_numpy() for name in ("at", "at_b"))
    left_out: Counter[tuple[str, str]] = Counter()
    method = at["method"].to_numpy(zero_copy_only=False)
    keep = np.ones(at.num_rows, bool)

    def leave_out(wrong: Mask, why: str) -> None:
        left_out.update((why, name) for name in method[keep & wrong])
        keep[wrong] = False

    leave_out(rows_b < 0, f"only in {SIDES[0]}")
    leave_out(rows_a < 0, f"only in {SIDES[1]}")
    leave_out(~_both(Columns(a).is_ok, Columns(b).is_ok, rows_a, rows_b, np.logical_and), "an error in one or both")
    prompts_a, prompts_b = (table[PROMPT].to_numpy(zero_copy_only=False) for table in (a, b))
    leave_out(~_both(prompts_a, prompts_b, rows_a, rows_b, np.equal), "of another prompt")
    if not one_limit:
        sides = Columns(a), Columns(b)
        lengths, is_cut = (
            [of.numbers("output_len") for of in sides],
            [of.equal("finish_reason", "length") for of in sides],
        )
        is_longer = _both(lengths[0], lengths[1], rows_a, rows_b, np.not_equal)
        leave_out(
            is_longer & _both(is_cut[0], is_cut[1], rows_a, rows_b, np.logical_or), "cut at another max_new_tokens"
        )
    order = np.argsort(rows_a[keep])
    return Pairs(a.take(pa.array(rows_a[keep][order])), b.take(pa.array(rows_b[keep][order])), left_out)


def left_out_lines(pairs: Pairs) -> list[str]:
    """A line for each reason for which rows were not compared, with their number by method."""
    by_reason: dict[str, dict[str, int]] = {}
    for (why, method), count in pairs.left_out.items():
        by_reason.setdefault(why, {})[method] = count
    return [
        f"not compared: {sum(counts.values())} rows {why} ({', '.join(f'{name} {n}' for name, n in counts.items())})"
        for why, counts in by_reason.items()
    ]


def _at(table: pa.Table) -> pa.Table:
    return table.select(KEY).append_column("at", pa.array(np.arange(table.num_rows)))


def _both(
    of_a: NDArray[Any], of_b: NDArray[Any], rows_a: NDArray[Any], rows_b: NDArray[Any], told: Callable[..., Any]
) -> Mask:
    """What `told` says of the values of both rows, where both are there; false elsewhere."""
    both = (rows_a >= 0) & (rows_b >= 0)
    found = np.zeros(len(rows_a), bool)
    found[both] = told(of_a[rows_a[both]], of_b[rows_b[both]])
    return found
