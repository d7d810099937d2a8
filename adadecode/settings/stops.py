"""Settings of what ends an output beside its end-of-sequence token and its length."""

from collections.abc import Mapping
from typing import Annotated, Any, cast

from pydantic import AfterValidator, Field

from adadecode.printable import UNDECODED
from adadecode.settings.fields import Flag, Settings


def usable(strings: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """`strings`; raises ValueError unless each can end an output, and some cannot end every one."""
    if strings is None:
        return None
    if not strings:
        raise ValueError("give at least one, or leave it out")
    if "" in strings:
        raise ValueError("an empty stop string would end every output at once: leave it out, or give its text")
    if any(UNDECODED in string for string in strings):
        raise ValueError(f"{UNDECODED} stands for bytes that are no character, which no text ends in: leave it out")
    return strings


class StopSettings(Settings):
    """Which texts end an output."""

    stop_strings: Annotated[tuple[str, ...] | None, AfterValidator(usable), Flag(unset="none", is_verbatim=True)] = (
        Field(default=None, description="An output ends where its text has this; repeat for more.")
    )


# As all runs were before there were these settings, and `task_stops`.
STOPPED_BEFORE: dict[str, object] = {"stop_strings": None, "task_stops": False}


def own_stops(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The stop strings in the `config` of a run.json of any version, those of its task left out."""
    given = config.get("stop_strings")
    parts = cast("list[object]", given) if isinstance(given, list) else []
    return tuple(part for part in parts if isinstance(part, str))
