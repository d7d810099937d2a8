"""From a run or a sweep to its page."""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adadecode.errors import RunFolderError
from adadecode.methods import names_that_owe
from adadecode.page.chart import Chart, same_colors
from adadecode.page.charts import run_charts
from adadecode.page.content import TERMS, chart, definitions, esc, lines, sentence, shown_method, summary_table
from adadecode.page.document import document
from adadecode.page.measures import Measured, add_rows
from adadecode.page.samples import MOST_SAMPLES, PER_BLOCK, Browser, compressed
from adadecode.page.sweep_charts import sweep_charts
from adadecode.page.vocabulary import Decode, decoder, fits
from adadecode.printable import printable
from adadecode.report.row_checks import without_impossible_times
from adadecode.report.schema import SAMPLES, SWEEP
from adadecode.report.summary import parity_line
from adadecode.report.tables import provenance_lines
from adadecode.runs.folder import committed_tables, read_commits, read_run
from adadecode.runs.result import RunResult, read_result
from adadecode.runs.starts import start_lines
from adadecode.runs.storage import Storage, open_storage
from adadecode.runs.typed import typed_table

SWEEP_FILE, TUNE_FILE = "sweep.parquet", "tune.json"
Row = Mapping[str, Any]


def report_page(location: str | Path) -> str:
    """The page of the run or the sweep at `location`; writes nothing. Raises RunFolderError where there is neither."""
    content = _read(open_storage(location), SWEEP_FILE)
    return run_page(location) if content is None else sweep_page(str(location), content)


def is_sweep(location: str | Path) -> bool:
    """Whether there is a sweep's file at `location`."""
    return _read(open_storage(location), SWEEP_FILE) is not None


def run_page(location: str | Path) -> str:
    """The page of one run, recomputed from its committed rows."""
    run, result = read_run(location), read_result(location)
    summary = result.summary.to_pylist()
    by, browser = _read_rows(location, run, summary)
    charts = same_colors(list(run_charts(summary, by, _bars(open_storage(location), summary))))
    model = (run.get("config") or {}).get("model", "unknown")
    told = sentence(summary, parity_line(result.summary), str(model), result.engines)
    body = _body(
        title="AdaDecode: " + esc(run["run_id"]),
        told=told,
        charts=charts,
        figures=summary_table(summary),
        checks=[*result.findings(), *result.problem_lines()] or ["nothing to tell"],
        browser=_browser_html(browser, summary),
        provenance=_provenance(run, result),
    )
    data = {
        "charts": {one.key: _plain(one.spec) for one in charts},
        "index": compressed(browser.index),
        "words": compressed(browser.vocabulary()),
        "hasWords": browser.decode is not None,
        "perBlock": PER_BLOCK,
        "layers": sorted(browser.layers),
    }
    return document(f"AdaDecode report: {run['run_id']}", body, data, browser.blocks)


def sweep_page(location: str, content: bytes) -> str:
    """The page of a sweep, from the file over all of its cells."""
    try:
        table = typed_table(content, SWEEP)
    except ValueError as error:
        raise RunFolderError(f"{location!r}: {SWEEP_FILE} cannot be read ({error}); sweep again to have it") from error
    rows = table.to_pylist()
    charts = list(sweep_charts(rows))
    told = [row for row in rows if row["category"] is None and row["speedup_geomean"] is not None]
    best = max(
        [row for row in told if row["method"] in names_that_owe("exact")] or told,
        key=lambda row: row["speedup_geomean"],
        default=None,
    )
    cells = len({row["cell"] for row in rows})
    told = f"{cells} cells; no speedup was measured."
    if best is not None:
        told = (
            f"{cells} cells; the fastest is <strong>{best['speedup_geomean']:.2f}x</strong>, {esc(best['cell'])} with "
            f"{esc(best['method'])} on {esc(best['task'])} (n = {best['num_prompts']}); {esc(parity_line(table))}."
        )
    body = _body(
        title="AdaDecode: sweep",
        told=told,
        charts=charts,
        figures=summary_table(rows, of_cells=True),
        checks=[parity_line(table), f"each cell has a page of its own: adadecode report {location}/CELL --html"],
        browser="",
        provenance=definitions([("sweep", location)], "facts"),
    )
    return document("AdaDecode sweep", body, {"charts": {one.key: _plain(one.spec) for one in charts}}, [])


def _read_rows(
    location: str | Path, run: Row, summary: Sequence[Row]
) -> tuple[dict[tuple[str, str], Measured], Browser]:
    """Everything that charts and the browser hold, in one pass over the committed rows."""
    whole = [row for row in summary if row["category"] is None]
    baselines = {row["task"]: row["baseline"] for row in whole}
    browser = Browser(baselines, shown_method(whole))
    by: dict[tuple[str, str], Measured] = defaultdict(Measured)
    is_first = True
    for table in committed_tables(location, read_commits(location)):
        samples = without_impossible_times(table.select(SAMPLES.names))
        if is_first:
            browser.decode, is_first = _fitting(run, samples), False
        add_rows(by, samples)
        browser.add(samples)
    browser.close()
    return by, browser


def _fitting(run: Row, samples: Any) -> Decode | None:
    decode = decoder(run)
    few = samples.slice(0, 100).select(["status", "output_text", "output_token_ids"]).to_pylist()
    return decode if decode is not None and fits(decode, few) else None


def _bars(storage: Storage, summary: Sequence[Row]) -> list[tuple[str, str, float]]:
    """What was measured beside what could be: the layers alone, and a tuning's figures where it is there."""
    whole = [row for row in summary if row["category"] is None]
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
    return bars + list(_tuned(storage))


def _tuned(storage: Storage) -> Iterator[tuple[str, str, float]]:
    content = _read(storage, TUNE_FILE)
    try:
        tune = json.loads(content) if content is not None else {}
    except (ValueError, RecursionError):
        return
    if not isinstance(tune, dict):
        return
    parts = {"predicted": tune.get("predicted"), "oracle": tune.get("oracle")}
    for of, part in parts.items():
        for name, value in part.items() if isinstance(part, dict) else ():
            if isinstance(value, float) and math.isfinite(value):
                yield "tuning", printable(name if of == "oracle" else f"{of}, {name.replace('_', ' ')}"), value


def _read(storage: Storage, name: str) -> bytes | None:
    try:
        return storage.read(name)
    except FileNotFoundError:
        return None


def _provenance(run: Row, result: RunResult) -> str:
    facts = [line.partition(": ") for line in provenance_lines(dict(run) | {"status": result.status})]
    named = [(name, value) for name, _, value in facts]
    starts = [(f"command {idx + 1}", line) for idx, line in enumerate(start_lines(dict(run)))]
    return definitions([*starts, *named], "facts")


def _browser_html(browser: Browser, summary: Sequence[Row]) -> str:
    tasks = dict.fromkeys(row["task"] for row in summary)
    options = "".join(f'<option value="{esc(task)}">{esc(task)}</option>' for task in tasks)
    out = f" The first {MOST_SAMPLES:,}; {browser.num_left_out:,} are left out." if browser.num_left_out else ""
    words = "" if browser.decode else " The model's tokenizer is not here, so tokens are shown as numbers."
    words += " Tokens have the colour of the layer they were drafted at; rejected drafts are struck through."
    return f"""
<section aria-labelledby="h-samples" id="samples"><h2 id="h-samples">Samples</h2>
<p>{len(browser.index):,} samples.{out}{words}</p>
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
</div>
</section>"""


def _body(
    *,
    title: str,
    told: str,
    charts: Sequence[Chart],
    figures: str,
    checks: Sequence[str],
    browser: str,
    provenance: str,
) -> str:
    samples = '<a href="#samples">Samples</a>' if browser else ""
    return f"""<a class="skip" href="#main">To the figures</a>
<header><h1>{title}</h1><p class="lead">{told}</p>
<nav aria-label="Parts of the page"><a href="#charts">Charts</a><a href="#figures">Figures</a>{samples}
<a href="#legend">Terms</a>
<a href="#provenance">Provenance</a></nav></header>
<main id="main">
<section aria-labelledby="h-charts" id="charts"><h2 id="h-charts">Charts</h2>
<div class="charts">{"".join(map(chart, charts)) or "<p>Nothing to draw was measured.</p>"}</div></section>
<section aria-labelledby="h-figures" id="figures"><h2 id="h-figures">Figures</h2>{figures}
<h3>What was checked</h3>{lines(checks)}</section>{browser}
<section aria-labelledby="h-legend" id="legend"><h2 id="h-legend">Terms</h2>{definitions(TERMS.items(), "terms")}</section>
<section aria-labelledby="h-provenance" id="provenance">
<h2 id="h-provenance">Provenance and command</h2>{provenance}</section>
</main>"""


def _plain(value: Any) -> Any:
    """`value` as JSON has it, its texts as a page may show them; numbers that JSON has not are null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return _plain(value.item()) if hasattr(value, "item") else value
