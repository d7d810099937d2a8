"""What the charts show beside the summary: distributions of times, rounds and drafts by task and method.

T output tokens, R rounds, of all rows of a table together.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adadecode.report.draft_checks import model_layers
from adadecode.report.findings import Columns

MOST_TOKENS = 8  # rounds that gave as many or more are counted together
NUM_QUANTILES = 101  # of a distribution that a page draws

Floats = NDArray[np.float64]


@dataclass
class Measured:
    """The rows of one task and method: times in seconds, counts of drafts by exit and place, rounds by tokens given.

    `accepted_at[k]` counts rounds that accepted their draft at place k, from 0; `rejected_at[k]` drafts that were rejected
    there, several in one round where a deeper head rejects early. It is None where a row does not tell.
    """

    ttft_s: list[Floats] = field(default_factory=list[Floats])
    tpot_s: list[Floats] = field(default_factory=list[Floats])
    prefill_s: float = 0.0
    num_rows: int = 0
    exits: dict[int, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))  # drafted, accepted
    num_rounds: Floats = field(default_factory=lambda: np.zeros(MOST_TOKENS))  # by tokens given, from 1
    rounds_s: Floats = field(default_factory=lambda: np.zeros(MOST_TOKENS))
    accepted_at: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    rejected_at: dict[int, int] | None = field(default_factory=lambda: defaultdict(int))

    def add(self, rows: pa.Table) -> None:
        """Adds `rows`, all ok, of this task and method."""
        columns = Columns(rows)
        self.num_rows += rows.num_rows
        for name, kept in (("ttft_s", self.ttft_s), ("tpot_s", self.tpot_s)):
            times = columns.numbers(name)
            kept.append(times[np.isfinite(times)])
        self.prefill_s += float(np.nansum(columns.numbers("ttft_s")))
        gaps, _ = columns.values("step_gaps_s")
        drafts = columns.has("draft_depths").all()
        tokens = self._add_drafts(columns) if drafts else np.ones(len(gaps), np.int64)
        if len(tokens) == len(gaps):  # else the rows contradict themselves, which `verify` tells
            bins = np.minimum(tokens, MOST_TOKENS) - 1
            self.num_rounds += np.bincount(bins, minlength=MOST_TOKENS)
            self.rounds_s += np.bincount(bins, weights=gaps, minlength=MOST_TOKENS)

    def _add_drafts(self, columns: Columns) -> NDArray[np.int64]:
        """Counts drafts by exit and by place; returns the tokens that each round gave, [R]."""
        exits, _ = columns.values("exits")
        drafted, accepted = columns.values("drafted_per_exit")[0], columns.values("accepted_per_exit")[0]
        for exit_layer in np.unique(exits):
            if len(exits) == len(drafted) == len(accepted):
                at, counts = exits == exit_layer, self.exits[int(exit_layer)]
                counts[0] += int(drafted[at].sum())
                counts[1] += int(accepted[at].sum())
        depths, of_token = columns.values("draft_depths")
        given = np.flatnonzero(depths == model_layers(columns)[of_token])
        within = np.diff(of_token[given]) == 0
        tokens = np.diff(given)[within]
        starts = (given - np.searchsorted(of_token, of_token[given]))[:-1][within] + 1  # in the row's output
        for place, count in _counts(_places(tokens - 1)):
            self.accepted_at[place] += count
        self._add_rejected(columns, of_token[given][1:][within], starts)
        return tokens

    def _add_rejected(self, columns: Columns, of_round: NDArray, starts: NDArray) -> None:
        """Counts rejected drafts by their place in the round, whose row and first position are given, [R] each."""
        if self.rejected_at is None or not columns.has("rejected").all():
            self.rejected_at = None
            return
        rounds, of_draft = columns.values("rejected", "round_idx")
        positions, _ = columns.values("rejected", "position")
        idx = np.searchsorted(of_round, of_draft) + rounds.astype(np.int64)
        real = (idx >= 0) & (idx < len(starts))
        places = positions[real].astype(np.int64) - starts[idx[real]]
        for place, count in _counts(places[places >= 0]):
            self.rejected_at[place] += count

    def drafted_by_place(self) -> dict[int, int] | None:
        """How many drafts were made at each place of a round; None where rows do not tell."""
        if self.rejected_at is None:
            return None
        places = sorted({*self.accepted_at, *self.rejected_at})
        return {place: self.accepted_at.get(place, 0) + self.rejected_at.get(place, 0) for place in places}


def ecdf(parts: list[Floats]) -> list[tuple[float, float]]:
    """Points (value, share of values up to it) of a distribution, NUM_QUANTILES of them at most."""
    values = np.sort(np.concatenate(parts)) if parts else np.zeros(0)
    if not len(values):
        return []
    idx = np.unique(np.linspace(0, len(values) - 1, NUM_QUANTILES).round().astype(np.int64))
    return [(float(values[at]), float((at + 1) / len(values))) for at in idx]


def add_rows(found: dict[tuple[str, str], Measured], table: pa.Table) -> None:
    """Adds the ok rows of a shard's `table` to what was `found` so far, a defaultdict."""
    ok = table.filter(pc.field("status") == "ok")
    names = pc.unique(ok["method"]).to_pylist() if ok.num_rows else []
    for method in names:
        rows = ok.filter(pc.field("method") == method).combine_chunks()
        task: Any = rows["task"][0].as_py()
        found[task, method].add(rows)


def _places(num_accepted: NDArray[np.int64]) -> NDArray[np.int64]:
    """0 to n - 1 for each n of `num_accepted`, one after another."""
    ends = np.cumsum(num_accepted)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) - np.repeat(ends - num_accepted, num_accepted)


def _counts(values: NDArray[np.int64]) -> list[tuple[int, int]]:
    found, counts = np.unique(values, return_counts=True)
    return [(int(value), int(count)) for value, count in zip(found, counts, strict=True)]
