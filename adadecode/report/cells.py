"""What stands in one cell of a table: numbers, fractions and durations, or the sign of what was not measured."""

from rich.text import Text

from adadecode.printable import printable

ABSENT = "-"


def cell(text: str) -> Text:
    """`text` as it stands, on one line: no part of it is markup, an escape code or a line of its own."""
    return Text(printable(text))


def number_text(value: float | None, form: str, scale: float = 1) -> str:
    """`value * scale` in `form`, or the sign of what was not measured."""
    return ABSENT if value is None else format(value * scale, form)


def fraction_text(part: int | None, whole: int | None) -> str:
    """`part/whole`, or the sign of what was not measured."""
    return ABSENT if whole is None else f"{part}/{whole}"


def p_text(p_value: float) -> str:
    """`p = 0.042`, or that it is smaller than three digits can say."""
    return "p < 0.001" if p_value < 0.0005 else f"p = {p_value:.3f}"


def duration_text(seconds: float) -> str:
    """`3 s`, `1m40s`, `2h05m`: two units, rounded to whole seconds."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, hours = whole // 60, whole // 3600
    return f"{minutes}m{whole % 60:02d}s" if whole < 3600 else f"{hours}h{minutes % 60:02d}m"
