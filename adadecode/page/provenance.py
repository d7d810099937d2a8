"""Where a page's runs come from: the exact commands, settings and versions, and in what several runs differ."""

from collections.abc import Mapping, Sequence
from typing import Any

from adadecode.page.content import definitions, esc, table
from adadecode.report.tables import provenance_lines
from adadecode.runs.starts import start_lines, starts_of

Run = Mapping[str, Any]  # a run.json


def provenance(run: Run) -> str:
    """The commands that made a run, as they were typed, when and where each was given, and what else run.json says."""
    facts = [line.partition(": ") for line in provenance_lines(dict(run))]
    starts = [line.partition(": ") for line in start_lines(dict(run))]
    return commands(run) + definitions([(name, value) for name, _, value in (*starts, *facts)], "facts")


def commands(run: Run) -> str:
    """Each command that was given for a run once, in a box from which it can be copied."""
    typed = [start["command"] for start in starts_of(dict(run)) if isinstance(start.get("command"), str)]
    if not typed:
        return "<p>Its command is not stored.</p>"
    return "".join(
        f'<pre class="text" tabindex="0" role="group" aria-label="Command">{esc(command)}</pre>'
        for command in dict.fromkeys(typed)
    )


def differences(names: Sequence[str], found: Sequence[tuple[str, ...]]) -> str:
    """A table of everything in which runs differ by name, a column for each of `names`."""
    if not found:
        return "<p>No difference in settings, hashes, versions or machines.</p>"
    columns = ("what", *names)
    return table(columns, found, "What differs between the runs, by its name in run.json", words=columns)


def difference_names(found: Sequence[tuple[str, ...]], most: int = 4) -> str:
    """What differs, in a few words of a sentence, escaped."""
    if not found:
        return "nothing differs in settings, hashes, versions or machines"
    shown = ", ".join(esc(line[0]) for line in found[:most])
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return f"what differs: {shown}{more}"
