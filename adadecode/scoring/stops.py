"""Where a text ends by the stop strings in it."""

from collections.abc import Sequence


def until(text: str, stops: Sequence[str]) -> str:
    """`text` up to the first of `stops` in it."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]
