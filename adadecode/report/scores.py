"""What scores come to: the mean of each metric by task and method, and whether equal outputs have equal ones."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich import box
from rich.table import Table

from adadecode.methods import REFERENCE
from adadecode.report.cells import ABSENT, cell
from adadecode.report.findings import Findings

KEY = ("task", "sample_id", "turn", "method", "repeat", "metric")
COLUMNS = ("task", "scorer", "metric", "method", "n", "score", "without")
MEAN = ["task", "metric", "method", "scorer", "scorer_version"]


def mean_scores(scores: pa.Table) -> list[dict[str, Any]]:
    """The mean `score` of each task, metric and method over `n` rows, and how many have none (`without`).

    Tasks and metrics stand in the order of `scores`, a SCORES table, vanilla first among the methods. The mean is None
    where no row has a score.
    """
    wanted = [("score", "mean"), ("score", "count", pc.CountOptions(mode="only_valid")), ("method", "count")]
    means = pa.TableGroupBy(scores, MEAN, use_threads=False).aggregate(wanted)
    rows = [
        {name: row[name] for name in MEAN}
        | {"score": row["score_mean"], "n": row["score_count"], "without": row["method_count"] - row["score_count"]}
        for row in means.to_pylist()
    ]
    order = list(dict.fromkeys((row["task"], row["metric"]) for row in rows))
    return sorted(
        rows, key=lambda row: (order.index((row["task"], row["metric"])), row["method"] != REFERENCE, row["method"])
    )


def score_lines(scores: pa.Table) -> list[str]:
    """A line for each task with its mean scores: of vanilla first, then of the methods that have others."""
    lines: list[str] = []
    means = mean_scores(scores)
    for task in dict.fromkeys(row["task"] for row in means):
        of_task = [row for row in means if row["task"] == task]
        methods = dict.fromkeys(row["method"] for row in of_task)
        texts = {name: ", ".join(_mean_text(row) for row in of_task if row["method"] == name) for name in methods}
        same: dict[str, list[str]] = {}
        for name, text in texts.items():
            same.setdefault(text, []).append(name)
        parts = [text if len(same) == 1 else f"{text} ({', '.join(names)})" for text, names in same.items()]
        lines.append(f"scores {task}: {'; '.join(parts)}")
    return lines


def scores_table(scores: pa.Table) -> Table:
    """A rich table with a line per task, metric and method; `without` counts outputs that could not be scored."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for idx, name in enumerate(COLUMNS):
        table.add_column(name, justify="left" if idx < 4 else "right", overflow="fold")
    shown = None
    for row in mean_scores(scores):
        first = (row["task"], f"{row['scorer']} {row['scorer_version']}", row["metric"])
        names = ("", "", "") if first == shown else first
        shown = first
        figures = (str(row["n"]), _number(row["score"]), str(row["without"] or ABSENT))
        table.add_row(*map(cell, (*names, row["method"], *figures)))
    return table


def score_findings(scores: pa.Table, verify: pa.Table) -> list[str]:
    """Where a SCORES table contradicts itself or the VERIFY table of its rows: a line for each kind.

    A row is there once, and an output with vanilla's tokens has vanilla's scores.
    """
    findings = Findings()
    codes = scores.select(KEY).append_column("row", pa.array(np.arange(scores.num_rows)))
    first = pa.TableGroupBy(codes, list(KEY), use_threads=False).aggregate([("row", "min")])["row_min"].to_numpy()
    again = np.ones(scores.num_rows, bool)
    again[first] = False
    findings.add_rows("scores.parquet", [("a score is there twice", again)], scores)
    pairs = _beside_vanilla(scores, verify)
    ours, theirs = (pairs[name].to_numpy(zero_copy_only=False) for name in ("score", "score_vanilla"))
    unequal = ~((ours == theirs) | (np.isnan(ours) & np.isnan(theirs)))
    findings.add_rows("scores.parquet", [("a score is not vanilla's, though the tokens are", unequal)], pairs)
    return findings.lines()


def _beside_vanilla(scores: pa.Table, verify: pa.Table) -> pa.Table:
    """The scores of the outputs that `verify` calls exact, each beside vanilla's of the same sample and repeat."""
    of_repeat = scores.filter(pc.is_valid(scores["repeat"])).select([*KEY, "score"])
    is_vanilla = pc.equal(of_repeat["method"], REFERENCE)
    exact = verify.filter(pc.equal(verify["parity"], "exact")).select([name for name in KEY if name != "metric"])
    same = of_repeat.filter(pc.invert(is_vanilla)).join(exact, exact.column_names, join_type="left semi")
    vanilla = of_repeat.filter(is_vanilla).drop_columns("method")
    keys = [name for name in KEY if name != "method"]
    return same.join(vanilla, keys, join_type="inner", right_suffix="_vanilla").sort_by(
        [(name, "ascending") for name in KEY]
    )


def _mean_text(row: dict[str, Any]) -> str:
    return f"{row['metric']} {_number(row['score'])}" + (f" ({row['without']} without)" if row["without"] else "")


def _number(score: float | None) -> str:
    return ABSENT if score is None else format(score, ".3f")
