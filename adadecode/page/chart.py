"""A chart, and the parts of Vega-Lite specifications that charts share."""

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


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis with a title."""
    return {"title": title, **more}
