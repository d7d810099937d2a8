"""The starts of a run, the first and each resume, as run.json has them: when, by which command, code and placement."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from adadecode.printable import without_password
from adadecode.provenance import code_hash, git_sha
from adadecode.settings import PLACEMENT, EvalConfig
from adadecode.version import __version__

UNTOLD = {"gpus_per_worker": 1}  # what need not be said
MAX_SHOWN = 3


def new_start(config: EvalConfig, command: str | None) -> dict[str, Any]:
    """The start of now; `command` is what a person would type for it, None where a program called."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": None if command is None else without_password(command),
        "adadecode": __version__,
        "code_hash": code_hash(),
        "git_sha": git_sha(),
        "placement": config.model_dump(mode="json", include=set(PLACEMENT)),
    }


def starts_of(run: dict[str, Any]) -> list[dict[str, Any]]:
    """The starts in `run`, a run.json; of an older version's, which lists none, what is known of the first.

    What is no start, as somebody may have put there, is left out.
    """
    if "starts" in run:
        starts = run["starts"]
        return [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []
    made, config = (part if isinstance(part := run.get(name), dict) else {} for name in ("provenance", "config"))
    known = {name: made[name] for name in ("adadecode", "git_sha") if name in made}
    placement = {name: config[name] for name in PLACEMENT if name in config}
    return [{"at": run.get("created_at"), "command": None, **known, "placement": placement}]


def start_lines(run: dict[str, Any]) -> list[str]:
    """A line for the first start and for the last ones: settings of placement are those of a start, not of the run."""
    lines = list(_lines(starts_of(run)))
    num_left_out = len(lines) - MAX_SHOWN
    return lines if num_left_out <= 0 else [lines[0], f"and {num_left_out} more starts", *lines[1 - MAX_SHOWN :]]


def _lines(starts: list[dict[str, Any]]) -> Iterator[str]:
    for idx, start in enumerate(starts):
        command = start.get("command") or "command not stored"
        settings = start["placement"] if isinstance(start.get("placement"), dict) else {}
        told = [name for name in PLACEMENT if settings.get(name) not in (None, UNTOLD.get(name))]
        placement = ", ".join(f"{name}={settings[name]}" for name in told)
        code, revision = start.get("code_hash"), start.get("git_sha")
        made_by = [f"adadecode {start.get('adadecode', 'unknown')}"]
        made_by += [f"code {code}"] if code else [f"revision {str(revision)[:12]}"] if revision else []
        yield f"start {idx + 1}, {start.get('at')}: {command} ({placement}; {', '.join(made_by)})"
