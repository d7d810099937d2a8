"""What is compared with what: two runs, or the cells of two sweeps by their names."""

from dataclasses import dataclass
from pathlib import Path

from adadecode.errors import UsageError
from adadecode.runs.listing import runs_below
from adadecode.runs.storage import join


@dataclass(frozen=True)
class Matched:
    """The pairs of locations to compare, by the cell's name, None for two runs; and a line for cells without another."""

    pairs: list[tuple[str | None, str, str]]
    lines: list[str]


def match(a: str | Path, b: str | Path) -> Matched:
    """Two runs as they are, two folders of runs cell by cell.

    Raises UsageError for a run beside a sweep and for sweeps that share no name, RunFolderError where there is no run.
    """
    cells = [None if (runs := runs_below(location)) is None else [run.name for run in runs] for location in (a, b)]
    if cells[0] is None and cells[1] is None:
        return Matched([(None, str(a), str(b))], [])
    if cells[0] is None or cells[1] is None:
        sweep, run = (a, b) if cells[1] is None else (b, a)
        raise UsageError(f"{str(sweep)!r} holds runs and {str(run)!r} is one: give two runs, or two sweeps")
    both = [name for name in cells[0] if name in cells[1]]
    lines = [
        f"not compared: {len(alone)} of {len(of)} cells only in {side}, first {alone[0]}"
        for side, of, others in (("A", cells[0], cells[1]), ("B", cells[1], cells[0]))
        if (alone := [name for name in of if name not in others])
    ]
    if not both:
        told = "; ".join(line.removeprefix("not compared: ") for line in lines)
        raise UsageError(f"{str(a)!r} and {str(b)!r} cannot be paired by the names of their cells: {told}")
    return Matched([(name, join(a, name), join(b, name)) for name in both], lines)
