"""The keys of a JSON document at every depth, to compare what is written today with what was written before."""

from typing import Any


def key_paths(value: Any, by_name: frozenset[str], path: str = "") -> set[str]:
    """Every key as `a.b.c`; the objects at the paths `by_name` map names to values, so their keys are written `*`."""
    if isinstance(value, list):
        return set().union(*(key_paths(item, by_name, f"{path}[]") for item in value))
    if not isinstance(value, dict):
        return set()
    found = set()
    for key, inner in value.items():
        at = f"{path}.{'*' if path in by_name else key}".lstrip(".")
        found |= {at} | key_paths(inner, by_name, at)
    return found
