"""What changed for each task and method from run A to run B, over the rows that pair."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adadecode.comparison.pairs import Pairs
from adadecode.methods import METHODS, REFERENCE, names_that_owe
from adadecode.report.detail import LATENCIES
from adadecode.report.paired import ScoreChange, rate_change, score_change, speed_ratio
from adadecode.report.parity import KEY
from adadecode.report.stats import Estimate, Percentiles, percentiles
from adadecode.report.summary import whole_tasks

SCORED = (*KEY, "metric", "scorer", "scorer_version")  # what two scores must share to be compared


@dataclass(frozen=True)
class Rate:
    """A sum over a sum in both runs, None where there was nothing to divide by, and how far B's is above A's."""

    before: float | None
    after: float | None
    change: Estimate | None


@dataclass(frozen=True)
class Change:
    """One method on one task: `speed` is of B's tokens/s by A's, `over_vanilla` of its speedups over its own vanilla.

    So the second is 1 where all of B's machine was slower. Each is None where nothing could be paired.
    """

    task: str
    method: str
    num_pairs: int
    speed: Estimate | None
    over_vanilla: Estimate | None
    acceptance: Rate
    tokens_per_round: Rate
    latencies: dict[str, tuple[Percentiles, Percentiles]]  # by column, A's and B's


def changes(pairs: Pairs) -> list[Change]:
    """One of each task and method, tasks in their order, methods in that of their table."""
    found = pairs.a.group_by(["task", "method"], use_threads=False).aggregate([]).to_pylist()
    tasks = list(dict.fromkeys(row["task"] for row in found))
    found.sort(key=lambda row: (tasks.index(row["task"]), _place(row["method"])))
    return [_change(pairs, row["task"], row["method"]) for row in found]


def _change(pairs: Pairs, task: str, method: str) -> Change:
    of = pairs.of(task, method)
    lengths = of.numbers("output_len")
    before_s, after_s = (e2e_s / length for e2e_s, length in zip(of.numbers("e2e_s"), lengths, strict=True))
    later = tuple(length - 1 for length in lengths)  # tokens after the first
    nothing = Rate(None, None, None)
    return Change(
        task=task,
        method=method,
        num_pairs=of.a.num_rows,
        speed=_ratio(of, before_s, after_s),
        over_vanilla=None if method == REFERENCE else _over_vanilla(pairs, of),
        acceptance=nothing
        if method in names_that_owe("lossy")  # its drafts are kept, not accepted
        else _rate(of, of.numbers("num_accepted"), of.numbers("num_drafted")),
        tokens_per_round=_rate(of, later, of.numbers("num_rounds")),
        latencies={
            name: (percentiles(values[0]), percentiles(values[1]))
            for name, values in ((name, of.numbers(name)) for name in LATENCIES)
        },
    )


def summary_changes(a: pa.Table, b: pa.Table) -> list[Change]:
    """The same of two SUMMARY tables, where rows are not there: what each run came to as a whole, without intervals."""
    sides = [{(row["task"], row["method"]): row for row in whole_tasks(side).to_pylist()} for side in (a, b)]
    both = [of for of in sides[0] if of in sides[1]]
    return [_summary_change(*(_over_its_vanilla(side, *of) for side in sides)) for of in both]


def _over_its_vanilla(side: Mapping[tuple[str, str], dict[str, Any]], task: str, method: str) -> dict[str, Any]:
    """The SUMMARY row with `over_vanilla`: its speedup over `vanilla`, whichever of the vanillas was the baseline."""
    row, vanilla = side[task, method], side.get((task, REFERENCE), {})
    speedups = row["speedup_geomean"], vanilla.get("speedup_geomean")
    over = speedups[0] / speedups[1] if method != REFERENCE and all(speedups) else None
    return {**row, "over_vanilla": over}


def _summary_change(before: dict[str, Any], after: dict[str, Any]) -> Change:
    def rate(name: str) -> Rate:
        return Rate(before[name], after[name], None)

    def ratio(name: str) -> Estimate | None:
        old, new = before[name], after[name]
        return Estimate(new / old, None, None, min(before["n"], after["n"])) if old and new else None

    return Change(
        task=before["task"],
        method=before["method"],
        num_pairs=0,
        speed=ratio("tokens_per_s"),
        over_vanilla=ratio("over_vanilla"),
        acceptance=rate("acceptance_rate"),
        tokens_per_round=rate("tokens_per_round"),
        latencies={},
    )


def _place(method: str) -> int:
    """Where a method stands in the table of methods; one that is not ours, last."""
    return list(METHODS).index(method) if method in METHODS else len(METHODS)


def _ratio(of: Pairs, before_s: NDArray[np.float64], after_s: NDArray[np.float64]) -> Estimate | None:
    measured = np.isfinite(before_s) & np.isfinite(after_s)
    return speed_ratio(of.prompts[measured], before_s[measured], after_s[measured])


def _over_vanilla(pairs: Pairs, of: Pairs) -> Estimate | None:
    relative = [times / vanilla for times, vanilla in zip(of.numbers("e2e_s"), pairs.vanilla_s(of), strict=True)]
    return _ratio(of, *relative)


def _rate(of: Pairs, parts: tuple[Any, ...], wholes: tuple[Any, ...]) -> Rate:
    measured = np.all(np.isfinite([*parts, *wholes]), axis=0)
    sides = [(part[measured], whole[measured]) for part, whole in zip(parts, wholes, strict=True)]
    before, after = (float(part.sum() / whole.sum()) if whole.sum() > 0 else None for part, whole in sides)
    return Rate(before, after, rate_change(of.prompts[measured], *sides))


@dataclass(frozen=True)
class MetricChange:
    """The change of one metric of a method on a task."""

    task: str
    metric: str
    method: str
    change: ScoreChange


def score_changes(pairs: Pairs, a: pa.Table | None, b: pa.Table | None) -> tuple[list[MetricChange], list[str]]:
    """What became of the scores of the pairs, and a line for what could not be compared; `a` and `b` are SCORES tables.

    Scores over all repeats, such as pass@k, follow from those that are compared.
    """
    if a is None or b is None:
        missing = [side for side, table in (("A", a), ("B", b)) if table is None]
        return [], [] if len(missing) == 2 else [f"scores: {missing[0]} has none; `adadecode score` makes them"]
    both = _scored(a).join(_scored(b), list(SCORED), join_type="inner", right_suffix="_b")
    both = both.join(pairs.a.select(KEY), list(KEY), join_type="left semi").sort_by(
        [(name, "ascending") for name in SCORED]
    )
    found = [MetricChange(*of, _score_change(rows)) for of, rows in _by_metric(both)]
    versions = [set(map(str, table["scorer_version"].unique().to_pylist())) for table in (a, b)]
    lines = [] if both.num_rows or not a.num_rows or not b.num_rows else ["scores: none of them are of the same rows"]
    if versions[0] != versions[1]:
        told = (" and ".join(sorted(of)) for of in versions)
        lines.append("scores: of scorer version A {}, B {}: only those of one version are compared".format(*told))
    return found, lines


def _scored(scores: pa.Table) -> pa.Table:
    valid = pc.and_(pc.is_valid(scores["repeat"]), pc.is_valid(scores["score"]))
    return scores.filter(valid).select([*SCORED, "score"])


def _by_metric(both: pa.Table) -> Iterator[tuple[tuple[str, str, str], pa.Table]]:
    names = ["task", "metric", "method"]
    of = both.group_by(names, use_threads=False).aggregate([]).to_pylist()
    for row in sorted(of, key=lambda row: (row["task"], row["metric"], _place(row["method"]))):
        wanted = pc.field("task") == row["task"]
        for name in ("metric", "method"):
            wanted &= pc.field(name) == row[name]
        yield (row["task"], row["metric"], row["method"]), both.filter(wanted)


def _score_change(rows: pa.Table) -> ScoreChange:
    samples = rows["sample_id"].to_numpy(zero_copy_only=False)
    return score_change(samples, rows["score"].to_numpy(), rows["score_b"].to_numpy())
