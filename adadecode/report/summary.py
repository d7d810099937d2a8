"""What a run's rows come to: a line per task and method with its speed and parity, and a line about what failed."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adadecode.methods import REFERENCE, baselines, names_that_owe
from adadecode.report.parity import pair_codes, recompute_parity, sample_name
from adadecode.report.schema import SUMMARY
from adadecode.report.stats import (
    Statistic,
    Times,
    fastest,
    geomean_speedup,
    mean_log_s,
    percentiles,
    total_s,
    total_speedup,
)

NUMBERS = (
    "output_len",
    "ttft_s",
    "decode_s",
    "e2e_s",
    "tpot_s",
    "num_rounds",
    "num_drafted",
    "num_accepted",
    "layers_per_token",
)

NARROW = [
    "task",
    "sample_id",
    "turn",
    "category",
    "method",
    "repeat",
    "status",
    "correct",
    *NUMBERS,
]  # the columns a summary needs
ERROR_COLUMNS = (
    "task",
    "sample_id",
    "turn",
    "method",
    "status",
    "error_type",
    "error_message",
)  # and those error_lines needs
MAX_SHOWN_LEN = 200  # of the first error's message, in characters


def summarise(
    samples: pa.Table,
    verify: pa.Table | None = None,
    num_engines: Mapping[str, int] | None = None,
    over: Sequence[str] | None = None,
) -> pa.Table:
    """A SUMMARY table: one row per task and method, tasks by first appearance, the baselines first among the methods.

    The baselines are the methods `over` which speedups are quoted; the vanillas when it is None. Where samples have
    categories such rows of each follow, in the order of their first appearance.

    Error rows are counted and measured nowhere. A speedup is over the (sample, repeat) pairs that both methods
    finished, against whichever of the baselines that ran does best by the same statistic on the pairs all of those
    finished. Parity is recomputed from the ids, so a summary cannot repeat a claim that the outputs contradict; given the
    VERIFY table of these samples, only the columns NARROW of them are needed. `num_engines` by task is passed through.
    """
    parity = recompute_parity(samples) if verify is None else verify
    flat = samples.select(NARROW)
    first = baselines() if over is None else tuple(over)
    methods = _baselines_first(flat["method"].unique().to_pylist(), first)
    lines = []
    for task in flat["task"].unique().to_pylist():
        of_task, checked = (table.filter(pc.equal(table["task"], task)) for table in (flat, parity))
        engines = None if num_engines is None else num_engines.get(task)
        lines += [{"task": task, "num_engines": engines, **line} for line in _lines(of_task, checked, methods, first)]
        for category in of_task["category"].drop_null().unique().to_pylist():
            of_category, its_checked = (table.filter(pc.field("category") == category) for table in (of_task, checked))
            of = {"task": task, "category": category, "num_engines": engines}
            lines += [{**of, **line} for line in _lines(of_category, its_checked, methods, first)]
    return pa.Table.from_pylist(lines, schema=SUMMARY)


def whole_tasks(summary: pa.Table) -> pa.Table:
    """The rows of a SUMMARY table that are of whole tasks, not of one category."""
    return summary.filter(pc.is_null(summary["category"]))


def _lines(samples: pa.Table, checked: pa.Table, methods: list[str], over: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What the rows of one task, or of a category of it, come to: a line for each of `methods` that ran."""
    timings = _Timings(samples, over)
    for method in methods:
        rows = samples.filter(pc.equal(samples["method"], method))
        if rows.num_rows:
            line: dict[str, Any] = {"method": method, "lossy": method in names_that_owe("lossy")}
            line |= _measurements(rows) | timings.speedups(method) | _scores(rows)
            if method != REFERENCE:
                line |= _parity_counts(checked.filter(pc.field("method") == method))
            if line["lossy"]:
                line["acceptance_rate"] = None  # its drafts are kept, not accepted
            yield line


def parity_line(summary: pa.Table) -> str:
    """`parity 48/48, logits 48/48` over the methods under the parity contract; logits only where they were recorded.

    Out of all outputs of vanilla, so that a method that fails on some of them does not look the better for it.
    """
    contract = whole_tasks(summary).filter(pc.field("method").isin(names_that_owe("exact")))
    owed = num_owed(summary)
    if not owed:
        return "parity not checked"
    line = f"parity {_total(contract['num_parity_exact']) or 0}/{owed}"
    return line + (
        f", logits {_total(contract['num_logits_equal'])}/{owed}" if _total(contract["num_logits_checked"]) else ""
    )


def num_owed(summary: pa.Table) -> int:
    """How many outputs the methods under the parity contract owe: one for each of vanilla's on their tasks."""
    rows = whole_tasks(summary).select(["task", "method", "n"]).to_pylist()
    vanilla = {row["task"]: row["n"] for row in rows if row["method"] == REFERENCE}
    return sum(vanilla.get(row["task"], 0) for row in rows if row["method"] in names_that_owe("exact"))


def error_lines(samples: pa.Table) -> list[str]:
    """One line that counts the failed samples, their rows by method and by error, and names the first; none without.

    `samples` are rows of a SAMPLES table, of which ERROR_COLUMNS suffice. Commonest errors first.
    """
    failed = samples.select(ERROR_COLUMNS).filter(pc.equal(samples["status"], "error"))
    if not failed.num_rows:
        return []
    num_failed, num_samples = num_distinct_samples(failed), num_distinct_samples(samples)
    methods = ", ".join(f"{method} {count}" for method, count in _counts(failed["method"]))
    kinds = ", ".join(f"{count} {kind}" for kind, count in _counts(failed["error_type"]))
    first = failed.slice(0, 1).to_pylist()[0]
    message = first["error_message"] or first["error_type"] or "no message"
    if len(message) > MAX_SHOWN_LEN:
        message = message[:MAX_SHOWN_LEN].rstrip() + " ..."
    return [
        f"errors: {num_failed} of {num_samples} samples failed: {methods} rows ({kinds}); "
        f"first: {sample_name(first)}: {message}"
    ]


def num_distinct_samples(samples: pa.Table) -> int:
    """How many samples the rows are of, whatever their methods and repeats."""
    return samples.group_by(["task", "sample_id"]).aggregate([]).num_rows


class _Timings:
    """The e2e seconds of one task's methods, aligned on (sample, repeat) pairs: [pairs], NaN where not measured."""

    def __init__(self, of_task: pa.Table, over: Sequence[str]) -> None:
        codes = pair_codes(of_task)
        num_pairs = codes.max(initial=-1) + 1
        self._prompt_of_pair = np.empty(num_pairs, dtype=np.int64)
        samples = pc.dictionary_encode(of_task["sample_id"].combine_chunks())
        self._prompt_of_pair[codes] = samples.indices.to_numpy()
        methods, is_ok = of_task["method"], pc.equal(of_task["status"], "ok")
        self._e2e_s: dict[str, Times] = {}
        for method in methods.unique().to_pylist():
            of_method = pc.and_(pc.equal(methods, method), is_ok).to_numpy()
            self._e2e_s[method] = np.full(num_pairs, np.nan)
            self._e2e_s[method][codes[of_method]] = _possible(_floats(of_task["e2e_s"]))[of_method]
        ran = [name for name in over if _measured(self._e2e_s.get(name, np.array([np.nan]))).any()]
        self._baselines = (
            {statistic: self._faster(ran, statistic) for statistic in (mean_log_s, total_s)} if ran else {}
        )

    def speedups(self, method: str) -> dict[str, Any]:
        """The summary's speedup columns for `method`, each statistic over its own baseline; those left out are null."""
        if not self._baselines:
            return {}
        geomean_over, total_over = self._baselines[mean_log_s], self._baselines[total_s]
        geomean = geomean_speedup(*self._pairs(geomean_over, method))
        return {
            "baseline": geomean_over,
            "num_prompts": geomean.num_prompts if geomean else 0,
            "speedup_geomean": geomean.value if geomean else None,
            "speedup_geomean_low": geomean.low if geomean else None,
            "speedup_geomean_high": geomean.high if geomean else None,
            "baseline_total": total_over,
            "speedup_total": total_speedup(*self._pairs(total_over, method)),
        }

    def _pairs(self, base: str, method: str) -> tuple[NDArray[np.int64], Times, Times]:
        """The prompts of the pairs that both methods finished, and the times of each."""
        base_s, method_s = self._e2e_s[base], self._e2e_s[method]
        both = _measured(base_s, method_s)
        return self._prompt_of_pair[both], base_s[both], method_s[both]

    def _faster(self, ran: list[str], statistic: Statistic) -> str:
        """Which of the baselines that `ran` has the least `statistic`, over the pairs that all of them finished."""
        all_finished = _measured(*(self._e2e_s[name] for name in ran))
        if not all_finished.any():
            return ran[0]
        times = {name: self._e2e_s[name][all_finished] for name in ran}
        return fastest(statistic, ran, self._prompt_of_pair[all_finished], times)


def _baselines_first(methods: Iterable[str], first: Sequence[str]) -> list[str]:
    return sorted(methods, key=lambda name: first.index(name) if name in first else len(first))


def _measurements(rows: pa.Table) -> dict:
    """The summary's measured columns of one task and method; None where nothing was measured."""
    ok = rows.filter(pc.field("status") == "ok")
    column = {name: _floats(ok[name]) for name in NUMBERS}
    later = column["output_len"] - 1  # tokens after the first, which comes from the prefill
    ttft, tpot, e2e = (percentiles(column[name]) for name in ("ttft_s", "tpot_s", "e2e_s"))
    num_drafted, num_accepted = (_total(ok[name]) for name in ("num_drafted", "num_accepted"))
    return {
        "n": ok.num_rows,
        "num_errors": rows.num_rows - ok.num_rows,
        "num_output_tokens": _total(ok["output_len"]) or 0,
        "tokens_per_s": _rate(column["output_len"], column["e2e_s"]),
        "decode_tokens_per_s": _rate(later, column["decode_s"]),
        "ttft_p50_s": ttft.p50,
        "ttft_p90_s": ttft.p90,
        "num_tpot": tpot.n,
        "tpot_mean_s": pc.mean(ok["tpot_s"]).as_py(),
        "tpot_p50_s": tpot.p50,
        "tpot_p90_s": tpot.p90,
        "e2e_p50_s": e2e.p50,
        "e2e_p90_s": e2e.p90,
        "num_drafted": num_drafted,
        "num_accepted": num_accepted,
        "acceptance_rate": num_accepted / num_drafted if num_drafted and num_accepted is not None else None,
        "tokens_per_round": _rate(later, column["num_rounds"]),
        "layers_per_token": _rate(column["layers_per_token"] * later, later),
    }


def _parity_counts(checked: pa.Table) -> dict:
    num_logits_checked = pc.count(checked["logits_equal"]).as_py()
    return {
        "num_parity_exact": _total(pc.equal(checked["parity"], "exact")) or 0,
        "num_parity_checked": pc.count(checked["parity"]).as_py(),
        "num_logits_equal": _total(checked["logits_equal"]),
        "num_logits_checked": num_logits_checked or None,
        "consistency": pc.mean(checked["consistency"]).as_py(),
    }


def _scores(rows: pa.Table) -> dict:
    """How many ok rows were right, of those with a score; both None where the task has no scorer."""
    correct = rows.filter(pc.field("status") == "ok")["correct"]
    return {"num_correct": _total(correct), "num_scored": pc.count(correct).as_py() or None}


def _rate(amounts: NDArray, per: NDArray) -> float | None:
    """Sum over sum, over the rows that have both; None where the denominator is 0."""
    both = _measured(amounts, per)
    denominator = per[both].sum()
    return float(amounts[both].sum() / denominator) if denominator > 0 else None


def _possible(times_s: Times) -> Times:
    """`times_s` with NaN for what no clock can have shown, which the checks of a run's rows report."""
    return np.where(np.isfinite(times_s) & (times_s > 0), times_s, np.nan)


def _measured(*columns: NDArray) -> NDArray[np.bool_]:
    return np.all([np.isfinite(column) for column in columns], axis=0)


def _total(column: pa.ChunkedArray) -> int | None:
    """The sum of a column (true counts 1), None where every value is null."""
    return pc.sum(column).as_py()


def _floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """A numeric column as float64 with NaN for null."""
    return column.cast(pa.float64()).to_numpy()


def _counts(column: pa.ChunkedArray) -> list[tuple[str, int]]:
    """The values and how often each stands there, the most frequent first."""
    return Counter("unknown" if value is None else value for value in column.to_pylist()).most_common()
