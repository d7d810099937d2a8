"""From what was asked for to its page: one run, a sweep, or several runs beside each other."""

from pathlib import Path

from adadecode.certify.result import is_certification
from adadecode.errors import UsageError
from adadecode.page.layout import Page
from adadecode.page.run import run_page
from adadecode.page.runs import MOST_RUNS, runs_page
from adadecode.page.sweep import SWEEP_FILE, sweep_page
from adadecode.runs.folder import read_run
from adadecode.runs.listing import runs_below
from adadecode.runs.storage import join, open_storage


def report_page(*locations: str | Path) -> Page:
    """The page of the run or sweep at the only one of `locations`, or of the runs at several; writes nothing.

    A folder that holds runs and is no sweep stands for them. Raises RunFolderError where there is no run, UsageError for
    a certification, for a sweep or a folder among several, and for more than MOST_RUNS.
    """
    if len(locations) == 1:
        (location,) = locations
        if (content := _sweep_file(location)) is not None:
            return sweep_page(str(location), content)
        below = runs_below(location)
        if below is None:
            return run_page(_no_certification(location))
        runs = [_no_certification(join(location, listed.name)) for listed in below]
    else:
        runs = list(map(_run, locations))
    if len(runs) > MOST_RUNS:
        raise UsageError(f"{len(runs)} runs --html: a page shows at most {MOST_RUNS} beside each other; name fewer")
    return runs_page(runs)


def _run(location: str | Path) -> str:
    """`location`, where one run is of which a page can be made."""
    if _sweep_file(location) is not None or runs_below(location) is not None:
        raise UsageError(
            f"{str(location)!r} holds runs and is none: beside others a page shows single runs; name those"
        )
    return _no_certification(location)


def _no_certification(location: str | Path) -> str:
    if is_certification(read_run(location)):
        raise UsageError(
            f"{str(location)!r} --html: a page is of runs or a sweep, and this is a certification; drop --html"
        )
    return str(location)


def _sweep_file(location: str | Path) -> bytes | None:
    try:
        return open_storage(location).read(SWEEP_FILE)
    except FileNotFoundError:
        return None
