"""The dashboard and the alarms under cluster/grafana: their form, and that they ask for metrics that a run exports."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "cluster" / "grafana"
METRIC = re.compile(r"\bray_adadecode_\w+")
DURATION = r"\d+[smhd]"


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return json.loads((GRAFANA / "adadecode.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def rules() -> list[dict[str, Any]]:
    found = yaml.safe_load((GRAFANA / "rules.yaml").read_text(encoding="utf-8"))
    assert found.keys() == {"groups"}
    assert [group.keys() for group in found["groups"]] == [{"name", "rules"}]
    return found["groups"][0]["rules"]


def queries(dashboard: dict[str, Any]) -> Iterator[str]:
    return (target["expr"] for panel in dashboard["panels"] for target in panel["targets"])


def metrics_in_docs() -> set[str]:
    """Those of the table in docs/operations.md, which test_metrics.py compares with what a run exports."""
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `ray_adadecode_")]
    return {name for row in rows for name in METRIC.findall(row.split("|")[1])}


def test_the_dashboard_has_what_grafana_asks_of_one(dashboard):
    assert {"uid", "title", "panels", "templating", "time", "schemaVersion", "version"} <= dashboard.keys()
    assert re.fullmatch(r"[\w-]{1,40}", dashboard["uid"])
    assert "id" not in dashboard, "Grafana gives it one"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in dashboard["panels"]:
        assert {"type", "title", "gridPos", "targets", "fieldConfig"} <= panel.keys()
        assert panel["type"] in ("stat", "timeseries")
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0


def test_panels_lie_side_by_side_and_within_the_24_columns(dashboard):
    taken = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = set(itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])))
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_query_is_of_the_chosen_runs_and_of_the_chosen_prometheus(dashboard):
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == ["datasource", "run"]
    for panel in dashboard["panels"]:
        for asker in (panel, *panel["targets"]):
            assert asker["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for query in queries(dashboard):
        assert query.count('{run=~"$run"}') == len(METRIC.findall(query)) > 0
        assert query.count("(") == query.count(")")
        assert "by (run)" in query, "two nodes may report one run: the driver's, and that of a driver before it"


def test_counters_are_asked_for_their_rate_and_nothing_else_is(dashboard, rules):
    for query in (*queries(dashboard), *(rule["expr"] for rule in rules)):
        for found in METRIC.finditer(query):
            before = query[: found.start()]
            assert found[0].endswith("_total") == before.endswith(("rate(", "increase(")), query


def test_throughput_acceptance_parity_errors_workers_and_lease_are_shown(dashboard):
    shown = {name for query in queries(dashboard) for name in METRIC.findall(query)}
    assert shown == metrics_in_docs(), "every metric there is has a panel, and no panel asks for another"


def test_every_alarm_has_a_query_of_our_metrics_and_says_what_it_means(rules):
    names = [rule["alert"] for rule in rules]
    assert len(set(names)) == len(names)
    assert {"AdaDecodeStalled", "AdaDecodeMismatch"} <= set(names)
    for rule in rules:
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["annotations"].keys() == {"summary", "description"}
        assert "{{ $labels.run }}" in rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert re.fullmatch(DURATION, rule.get("for", "1m"))
        assert set(METRIC.findall(rule["expr"])) <= metrics_in_docs()
        assert METRIC.search(rule["expr"])
        assert rule["expr"].count("(") == rule["expr"].count(")")


def test_a_run_that_ended_well_raises_no_alarm(rules):
    """Its last figures are scraped once more: samples that were missing while it went are no death of its driver."""
    of_gone = [rule["expr"] for rule in rules if "unless" in rule["expr"]]
    assert len(of_gone) == 1
    for expression in (rule["expr"] for rule in rules):
        assert "offset" not in expression
    missing, _, there = of_gone[0].partition(" unless ")
    assert missing.count("last_over_time(") == len(METRIC.findall(missing)) == 2
    assert METRIC.findall(there) == ["ray_adadecode_samples_done"]
