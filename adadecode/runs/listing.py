"""The runs below a folder, each with what its own tables say of it: a line per task, nothing recomputed."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich import box
from rich.table import Table

from adadecode.errors import RunFolderError
from adadecode.files import from_json
from adadecode.methods import METHODS, REFERENCE, baselines
from adadecode.report.cells import ABSENT, cell, fraction_text
from adadecode.report.schema import SUMMARY, VERIFY
from adadecode.report.summary import parity_line, whole_tasks
from adadecode.report.tables import speedup_text
from adadecode.runs.folder_checks import table_facts
from adadecode.runs.lease import is_driven
from adadecode.runs.run_file import RUN_FILE, run_in
from adadecode.runs.storage import Storage, join, open_storage
from adadecode.runs.table_checks import published_lines
from adadecode.runs.typed import typed_table

COLUMNS = ("run", "task", "status", "samples", "method", "speedup\n(95 % CI)", "parity")
NEEDED = ("task", "method", "n", "num_errors")  # columns of a summary of any version
HEADLINE_ORDER = ("reference", "exact", "reported", "lossy")  # what a method owes: which of several stands for a run
CAPTION = "as stored when each run ended; `adadecode verify RUN` recomputes a run's tables and judges them"


@dataclass(frozen=True)
class ListedRun:
    """One run: its folder below the one that was asked for, its run.json, and its summary, None where it has none.

    Of one whose run.json cannot be read nothing is known: it is empty then.
    """

    name: str
    run: dict[str, Any]
    summary: pa.Table | None


def runs_below(location: str | Path) -> list[ListedRun] | None:
    """The runs at any depth below `location` by name; None where it is a run itself. Raises RunFolderError without any."""
    storage = open_storage(location)
    names = [name for name in storage.list("") if name.rpartition("/")[2] == RUN_FILE]
    if RUN_FILE in names:
        return None
    found = [listed for name in names if (listed := _listed(storage, name.rpartition("/")[0])) is not None]
    if not found:
        raise RunFolderError(
            f"{str(location)!r} is not a run folder: it has no readable {RUN_FILE}, nor has any below it"
        )
    return found


def _listed(storage: Storage, folder: str) -> ListedRun | None:
    """The run in `folder`; None where its run.json is gone by now or another thing."""
    try:
        run = _run(storage.read(f"{folder}/{RUN_FILE}"))
    except FileNotFoundError:
        return None
    except RunFolderError:
        return ListedRun(folder, {}, None)
    if run is None:
        return None
    summary = None
    with contextlib.suppress(RunFolderError):
        run = _as_driven(run, join(storage.location, folder))
    with contextlib.suppress(RunFolderError):
        summary = stored_summary(storage, f"{folder}/")
    return ListedRun(folder, run, summary)


def stored_summary(storage: Storage, folder: str = "") -> pa.Table | None:
    """The SUMMARY table that the run in `folder` keeps, null in columns its version lacks; None where it has none."""
    optional = pa.schema([field.with_nullable(field.name not in NEEDED) for field in SUMMARY])
    try:
        return typed_table(storage.read(f"{folder}summary.parquet"), optional).select(SUMMARY.names)
    except (FileNotFoundError, ValueError):
        return None


def read_published(location: str | Path) -> tuple[pa.Table, list[str]] | None:
    """The SUMMARY table of a run that was published without plan and rows, and what contradicts it; None for any other."""
    storage = open_storage(location)
    has_rows = any(name == "plan.parquet" or name.startswith(("commits/", "samples/")) for name in storage.list(""))
    summary = None if has_rows else stored_summary(storage)
    if summary is None:
        return None
    lines = [f"fingerprint: {line}" for line in table_facts(storage, run_in(storage))]
    try:
        lines += published_lines(summary, typed_table(storage.read("verify.parquet"), VERIFY))
    except FileNotFoundError:
        pass
    except ValueError as error:
        lines.append(f"verify.parquet: it cannot be read ({error})")
    return summary, lines


def listing_table(runs: list[ListedRun]) -> Table:
    """A rich table with a line per run and task; `-` stands for what its tables do not say."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, caption=CAPTION, caption_justify="left")
    for idx, name in enumerate(COLUMNS):
        table.add_column(name, justify="left" if idx < 3 else "right", overflow="fold")
    for listed in runs:
        for idx, cells in enumerate(_lines(listed)):
            table.add_row(*map(cell, ("" if idx else listed.name, *cells)))
    return table


def _lines(listed: ListedRun) -> Iterator[tuple[str, ...]]:
    """Task, status, samples, method, its speedup and the parity of each task of a run."""
    config = listed.run.get("config")
    config = config if isinstance(config, dict) else {}
    status, repeats = str(listed.run.get("status", ABSENT)), config.get("repeats", config.get("passes"))
    rows = [] if listed.summary is None else whole_tasks(listed.summary).to_pylist()
    if listed.summary is None or not rows:
        yield (str(config.get("task", ABSENT)), status, *[ABSENT] * 4)
        return
    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = {row["method"]: row for row in rows if row["task"] == task}
        others = [row for name, row in of_task.items() if name not in (*baselines(), row["baseline"])]
        shown = min(others, key=_headline_rank, default=None)
        first = of_task.get(REFERENCE) or next(iter(of_task.values()))
        num_samples = (first["n"] + first["num_errors"]) // (repeats if isinstance(repeats, int) and repeats > 0 else 1)
        parity = parity_line(listed.summary.filter(pc.equal(listed.summary["task"], task)))
        if shown is not None and shown["method"] not in METHODS:  # a server, which owes no vanilla anything
            parity = fraction_text(shown["num_parity_exact"], shown["num_parity_checked"])
        headline = (ABSENT, ABSENT) if shown is None else (_label(shown["method"]), speedup_text(shown))
        yield (task, status, str(num_samples), *headline, parity.removeprefix("parity "))


def _label(name: str) -> str:
    """A method's name, or a server's, with a mark where it is lossy."""
    return f"{name} (lossy)" if name in METHODS and METHODS[name].is_lossy else name


def _headline_rank(row: dict[str, Any]) -> int:
    """The rank of a SUMMARY row among those of a task: what owes vanilla's output stands for it before what is lossy."""
    method = METHODS.get(row["method"])
    return 0 if method is None else HEADLINE_ORDER.index(method.owes)


def _as_driven(run: dict[str, Any], location: str) -> dict[str, Any]:
    """A run.json whose status is `interrupted` where it says `running` and no driver is alive."""
    is_dead = run.get("status") == "running" and not is_driven(open_storage(location))
    return run | {"status": "interrupted"} if is_dead else run


def _run(content: bytes) -> dict[str, Any] | None:
    """A run.json; None where the file of that name is another thing."""
    try:
        run = from_json(content)
    except ValueError:
        return None
    return run if isinstance(run, dict) and "fingerprint" in run and "run_id" in run else None
