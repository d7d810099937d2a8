"""The page of a run: its figures are the summary's, its samples are the rows', and nothing in it is somebody's markup."""

import base64
import gzip
import hashlib
import json
import re
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from adadecode.page import vocabulary
from adadecode.page.build import report_page
from adadecode.page.samples import MOST_CHARACTERS, compressed
from adadecode.report.summary import parity_line
from adadecode.report.tables import speedup_text
from adadecode.runs.result import read_result
from tests.pages import data_of, text_of
from tests.planting import OURS, VANILLA, W1, Row, edit_table, plant


def unpacked(text: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(text)))


def samples_of(page: str) -> list[dict[str, Any]]:
    blocks = re.findall(r'<script type="text/plain" class="block">(.*?)</script>', page, re.S)
    return [sample for block in blocks for sample in unpacked(block)]


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


def test_a_sweep_has_a_heat_map_and_a_front(sweep):
    page = report_page(sweep).html
    charts = data_of(page)["charts"]
    assert {v["cell"] for v in charts["heat"]["data"]["values"]} == {"gamma-0.5", "gamma-0.9"}
    assert any(v["on front"] for v in charts["pareto"]["data"]["values"])


def test_a_sweep_with_a_cell_whose_parity_is_broken_is_exit_code_3(sweep, tmp_path, cli):
    folder = Path(shutil.copytree(sweep, tmp_path / "sweep"))
    assert cli("report", folder, "--html").exit_code == 0
    seen = []

    def broken(count: int | None) -> int | None:
        seen.append(count)
        return count if count is None or len(seen) > 3 else count - 1

    edit_table(folder / "sweep.parquet", num_parity_exact=broken)
    result = cli("report", folder, "--html")
    assert result.exit_code == 3
    assert result.stderr == "cell gamma-0.5: parity broken on 1 of 5 checked outputs\n"
    assert "not as it should be: 1 of them" in text_of((folder / "report.html").read_text(encoding="utf-8"))


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


def test_a_method_has_one_colour_in_all_charts(page):
    charts = data_of(page)["charts"].values()
    layers = [part.get("encoding", {}).get("color", {}) for spec in charts for part in (spec, *spec.get("layer", []))]
    domains = [tuple(color["scale"]["domain"]) for color in layers if color.get("field") == "method"]
    assert len(domains) >= 3
    assert len(set(domains)) == 1
    assert {OURS, VANILLA, W1} == set(domains[0])


def test_the_chart_library_is_that_of_its_packages_and_brings_its_licences(page):
    vendor = resources.files("adadecode.page") / "vendor"
    lines = [line.split() for line in (vendor / "SHA256SUMS").read_text("utf-8").splitlines()]
    sums = {name: digest for digest, name in lines}
    files = {file.name: file.read_bytes() for file in vendor.iterdir() if file.name.endswith(".js")}
    assert {name: hashlib.sha256(content).hexdigest() for name, content in files.items()} == sums
    told = (vendor / "LICENSES.txt").read_text("utf-8")
    assert all(f"===== {name}" in told for name in sums)
    assert all(part in text_of(page) for part in ("University of Washington", "Mike Bostock", "Esprima"))
    assert "sourceMappingURL" not in page
