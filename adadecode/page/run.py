"""The page of one run, recomputed from its committed rows, or made of its summary where it was published without them."""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from adadecode.comparison.result import problems_of
from adadecode.errors import EXIT_MISMATCH, EXIT_OK
from adadecode.page.charts import run_charts
from adadecode.page.content import TERMS, esc, lines, sentence, shown_method, titled
from adadecode.page.figures import (
    percentiles_table,
    scores_table,
    spread_rows,
    spread_table,
    summary_table,
)
from adadecode.page.layout import Page, Part, laid_out
from adadecode.page.measures import Measured, add_rows
from adadecode.page.provenance import provenance
from adadecode.page.samples import MOST_SAMPLES, PER_BLOCK, Browser, compressed
from adadecode.page.vocabulary import fitting
from adadecode.printable import printable
from adadecode.report.detail import LATENCIES, latencies
from adadecode.report.parity import once_each
from adadecode.report.row_checks import without_impossible_times
from adadecode.report.schema import SAMPLES
from adadecode.report.summary import parity_line
from adadecode.runs.engines import published_engine_lines
from adadecode.runs.folder import committed_tables, read_commits, read_run
from adadecode.runs.lease import driver_status
from adadecode.runs.listing import read_published
from adadecode.runs.result import read_result
from adadecode.runs.run_file import part_of
from adadecode.runs.storage import open_storage

TUNE_FILE = "tune.json"
TIMED = ["task", "sample_id", "turn", "method", "repeat", "status", "worker_id", "sampling_key", *LATENCIES]
By = dict[tuple[str, str], Measured]
Row = Mapping[str, Any]


def run_page(location: str | Path) -> Page:
    """The page of the run at `location`, judged as `report` judges it; writes nothing. Raises RunFolderError."""
    run, published = read_run(location), read_published(location)
    if published is not None:
        return _published_page(location, run, *published)
    result = read_result(location)
    running = result.status == "running"
    run |= {"status": driver_status(open_storage(location)) if running else result.status}
    summary, whole = result.summary.to_pylist(), _whole(result.summary)
    by, browser, rows = _read_rows(location, run, whole)
    times, spread = list(latencies(result.summary, rows)), list(spread_rows(rows, by))
    figures = [titled("Summary", summary_table(summary)), titled("Percentiles", percentiles_table(times))]
    if result.scores is not None and result.scores.num_rows:
        figures.append(titled("Scores", scores_table(result.scores)))
    if spread:
        figures.append(titled("Between workers and repeats", spread_table(spread)))
    problems = problems_of(result)
    parts = [
        Part("figures", "Figures", "".join(figures) + _checked(result.findings())),
        *([Part("samples", "Samples", _browser(browser, whole))] if browser.index else []),
        Part("provenance", "Provenance and command", provenance(run), "Provenance"),
    ]
    samples = {
        "index": compressed(browser.index),
        "words": compressed(browser.vocabulary()),
        "hasWords": browser.decode is not None,
        "perBlock": PER_BLOCK,
        "layers": sorted(browser.layers),
    }
    html = laid_out(
        title=_title(run),
        told=sentence(whole, parity_line(result.summary), _model(run), result.engines),
        charts=list(run_charts(summary, by, times, _bars(location, run, whole))),
        parts=parts,
        terms=TERMS,
        problems=problems,
        samples=samples if browser.index else None,
        blocks=browser.blocks,
    )
    return Page(html, result.exit_code, problems)


def _published_page(location: str | Path, run: dict[str, Any], table: pa.Table, problems: list[str]) -> Page:
    """The page of a run that was published as its SUMMARY `table` alone, with what contradicts it."""
    summary, whole, engines = table.to_pylist(), _whole(table), published_engine_lines(run)
    times = list(latencies(table, None))
    note = "its rows are not here: the table is as it was published, nothing was recomputed"
    figures = [
        titled("Summary", summary_table(summary)),
        titled("Percentiles", percentiles_table(times)),
        _checked([*problems, *engines, note]),
    ]
    html = laid_out(
        title=_title(run),
        told=f"{sentence(whole, parity_line(table), _model(run), engines)} Its rows are not here.",
        charts=list(run_charts(summary, {}, times, _bars(location, run, whole))),
        parts=[
            Part("figures", "Figures", "".join(figures)),
            Part("provenance", "Provenance and command", provenance(run), "Provenance"),
        ],
        terms=TERMS,
        problems=problems,
    )
    return Page(html, EXIT_MISMATCH if problems else EXIT_OK, problems)


def _title(run: Row) -> str:
    return f"AdaDecode: {run['run_id']}"


def _model(run: Row) -> str:
    config = run.get("config")
    return str(config.get("model", "unknown")) if isinstance(config, dict) else "unknown"


def _whole(summary: pa.Table) -> list[Row]:
    """The rows of a SUMMARY table that are of whole tasks."""
    return [row for row in summary.to_pylist() if row["category"] is None]


def _checked(found: Sequence[str]) -> str:
    return titled("What was checked", lines(found or ["nothing to tell"]))


def _read_rows(location: str | Path, run: Row, whole: Sequence[Row]) -> tuple[By, Browser, pa.Table]:
    """What charts and the browser hold, in one pass over the committed rows, and the columns TIMED of the ok ones."""
    browser = Browser({row["task"]: row["baseline"] for row in whole}, shown_method(whole))
    by: defaultdict[tuple[str, str], Measured] = defaultdict(Measured)
    times = [SAMPLES.empty_table().select(TIMED)]
    for table in committed_tables(location, read_commits(location)):
        samples = once_each(without_impossible_times(table.select(SAMPLES.names)))
        if len(times) == 1:
            browser.decode = fitting(run, samples)
        add_rows(by, samples)
        browser.add(samples)
        times.append(samples.select(TIMED).filter(pc.field("status") == "ok"))
    browser.close()
    order = [(row["task"], row["method"]) for row in whole]
    return {of: by[of] for of in order if of in by}, browser, pa.concat_tables(times)


def _bars(location: str | Path, run: Row, whole: Sequence[Row]) -> list[tuple[str, str, float]]:
    """What was measured beside what could be: the layers alone, and a tuning's figures where it is there."""
    rates = {(row["task"], row["method"]): row for row in whole}
    bars: list[tuple[str, str, float]] = []
    for row in whole:
        base = rates.get((row["task"], row["baseline"]))
        if base is None or row["method"] == row["baseline"] or not row["num_drafted"]:
            continue
        of = f"{row['task']} / {row['method']}"
        if row["speedup_geomean"]:
            bars.append((of, "measured, end to end", row["speedup_geomean"]))
        if row["decode_tokens_per_s"] and base["decode_tokens_per_s"]:
            bars.append((of, "measured, decoding alone", row["decode_tokens_per_s"] / base["decode_tokens_per_s"]))
        if row["layers_per_token"] and base["layers_per_token"]:
            bars.append((of, "layers alone (ceiling)", base["layers_per_token"] / row["layers_per_token"]))
    return bars + list(_tuned(location, run))


def _tuned(location: str | Path, run: Row) -> Iterator[tuple[str, str, float]]:
    """What the tuning told that lies in the run's folder, or beside the policy file that the run decoded by."""
    policy = part_of(part_of(run, "config"), "decode").get("policy")
    places = [
        str(location),
        *([str(Path(policy).parent)] if isinstance(policy, str) and Path(policy).is_file() else []),
    ]
    tune = next((found for found in map(_tune_file, places) if found is not None), None)
    if not isinstance(tune, dict):
        return
    parts = {"predicted": tune.get("predicted"), "oracle": tune.get("oracle")}
    for of, part in parts.items():
        for name, value in part.items() if isinstance(part, dict) else ():
            if isinstance(value, float) and math.isfinite(value):
                yield "tuning", printable(name if of == "oracle" else f"{of}, {name.replace('_', ' ')}"), value


def _tune_file(folder: str) -> Any:
    try:
        return json.loads(open_storage(folder).read(TUNE_FILE))
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def _browser(browser: Browser, summary: Sequence[Row]) -> str:
    tasks = dict.fromkeys(row["task"] for row in summary)
    options = "".join(f'<option value="{esc(task)}">{esc(task)}</option>' for task in tasks)
    out = f" The first {MOST_SAMPLES:,}; {browser.num_left_out:,} are left out." if browser.num_left_out else ""
    words = "" if browser.decode else " No tokenizer here gives the run's texts, so tokens are shown as numbers."
    words += " Tokens have the colour of the layer they were drafted at; rejected drafts are struck through."
    return f"""<p>{len(browser.index):,} samples.{out}{words}</p>
<form class="filters" id="filters">
<label>Task <select id="f-task"><option value="">all</option>{options}</select></label>
<label>Parity <select id="f-parity"><option value="">all</option><option value="exact">exact</option>
<option value="near_tie">near tie</option><option value="mismatch">mismatch</option></select></label>
<label>Speedup <select id="f-speedup"><option value="">all</option><option value="slower">below 1</option>
<option value="faster">1 or more</option></select></label>
<label>Errors <select id="f-error"><option value="">all</option><option value="error">failed</option>
<option value="ok">not failed</option></select></label>
<label>Order <select id="f-order"><option value="">of the run</option><option value="slow">slowest first</option>
<option value="fast">fastest first</option></select></label>
</form>
<p id="count" role="status"></p>
<div class="browser">
<div id="list" class="list" role="listbox" tabindex="0" aria-label="Samples; arrow keys choose one"></div>
<div id="detail" class="detail" tabindex="0" role="region" aria-label="The chosen sample"></div>
</div>"""
