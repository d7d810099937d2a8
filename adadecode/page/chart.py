"""A chart, and the parts of Vega-Lite specifications that charts share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"


@dataclass(frozen=True)
class Chart:
    """A specification, what is said of it, and the rows of figures under `columns` that it draws."""

    key: str
    title: str
    says: str
    spec: dict[str, Any]
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


def spec_of(values: list[dict[str, Any]], height: int, **parts: Any) -> dict[str, Any]:
    """A specification of a chart over `values`, as wide as its place and `height` pixels high."""
    return {"$schema": SCHEMA, "data": {"values": values}, "width": "container", "height": height, **parts}


def tall(values: list[dict[str, Any]], field: str, step: int) -> int:
    """Pixels for a band of `step` for each value of `field`; a height in steps does not fit a width in the container's."""
    return step * len({value[field] for value in values})


def name_of(task: str, method: str) -> str:
    """How charts name a method on a task."""
    return f"{task} / {method}"


def color_by(field: str = "method") -> dict[str, Any]:
    """A colour for each value of `field`, with a legend above."""
    return {"field": field, "type": "nominal", "legend": {"orient": "top", "title": None, "columns": 2}}


def give_same_colors(charts: Sequence[Chart]) -> None:
    """Changes the specifications of `charts`: a method, or whatever has a colour, has the same one in all of them."""
    colors = [(color, chart.spec["data"]["values"]) for chart in charts for color in _colors(chart.spec)]
    domains: dict[str, dict[Any, None]] = {}
    for color, values in colors:
        domains.setdefault(color["field"], {}).update((value[color["field"]], None) for value in values)
    for color, _ in colors:
        color["scale"] = {"domain": list(domains[color["field"]])}


def _colors(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for part in (spec, *spec.get("layer", ())):
        color = part.get("encoding", {}).get("color", {})
        if color.get("type") == "nominal":
            yield color


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis with a title."""
    return {"title": title, **more}


def intervals(
    values: list[dict[str, Any]], field: str, x_title: str, *, color: str = "method", beside: str | None = None
) -> dict[str, Any]:
    """A chart of points `field` with lines from `low` to `high`, one below another by `of`, and a dashed line at 1.

    Those of one `of` stand beside each other by the field `beside`, which has a legend then.
    """
    y: dict[str, Any] = {"y": {"field": "of", "type": "nominal", "sort": None, "axis": names_axis()}}
    if beside is not None:
        y["yOffset"] = {"field": beside, "type": "nominal", "sort": None}
    paint = color_by(color) | ({} if beside is not None else {"legend": None})
    x = {"field": field, "type": "quantitative", "scale": {"zero": False}, "axis": axis(x_title, format=".3~f")}
    at_one = {"data": {"values": [{"one": 1}]}, "mark": {"type": "rule", "strokeDash": [4, 4], "color": "currentColor"}}
    step = 26 if beside is None else max(26, 14 * len({value[beside] for value in values}))
    return spec_of(
        values,
        tall(values, "of", step),
        layer=[
            at_one | {"encoding": {"x": {"field": "one", "type": "quantitative"}}},
            {
                "transform": [{"filter": "isValid(datum.low)"}],
                "mark": {"type": "rule", "strokeWidth": 3},
                "encoding": {**y, "x": x | {"field": "low"}, "x2": {"field": "high"}, "color": paint},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 90, "tooltip": True},
                "encoding": {**y, "x": x, "color": paint},
            },
        ],
    )


def bars_beside(
    values: list[dict[str, Any]], field: str, x_title: str, beside: str, step: int = 18, **x_axis: Any
) -> dict[str, Any]:
    """A chart of bars `field`, one below another by `of`, and within it by the field `beside`, which colours them."""
    return spec_of(
        values,
        tall(values, "of", max(26, step * len({value[beside] for value in values}))),
        mark={"type": "bar", "tooltip": True},
        encoding={
            "y": {"field": "of", "type": "nominal", "sort": None, "axis": names_axis()},
            "yOffset": {"field": beside, "type": "nominal", "sort": None},
            "x": {"field": field, "type": "quantitative", "axis": axis(x_title, **x_axis)},
            "color": color_by(beside),
        },
    )


def names_axis() -> dict[str, Any]:
    """The axis of a chart whose rows are named."""
    return {"title": None, "labelLimit": 150}
