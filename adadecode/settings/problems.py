"""What is wrong with a setting, as one line: where it stands, its value, what it may be."""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import cast

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from adadecode.printable import printable, without_password
from adadecode.settings.fields import Settings, flag_name
from adadecode.settings.files import quoted
from adadecode.settings.groups import DecodeSettings

LINE = re.compile("(.*) line ([0-9]+)", re.DOTALL)
FLAG = re.compile("--[a-z][a-z0-9-]*")
MAX_SHOWN_LEN = 80  # of a bad value, in characters


def unknown_line(name: str, place: str | None, names: Iterable[str]) -> str:
    """The line about a setting that there is not, with the one that was probably meant."""
    close = difflib.get_close_matches(str(name).lower().replace("-", "_"), sorted(names), n=1, cutoff=0.6)
    remedy = f"did you mean `{close[0]}`?" if close else "`--help` lists them as flags, with - for _"
    remedy = "it is the flag --out only" if name == "out" else remedy
    return f"{'' if place is None else f'{place}: '}there is no setting {quoted(str(name))}; {remedy}"


def bad_values_line(kind: type[Settings], error: ValidationError, places: Mapping[str, str | None]) -> str:
    """What is wrong with each setting; `places` has file and line of those that stand in one."""
    fields = dict(kind.model_fields) | (dict(DecodeSettings.model_fields) if "decode" in kind.model_fields else {})
    lines: dict[str, str] = {}  # the first about each setting: one that may be of two types has a problem with both
    for problem in error.errors():
        name = next((str(part) for part in reversed(problem["loc"]) if part in fields and part != "decode"), None)
        message = problem["msg"].removeprefix("Value error, ")
        if name is None:
            lines.setdefault(message, f"{_places_of(message, fields, places)}: {message}")
        else:
            place = places.get(name)
            where = flag_name(name, fields[name]) if place is None else f"{place}: {name}"
            value = "" if problem["type"] == "missing" else f" {shown_value(problem['input'])}"
            lines.setdefault(name, f"{where}{value}: {message}")
    return printable("; ".join(lines.values()))  # a message may quote a file's text as it stands


def _places_of(message: str, fields: Mapping[str, FieldInfo], places: Mapping[str, str | None]) -> str:
    """Where the settings stand whose flags `message` names: `FILE line 2, line 5`, or `settings` without a file."""
    flags = {flag_name(name, field): name for name, field in fields.items()}
    named = [flags[flag] for flag in dict.fromkeys(FLAG.findall(message)) if flag in flags]
    found = [place for name in named if (place := places.get(name)) is not None]
    lines = sorted({int(line[2]) for place in found if (line := LINE.fullmatch(place))})
    file = LINE.sub(r"\1", found[0]) if found else "settings"
    return f"{file} {', '.join(f'line {line}' for line in lines)}".rstrip()


def shown_value(value: object) -> str:
    """A bad value as a person would type it: a list with commas; of what is nested only what it is."""
    if isinstance(value, list | tuple):
        parts = cast("list[object] | tuple[object, ...]", value)
        is_flat = all(isinstance(part, str | int | float | None) for part in parts)
        text = ",".join(map(str, parts)) if is_flat else "a list"
    else:
        text = "a mapping" if isinstance(value, dict) else "null" if value is None else without_password(repr(value))
    return text if len(text) <= MAX_SHOWN_LEN else text[:MAX_SHOWN_LEN] + " ..."
