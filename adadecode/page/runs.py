"""The page of several runs beside each other: figures, charts, what they differ in and how far they are apart."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import pyarrow.compute as pc

from adadecode.comparison.provenance import provenance_differences
from adadecode.comparison.result import Side, read_side
from adadecode.comparison.spread import between_runs
from adadecode.errors import EXIT_MISMATCH, UsageError, worst_code
from adadecode.page.chart import Chart, bars_beside, intervals, name_of
from adadecode.page.content import MOST_IN_SENTENCE, TERMS, esc, interval, lines, shown_method, titled
from adadecode.page.figures import spread_rows, spread_table, spread_texts, summary_table
from adadecode.page.layout import Page, Part, laid_out
from adadecode.page.provenance import difference_names, differences, provenance
from adadecode.report.summary import parity_line, whole_tasks

MOST_RUNS = 24
MOST_NAMED = 4  # runs in the first sentence
KNOWN = ("vanilla", "baseline", "speedup", "parity", "TTFT", "TPOT", "draft", "acceptance", "round", "layers a token")
TERMS_OF_RUNS = {name: TERMS[name] for name in (*KNOWN, "between workers", "between repeats")} | {
    "between runs": "The same of end-to-end times of what all runs decoded, whatever differs between them; vanilla's own "
    "line shows what their machines do."
}
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Named:
    """A run under the name that the page has for it; `rows` are its SUMMARY rows of whole tasks."""

    name: str
    side: Side
    rows: list[dict[str, Any]]


def runs_page(locations: Sequence[str]) -> Page:
    """The page of the runs at `locations`, each judged as `report` judges it; writes nothing.

    Raises RunFolderError where one cannot be read, UsageError where one is given twice.
    """
    runs = _read(locations)
    found = provenance_differences(*(run.side.run for run in runs))
    problems = [f"{run.name}: {line}" for run in runs for line in run.side.problems]
    rows = [{"run": run.name, **row} for run in runs for row in run.rows]
    parity = [f"{run.name}: {parity_line(run.side.summary)}" for run in runs]
    parity += [
        f"{run.name}: its rows are not here, the table is as it was published" for run in runs if run.side.rows is None
    ]
    own = f"samples are on each run's own page: adadecode report {runs[0].side.location} --html"
    figures = [titled("Summary", summary_table(rows, "run")), *_spread(runs)]
    figures.append(titled("What was checked", lines([*problems, *parity, own])))
    html = laid_out(
        title=f"AdaDecode: {len(runs)} runs",
        told=f"{_sentence(runs)}; {difference_names(found)}.",
        charts=list(_charts(rows)),
        parts=[
            Part("figures", "Figures", "".join(figures)),
            Part("provenance", "Provenance and commands", _provenance(runs, found), "Provenance"),
        ],
        terms=TERMS_OF_RUNS,
        problems=problems,
    )
    return Page(html, worst_code(run.side.exit_code for run in runs), problems)


def _read(locations: Sequence[str]) -> list[Named]:
    """The runs by the names of their folders, or by their locations where two have one name."""
    if again := [location for idx, location in enumerate(locations) if location in locations[:idx]]:
        raise UsageError(f"{again[0]!r} is given twice: name each run once")
    sides = [_without_outputs(read_side(location)) for location in locations]
    short = [PurePath(location).name for location in locations]
    names = short if len(set(short)) == len(short) and all(short) else locations
    return [Named(name, side, whole_tasks(side.summary).to_pylist()) for name, side in zip(names, sides, strict=True)]


def _without_outputs(side: Side) -> Side:
    """The same run less the ids of its outputs, which take most of the memory."""
    return side if side.rows is None else replace(side, rows=side.rows.drop_columns(["output_token_ids"]))


def _sentence(runs: Sequence[Named]) -> str:
    """What each run came to, by task, escaped; of many runs the first."""
    told = [(run, row) for run in runs for row in run.rows if row["method"] == shown_method(run.rows)]
    tasks = list(dict.fromkeys(row["task"] for _, row in told))
    speeds = [
        f"on {esc(task)} {_first([_speed(run, row) for run, row in told if row['task'] == task], 'runs')}"
        for task in tasks
    ]
    methods = " and ".join(esc(method) for method in dict.fromkeys(row["method"] for _, row in told))
    speed = f"speed of {methods} over each run's own faster vanilla {_first(speeds, 'tasks', MOST_IN_SENTENCE, '; ')}"
    return f"{len(runs)} runs; {speed if told else 'no speedup was measured'}; {_parity(runs)}"


def _parity(runs: Sequence[Named]) -> str:
    """The parity of each run, or of many which ones break it, escaped."""
    if len(runs) <= MOST_NAMED:
        texts = (f"{run.name} {parity_line(run.side.summary).removeprefix('parity ')}" for run in runs)
        return f"parity: {esc(', '.join(texts))}"
    broken = [esc(run.name) for run in runs if run.side.exit_code == EXIT_MISMATCH]
    return f"parity broken, or tables contradictory, in {_first(broken, 'runs')}" if broken else "no run breaks parity"


def _first(texts: Sequence[str], what: str, most: int = MOST_NAMED, between: str = ", ") -> str:
    """The first of `texts`, and how many more `what` there are."""
    num_more = len(texts) - most
    return between.join(texts[:most]) + (f" and {num_more} more {what}" if num_more > 0 else "")


def _speed(run: Named, row: Row) -> str:
    if row["speedup_geomean"] is None:
        return f"{esc(run.name)} not measured"
    return f"{esc(run.name)} <strong>{row['speedup_geomean']:.2f}x</strong> {interval(row)}"


def _charts(rows: Sequence[Row]) -> Iterator[Chart]:
    speeds = [
        _value(row, speedup=row["speedup_geomean"], low=row["speedup_geomean_low"], high=row["speedup_geomean_high"])
        for row in rows
        if row["speedup_geomean"] is not None and row["method"] != row["baseline"]
    ]
    if speeds:
        yield Chart(
            "speedups",
            "Speedup by run",
            "Geometric mean over prompts of the ratio of end-to-end times, over the run's own faster vanilla, with its "
            "95 % interval.",
            intervals(speeds, "speedup", "times the baseline's speed", color="run", beside="run"),
            ("task and method", "run", "speedup", "low", "high"),
            [tuple(value.values()) for value in speeds],
        )
    for key, title, says, field, form in (
        ("rates", "Tokens per second by run", "Tokens by end-to-end time, prefill included.", "tokens_per_s", ".0f"),
        ("acceptance", "Acceptance by run", "Share of the drafts that verification kept.", "acceptance_rate", "%"),
    ):
        values = [_value(row, **{field: row[field]}) for row in rows if row[field] is not None]
        if values:
            yield Chart(
                key,
                title,
                says,
                bars_beside(values, field, title.partition(" by")[0].lower(), "run", format=form),
                ("task and method", "run", field.replace("_", " ")),
                [tuple(value.values()) for value in values],
            )


def _value(row: Row, **figures: float | None) -> dict[str, Any]:
    return {"of": name_of(row["task"], row["method"]), "run": row["run"], **figures}


def _spread(runs: Sequence[Named]) -> Iterator[str]:
    """Tables of how far the runs are apart, and the workers and repeats within each."""
    named = list(dict.fromkeys((row["task"], row["method"]) for run in runs for row in run.rows))
    between: list[tuple[str, ...]] = []
    for task, method in named:
        wanted = (pc.field("task") == task) & (pc.field("method") == method)
        tables = [run.side.rows.filter(wanted) for run in runs if run.side.rows is not None]
        tables = [table for table in tables if table.num_rows]
        if len(tables) > 1 and (spread := between_runs(tables)) is not None:
            between.append((task, method, "runs", "e2e", *spread_texts(spread)))
    if between:
        yield titled("Between runs", spread_table(between))
    within = [
        (run.name, *row)
        for run in runs
        if run.side.rows is not None
        for row in spread_rows(run.side.rows.filter(pc.field("status") == "ok"), named)
    ]
    if within:
        yield titled("Between workers and repeats", spread_table(within, "run"))


def _provenance(runs: Sequence[Named], found: list[tuple[str, ...]]) -> str:
    each = (
        f"<details><summary>{esc(run.name)}: {esc(run.side.location)}</summary>{provenance(run.side.run)}</details>"
        for run in runs
    )
    return differences([run.name for run in runs], found) + "".join(each)
