"""A chart, and the parts of Vega-Lite specifications that charts share."""

from collections.abc import Iterator
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


def same_colors(charts: list[Chart]) -> list[Chart]:
    """`charts`, whose specifications are changed: a method, or whatever has a colour, has the same one in all of them."""
    colors = [(color, chart.spec["data"]["values"]) for chart in charts for color in _colors(chart.spec)]
    domains: dict[str, dict[Any, None]] = {}
    for color, values in colors:
        domains.setdefault(color["field"], {}).update((value[color["field"]], None) for value in values)
    for color, _ in colors:
        color["scale"] = {"domain": list(domains[color["field"]])}
    return charts


def _colors(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for part in (spec, *spec.get("layer", ())):
        color = part.get("encoding", {}).get("color", {})
        if color.get("type") == "nominal":
            yield color


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis with a title."""
    return {"title": title, **more}
