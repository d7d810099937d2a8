"""What a person reads: the summary as a rich table, the pairs that differ, and where the run came from."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich import box
from rich.table import Table
from rich.text import Text

from adadecode.methods import REFERENCE, drawn_apart, names_that_owe
from adadecode.report.cells import ABSENT, cell, fraction_text, number_text
from adadecode.report.parity import row_name
from adadecode.report.summary import parity_line
from adadecode.settings import PLACEMENT

MODELS = ("model", "draft_model")
COLUMNS = (
    "task",
    "method",
    "n",
    "errors",
    "tokens\n/s",
    "accept\nrate",
    "speedup\n(95 % CI)",
    "parity",
    "correct",
)

# The columns that give way on a terminal narrower than the table; the others keep every digit.
FOLDING: dict[str, Any] = {
    "cell": {"overflow": "fold", "min_width": 8},
    "task": {"overflow": "fold", "min_width": 6},
    "method": {"overflow": "fold", "min_width": 10},
    "speedup\n(95 % CI)": {"min_width": 11},
    "speed B/A\n(95 % CI)": {"min_width": 11},
    "over vanilla\n(95 % CI)": {"min_width": 12},
    "accept B-A\n(95 % CI)": {"min_width": 13},
}

CAPTION = (
    "speedup: geometric mean of n prompts' e2e ratios over `baseline`, the vanilla that is faster by it, and its 95 % "
    "interval"
)


def summary_table(summary: pa.Table) -> Table:
    """A rich table with one line per row of a SUMMARY table: the five figures a person asks for first, in 80 columns.

    `-` stands for not measured. The columns of errors and of right answers are there when there are any.
    """
    rows = summary.to_pylist()
    has = {"errors": any(row["num_errors"] for row in rows), "correct": any(row["num_scored"] for row in rows)}
    table = figures_table([name for name in COLUMNS if has.get(name, True)], num_names=2)
    num_vanilla = {(row["task"], row["category"]): row["n"] for row in rows if row["method"] == REFERENCE}
    for task, row in by_task(rows):
        figures = _figures(row, num_vanilla.get((row["task"], row["category"])))
        table.add_row(
            cell(task), method_label(row), *(cell(text) for name, text in figures.items() if has.get(name, True))
        )
    return table


def by_task(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """SUMMARY rows, each with what stands in the column of tasks: nothing where it is that of the row before."""
    shown = None
    for row in rows:
        of = (row["task"], row["category"])
        yield "" if of == shown else row["task"] if row["category"] is None else f"- {row['category']}", row
        shown = of


def figures_table(columns: Sequence[str], num_names: int, caption: str | None = CAPTION) -> Table:
    """An empty rich table of `columns` with a caption on speedups; after the first `num_names` they hold figures."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, caption=caption, caption_justify="left")
    for idx, name in enumerate(columns):
        justify = "left" if idx < num_names else "right"
        table.add_column(name, justify=justify, **FOLDING.get(name, {"no_wrap": True}))
    return table


def finding_lines(summary: pa.Table, verify: pa.Table, errors: Sequence[str]) -> list[str]:
    """What stands under `summary_table`: the parity, the lines `errors`, and every pair that is not exact."""
    return [parity_line(summary), *errors, *mismatch_lines(verify), *_apart_lines(summary)]


def _apart_lines(summary: pa.Table) -> list[str]:
    """A line where outputs were drawn that no line or column compares with vanilla's."""
    rows = (
        summary.filter(pc.field("category").is_null()).select(["task", "method", "n", "num_parity_checked"]).to_pylist()
    )
    has_vanilla = {row["task"] for row in rows if row["method"] == REFERENCE and row["n"]}
    apart = [
        row["method"]
        for row in rows
        if row["method"] in drawn_apart() and row["n"] and not row["num_parity_checked"] and row["task"] in has_vanilla
    ]
    if not apart:
        return []
    return [
        f"{', '.join(dict.fromkeys(apart))}: drawn by noise of transformers' own, the same distribution in other tokens: "
        "no parity is claimed"
    ]


def mismatch_lines(verify: pa.Table) -> list[str]:
    """One line per pair that is not exact: its class, where it first differs, both tokens there and their margins.

    A lossy method, of which nothing else was expected, has one line in all.
    """
    is_lossy = pc.field("method").isin(names_that_owe("lossy"))
    differs = pc.field("parity").is_valid() & (pc.field("parity") != "exact")
    lines = [_mismatch_line(row) for row in verify.filter(~is_lossy & differs).to_pylist()]
    lossy = verify.filter(is_lossy).select(["method", "parity", "consistency"]).to_pylist()
    return lines + [
        _lossy_line(lossy, method) for method in names_that_owe("lossy") if any(r["method"] == method for r in lossy)
    ]


def method_label(row: dict[str, Any]) -> Text:
    """The method of a SUMMARY row, with a mark when it is lossy."""
    label = cell(row["method"])
    return label.append("\n(lossy)") if row["lossy"] else label


def provenance_lines(run: dict[str, Any]) -> list[str]:
    """The essentials of run.json, one `name: value` per line; what is missing is left out.

    So are settings that are no fact of its rows: placement, which each start has its own of, and kernels left to `auto`.
    """
    lines = [
        f"{name}: {_plain(run[name])}" for name in ("run_id", "status", "fingerprint") if run.get(name) is not None
    ]
    for section in ("config", "provenance"):
        values = run.get(section)
        if isinstance(values, dict):
            told = {name: value for name, value in values.items() if value is not None and name not in PLACEMENT}
            if told.get("kernels") == "auto":
                del told["kernels"]
            lines += [f"{section}.{name}: {_plain(value)}" for name, value in told.items()]
    return lines + [f"{of.replace('_', ' ')}: {note}" for of in MODELS for note in model_notes(run, of)]


def model_notes(run: dict[str, Any], of: str) -> list[str]:
    """What the workers of a run noted of the files of one of MODELS, each once."""
    workers = run.get("workers")
    found = (
        [worker.get(f"{of}_notes") for worker in workers or [] if isinstance(worker, dict)]
        if isinstance(workers, list)
        else []
    )
    return list(dict.fromkeys(str(note) for notes in found if isinstance(notes, list) for note in notes))


def _figures(row: dict[str, Any], num_vanilla: int | None) -> dict[str, str]:
    """The texts of a SUMMARY row by the names of COLUMNS after its task and method."""
    texts = (
        str(row["n"]),
        str(row["num_errors"]),
        number_text(row["tokens_per_s"], ".1f"),
        number_text(row["acceptance_rate"], ".1%"),
        speedup_text(row),
        parity_text(row, num_vanilla),
        fraction_text(row["num_correct"], row["num_scored"]),
    )
    return dict(zip(COLUMNS[2:], texts, strict=True))


def speedup_text(row: dict[str, Any]) -> str:
    """The geometric mean of a SUMMARY row with its interval and the number of prompts behind it."""
    if row["method"] == row["baseline"]:
        return "baseline"
    if row["speedup_geomean"] is None:
        return ABSENT
    low, high = row["speedup_geomean_low"], row["speedup_geomean_high"]
    interval = "no interval" if low is None or high is None else f"{low:.2f}-{high:.2f}"
    return f"{row['speedup_geomean']:.2f}x ({interval}, n={row['num_prompts']})"


def parity_text(row: dict[str, Any], num_vanilla: int | None) -> str:
    """The exact outputs of a SUMMARY row, of as many as the line under the table counts.

    Those are the `num_vanilla` of vanilla on its task where one is owed for each, else those that were compared.
    """
    if row["method"] in drawn_apart() and not row["num_parity_checked"]:
        return ABSENT
    owed = num_vanilla if row["method"] in names_that_owe("exact") else None
    return fraction_text(row["num_parity_exact"], row["num_parity_checked"] if owed is None else owed)


def _lossy_line(rows: list[dict[str, Any]], method: str) -> str:
    checked = [row for row in rows if row["method"] == method and row["parity"] is not None]
    num_different = sum(row["parity"] != "exact" for row in checked)
    line = f"{method}: {num_different} of {len(checked)} outputs differ from vanilla's (lossy by design)"
    if not checked:
        return line
    consistency = sum(row["consistency"] for row in checked) / len(checked)
    return f"{line}; {consistency:.3f} of an output's tokens are vanilla's"


def _mismatch_line(row: dict[str, Any]) -> str:
    pair = f"{row_name(row)}: {row['parity']}"
    if row["first_diff_idx"] is None:
        return f"{pair}, equal token ids, but the finish reason differs or a stored claim contradicts the outputs"
    vanilla = _token(row["vanilla_token_id"], row["vanilla_margin"])
    method = _token(row["method_token_id"], row["method_margin"])
    return f"{pair} at output position {row['first_diff_idx']}: vanilla {vanilla}, {row['method']} {method}"


def _token(token_id: int | None, margin: float | None) -> str:
    token = "ended" if token_id is None else f"token {token_id}"
    return f"{token} (margin {'not recorded' if margin is None else format(margin, '.4g')})"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={_plain(part)}" for name, part in value.items() if part is not None)
    return ",".join(map(_plain, value)) if isinstance(value, list | tuple) else str(value)
