"""Heads that were made for another model's weights, as every table and page tells of them."""

from collections.abc import Mapping
from typing import Any

# What is stored of them, by task, and their names in a line
FOREIGN = {"foreign_heads": "foreign heads", "foreign_medusa_heads": "foreign Medusa heads"}


def foreign_text(facts: Mapping[str, Any]) -> str | None:
    """What to tell of heads that are foreign, by what is stored of a worker or a measurement; None where none are."""
    told = []
    for name, what in FOREIGN.items():
        if isinstance(made_for := facts.get(name), dict) and made_for:
            weights = ", ".join(sorted({str(value) for value in made_for.values()}))
            told.append(f"{what} made for weights {weights}, not {facts.get('model_hash')}")
    return "; ".join(told) or None
