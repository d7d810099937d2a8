"""The charts of a sweep."""

from collections.abc import Iterator, Sequence

from adadecode.methods import baselines
from adadecode.page.chart import Chart, axis, color_by, name_of, names_axis, spec_of, tall
from adadecode.page.charts import Row


def sweep_charts(rows: Sequence[Row]) -> Iterator[Chart]:
    """The charts of SWEEP rows: a heat map of speedups over cells and tasks, and speed against time to first token."""
    told = [row for row in rows if row["category"] is None and row["method"] != row["baseline"]]
    told = [row for row in told if row["speedup_geomean"] is not None]
    if told:
        yield _heat([row for row in told if row["method"] not in baselines()] or told)
    points = [
        (row, row["ttft_p50_s"], row["tokens_per_s"]) for row in told if row["ttft_p50_s"] and row["tokens_per_s"]
    ]
    if points:
        yield _pareto(points)


def _heat(told: Sequence[Row]) -> Chart:
    values = [
        {"cell": row["cell"], "of": name_of(row["task"], row["method"]), "speedup": row["speedup_geomean"]}
        for row in told
    ]
    y = {"field": "cell", "type": "nominal", "sort": None, "axis": names_axis()}
    upright = len({value["of"] for value in values}) <= 2
    names = {"title": None, "labelLimit": 160, "orient": "top", "labelAngle": 0 if upright else -40}
    x = {"field": "of", "type": "nominal", "sort": None, "axis": names}
    fill = {"field": "speedup", "type": "quantitative", "scale": {"scheme": "viridis"}, "legend": None}
    speedups = [row["speedup_geomean"] for row in told]
    middle = (min(speedups) + max(speedups)) / 2  # viridis is dark below it
    ink = {"condition": {"test": f"datum.speedup > {middle}", "value": "black"}, "value": "white"}
    figure = {"text": {"field": "speedup", "type": "quantitative", "format": ".2f"}, "color": ink}
    spec = spec_of(
        values,
        tall(values, "cell", 26),
        encoding={"y": y, "x": x},
        layer=[
            {"mark": {"type": "rect", "tooltip": True}, "encoding": {"color": fill}},
            {"mark": {"type": "text", "fontWeight": "bold", "fontSize": 12}, "encoding": figure},
        ],
    )
    return Chart(
        "heat",
        "Speedup by cell",
        "Speedup of each cell of the sweep on each task, over that cell's faster vanilla.",
        spec,
        ("cell", "task and method", "speedup"),
        [tuple(value.values()) for value in values],
    )


def _pareto(points: list[tuple[Row, float, float]]) -> Chart:
    values = [
        {
            "cell": row["cell"],
            "task": row["task"],
            "of": name_of(row["task"], row["method"]),
            "ms": 1000 * ttft,
            "speed": speed,
            "on front": not any(
                other["task"] == row["task"] and a <= ttft and b >= speed and (a, b) != (ttft, speed)
                for other, a, b in points
            ),
        }
        for row, ttft, speed in points
    ]
    x = {
        "field": "ms",
        "type": "quantitative",
        "scale": {"zero": False},
        "axis": axis("median time to first token, ms"),
    }
    y = {"field": "speed", "type": "quantitative", "scale": {"zero": False}, "axis": axis("tokens/s")}
    front = {
        "transform": [{"filter": "datum['on front']"}],
        "mark": {"type": "line", "interpolate": "step-after", "strokeDash": [4, 3]},
        "encoding": {"color": {"value": "currentColor"}, "detail": {"field": "task"}},
    }
    spec = spec_of(
        values,
        280,
        encoding={"x": x, "y": y, "color": color_by("of")},
        layer=[
            front,
            {
                "mark": {"type": "point", "filled": True, "size": 80, "tooltip": True},
                "encoding": {"opacity": {"condition": {"test": "datum['on front']", "value": 1}, "value": 0.35}},
            },
        ],
    )
    return Chart(
        "pareto",
        "Speed against time to first token",
        "Each cell; on the line are those that no other cell of the task beats in both.",
        spec,
        ("cell", "task and method", "first token, ms", "tokens/s", "on the front"),
        [(v["cell"], v["of"], v["ms"], v["speed"], "yes" if v["on front"] else "no") for v in values],
    )
