"""The page of a run: its figures are the summary's, its samples are the rows', and nothing in it is somebody's markup."""

import base64
import gzip
import html
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adadecode.page import vocabulary
from adadecode.page.build import report_page
from adadecode.page.samples import MOST_CHARACTERS, compressed
from adadecode.report.schema import SWEEP
from adadecode.report.summary import parity_line
from adadecode.report.tables import speedup_text
from adadecode.runs.editions import parquet_bytes
from adadecode.runs.result import read_result
from tests.browser import CHROMIUM, browser
from tests.planting import OURS, Row, plant


def unpacked(text: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(text)))


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found[1])


def samples_of(page: str) -> list[dict[str, Any]]:
    blocks = re.findall(r'<script type="text/plain" class="block">(.*?)</script>', page, re.S)
    return [sample for block in blocks for sample in unpacked(block)]


def text_of(page: str) -> str:
    """What a person reads of it without scripts."""
    shown = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S)
    return html.unescape(re.sub(r"<[^>]+>", " ", shown))


def rows_of(run: Path) -> list[Row]:
    return [row for file in sorted((run / "samples").iterdir()) for row in pq.ParquetFile(file).read().to_pylist()]


@pytest.fixture(scope="module")
def page(made) -> str:
    return report_page(made).html


def test_the_figures_are_the_summarys(made, page):
    text = text_of(page)
    rows = read_result(made).summary.to_pylist()
    assert len(rows) == 3
    for row in rows:
        for figure in (f"{row['tokens_per_s']:.1f}", f"{1000 * row['tpot_p50_s']:.2f}", speedup_text(row)):
            assert f" {figure} " in text
    (speedups,) = [data_of(page)["charts"]["speedups"]["data"]["values"]]
    assert {(v["of"], v["speedup"], v["prompts"]) for v in speedups} == {
        (f"{row['task']} / {row['method']}", row["speedup_geomean"], row["num_prompts"])
        for row in rows
        if row["method"] != row["baseline"]
    }


def test_the_first_sentence_has_speedup_certainty_parity_model_and_machine(made, page):
    result = read_result(made)
    lead = text_of(page.split('<p class="lead">')[1].split("</p>")[0])
    (ours,) = [row for row in result.summary.to_pylist() if row["method"] == OURS]
    assert f"{ours['speedup_geomean']:.2f}x" in lead
    assert "no interval, n = 5" in lead
    assert parity_line(result.summary) == "parity 5/5, logits 5/5"
    assert parity_line(result.summary) in lead
    assert "model" in lead
    assert result.engines[0].removeprefix("engine: ") in lead


def test_the_charts_count_what_the_rows_count(made, page):
    rows = [row for row in rows_of(made) if row["method"] == OURS]
    charts = data_of(page)["charts"]
    exits = charts["exits"]["data"]["values"]
    assert sum(v["drafted"] for v in exits) == sum(row["num_drafted"] for row in rows)
    assert sum(v["accepted"] for v in exits) == sum(row["num_accepted"] for row in rows)
    places = charts["places"]["data"]["values"]
    assert sum(v["accepted"] for v in places) == sum(row["num_accepted"] for row in rows)
    by_place = [0] * 20
    for row in rows:  # by hand: how many tokens of drafts each round gave
        for accepted in "".join("f" if d == max(row["draft_depths"]) else "d" for d in row["draft_depths"])[1:].split(
            "f"
        )[:-1]:
            for place in range(len(accepted)):
                by_place[place] += 1
    assert [v["accepted"] for v in places] == by_place[: len(places)]
    tokens = charts["tokens"]["data"]["values"]
    assert sum(v["rounds"] for v in tokens) == sum(row["num_rounds"] for row in rows)
    time = [v for v in charts["time"]["data"]["values"] if v["of"].endswith(f"/ {OURS}")]
    assert sum(v["ms"] for v in time) == pytest.approx(1000 * sum(row["e2e_s"] for row in rows) / len(rows), rel=1e-4)


def test_what_was_drafted_at_each_place_is_what_was_accepted_or_rejected_there(made, page):
    rows = [row for row in rows_of(made) if row["method"] == OURS]
    places = data_of(page)["charts"]["places"]["data"]["values"]
    wrong = [0] * 20
    for row in rows:
        starts = [at + 1 for at, depth in enumerate(row["draft_depths"]) if depth == max(row["draft_depths"])]
        for draft in row["rejected"]:
            wrong[draft["position"] - starts[draft["round_idx"]]] += 1
    assert sum(wrong) > 0
    for value in places:
        assert value["drafted"] == value["accepted"] + wrong[value["place"] - 1]


def test_the_browser_has_every_sample_with_outputs_depths_and_rejected_drafts(made, page):
    data, samples = data_of(page), samples_of(page)
    index, words = unpacked(data["index"]), unpacked(data["words"])
    assert len(index) == len(samples) == 5
    for entry, sample in zip(index, samples, strict=True):
        rows = {row["method"]: row for row in rows_of(made) if row["sample_id"] == entry[1]}
        assert sample["prompt"] == rows[OURS]["prompt_token_ids"]
        (shown,) = [row for row in sample["rows"] if row["method"] == OURS]
        assert sample["outputs"][shown["output"]] == rows[OURS]["output_token_ids"]
        assert shown["depths"] == rows[OURS]["draft_depths"]
        wanted = [[d["position"], d["token_id"], d["exit"], d["round_idx"]] for d in rows[OURS]["rejected"]]
        assert shown["rejected"] == wanted
        assert (
            "".join(words[str(i)] for i in rows[OURS]["output_token_ids"]).split() == rows[OURS]["output_text"].split()
        )
        assert entry[4] == "exact"


def test_without_the_models_tokenizer_the_stored_text_stands_there(made, page, monkeypatch):
    monkeypatch.setattr(vocabulary, "decoder", lambda run: lambda ids: "other words")  # that of another model
    other = report_page(made).html
    assert not data_of(other)["hasWords"]
    assert data_of(page)["hasWords"]
    assert samples_of(other)[0]["rows"][0]["text"] == rows_of(made)[0]["output_text"]


HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"'`><svg/onload=alert(1)>",
    "\u202eevil\u2066\u200f",
    "\x1b[31mred\x1b]0;title\x07\x00",
    "]]>--><!-- <style>*{display:none}</style>",
    "&lt;b&gt; &#60;script&#62; \\u003cscript>",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_a_model_or_a_data_set_is_markup(run, text):
    def alter(rows: list[Row]) -> None:
        for row in rows:
            row |= {"output_text": text, "reference": text, "category": text, "sample_id": text + row["sample_id"]}

    plant(run, alter, fits=False)
    plan = pq.read_table(run / "plan.parquet")
    ids = pa.array([text + name for name in plan["sample_id"].to_pylist()])
    idx = plan.schema.get_field_index("sample_id")
    pq.write_table(plan.set_column(idx, plan.schema.field(idx), ids), run / "plan.parquet")
    page = report_page(run).html
    assert page.count("<script") == page.count("</script>") == 6
    shown = page.split("<body>")[1].split("<script>")[0]
    assert "<img" not in shown
    assert not re.search("[\x00-\x08\x0b\x0e-\x1f\u202a-\u202e\u2066-\u2069]", shown)
    assert samples_of(page)[0]["reference"] == text


def test_a_line_of_a_megabyte_is_cut_and_says_so(run):
    def alter(rows: list[Row]) -> None:
        rows[0]["reference"] = "x" * 1_000_000

    plant(run, alter, fits=False)
    reference = samples_of(report_page(run).html)[0]["reference"]
    assert reference.startswith("x" * MOST_CHARACTERS + " ... (1,000,000 characters")
    assert len(reference) < MOST_CHARACTERS + 100


def test_half_of_a_surrogate_pair_is_written_as_its_code():
    assert gzip.decompress(base64.b64decode(compressed(["\ud800"]))) == b'["\\ud800"]'


def test_the_page_asks_for_nothing_and_its_policy_allows_its_own_scripts_alone(page):
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy[1]
    shown = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S)
    assert not re.search(r'(src|href)="(?!#|data:)', shown)
    assert not re.search(r" (on\w+|style)=", shown)


def test_a_run_before_version_5_has_a_page(tmp_path):
    golden = Path(__file__).parents[2] / "golden" / "run-0.1.0" / "complete"
    page = report_page(golden).html
    assert {v["drafted"] for v in data_of(page)["charts"]["places"]["data"]["values"]} == {None}
    assert all(row["rejected"] is None for sample in samples_of(page) for row in sample["rows"])


def sweep_folder(made: Path, folder: Path) -> Path:
    rows = read_result(made).summary.to_pylist()
    cells = [row | {"cell": cell} for cell in ("gamma-0.5", "gamma-0.9") for row in rows]
    folder.mkdir(exist_ok=True)
    content = parquet_bytes(pa.Table.from_pylist(cells, schema=SWEEP), {})
    (folder / "sweep.parquet").write_bytes(content)
    return folder


def test_a_sweep_has_a_heat_map_and_a_front(made, tmp_path):
    page = report_page(sweep_folder(made, tmp_path / "sweep")).html
    charts = data_of(page)["charts"]
    assert {v["cell"] for v in charts["heat"]["data"]["values"]} == {"gamma-0.5", "gamma-0.9"}
    assert any(v["on front"] for v in charts["pareto"]["data"]["values"])


def test_report_html_writes_the_page_into_the_run_and_says_where(run, cli, usage_error, tmp_path):
    result = cli("report", run, "--html")
    assert result.exit_code == 0
    assert str(run / "report.html") in result.stdout
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert cli("verify", run).exit_code == 0
    assert cli("report", run, "--html", "--out", tmp_path / "page.html").exit_code == 0
    assert (tmp_path / "page.html").is_file()
    assert "without --html" in usage_error("report", run, "--out", tmp_path / "page.html")
    assert "cannot be written" in usage_error("report", run, "--html", "--out", tmp_path / "no" / "such" / "page.html")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser_nothing_is_said_nothing_runs_over_and_text_is_text(run, made, tmp_path):
    """At the width of a desktop and of a phone; the hostile texts are shown as text."""

    def alter(rows: list[Row]) -> None:
        for row, text in zip(rows, HOSTILE * 3, strict=False):
            row["reference"] = " ".join(HOSTILE) + text + "x" * 5000

    plant(run, alter, fits=False)
    files = [tmp_path / "run.html", tmp_path / "sweep.html"]
    for file, folder in zip(files, (run, sweep_folder(made, tmp_path / "sweep")), strict=True):
        file.write_text(report_page(folder).html, encoding="utf-8")
    with browser() as tab:
        for file in files:
            for width in (1280, 390):
                tab.open(file, width)
                over = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
                assert tab.evaluate(over) == 0, (file, width)
                assert tab.evaluate("document.querySelectorAll('.chart svg').length") == tab.evaluate(
                    "document.querySelectorAll('.chart').length"
                )
                if file == files[0]:
                    shown = tab.evaluate(
                        "new Promise(done => { const look = () => document.querySelector('#detail h3') ?"
                        " done(document.getElementById('detail').textContent) : setTimeout(look, 20); look(); })"
                    )
                    assert "<img src=x onerror=alert(1)>" in shown
                    assert "\u27e8U+202E\u27e9evil" in shown
                    assert "\u27e8U+001B\u27e9[31mred" in shown
        assert [message["params"] for message in tab.messages] == []
