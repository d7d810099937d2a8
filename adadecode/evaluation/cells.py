"""The cells of a sweep: from a grid of flags, or from a file that names them, lists values for settings, or does both."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adadecode.errors import UsageError
from adadecode.settings import EvalConfig, FileSettings, checked_decode, given_flags, read_settings, settings_of
from adadecode.settings.reading import CELLS, GRID

SWEEP_FILE = "sweep.parquet"
CELL_NAME = re.compile(r"[a-z0-9._-]+")
MAX_NAME_LEN = 200  # a folder's name has 255 bytes at most
MOST_CELLS = 1000  # more of them are a slip until somebody says that they are meant
MAX_CELLS = 100_000  # and of these nobody waits for the end


@dataclass(frozen=True)
class Cell:
    """One evaluation of a sweep; `name` is its folder's."""

    name: str
    config: EvalConfig


@dataclass(frozen=True)
class Grid:
    """The values of the grid flags; an empty tuple stands for a flag that was not given."""

    tasks: tuple[str, ...] = ()
    gammas: tuple[float, ...] = ()
    exit_sets: tuple[tuple[int, ...], ...] = ()
    max_drafts: tuple[int, ...] = ()

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        """The values of each setting that varies."""
        every = {"task": self.tasks, "gamma": self.gammas, "exits": self.exit_sets, "max_drafts": self.max_drafts}
        return {name: values for name, values in every.items() if values}

    def points(self) -> Iterator[dict[str, Any]]:
        """The settings of every combination."""
        return (dict(zip(self.axes, values, strict=True)) for values in itertools.product(*self.axes.values()))


def plan_cells(config_file: Path | None, grid: Grid, flags: dict[str, Any], *, are_meant: bool = False) -> list[Cell]:
    """The cells of the file's `cells` and `grid`, else of `grid`; `flags` that are not None win over file and cells.

    Raises UsageError for the first cell that has a bad name or setting, for a file whose `cells` or `grid` are none, for a
    grid of flags beside them, for two cells of one name, and before any is made for too many, unless they `are_meant`.
    """
    values = FileSettings({}, {}) if config_file is None else read_settings(config_file)
    own = [part for part in (CELLS, GRID) if part in values]
    if own and grid.axes:
        named = "names its cells" if CELLS in own else "has a grid of its own"
        raise UsageError(f"{config_file} {named}: drop --tasks, --gammas, --exits and --max-drafts, or its `{own[0]}`")
    if not own:
        _check_number(math.prod(map(len, grid.axes.values())), are_meant)
        configs = [settings_of(EvalConfig, values, given_flags(flags), point) for point in grid.points()]
        return _distinct([Cell(grid_name(config), config) for config in configs])
    cells = _named_cells(values[CELLS], config_file) if CELLS in values else {"": FileSettings({}, {})}
    axes = _axes(values[GRID], values.places[GRID]) if GRID in values else FileSettings({}, {})
    _check_number(len(cells) * math.prod(map(len, axes.values())), are_meant)
    if both := next((name for name in axes if flags.get(name) is not None), None):
        raise UsageError(f"{axes.places[both]}: the grid varies `{both}`, and a flag sets it; keep one")
    base = values.without({CELLS, GRID})
    return _distinct(
        [
            _cell(name, base, settings, point, given_flags(flags))
            for name, settings in cells.items()
            for point in _points(axes)
        ]
    )


def grid_name(config: EvalConfig) -> str:
    """The folder name of a cell of the grid flags: what varies in it."""
    decode = config.decode
    exits = "heads" if decode.exits is None else "-".join(map(str, decode.exits))
    gammas = decode.gamma if isinstance(decode.gamma, tuple) else (decode.gamma,)
    gamma = "-".join(f"{g:g}" for g in gammas)
    return f"{config.task}_gamma-{gamma}_exits-{exits}_drafts-{decode.max_drafts}"


def value_name(value: Any) -> str:
    """What a value of a file's grid adds to the name of a cell: of a path its last part, of a list its parts."""
    if isinstance(value, list):
        return "-".join(map(value_name, value)) or "none"
    text = "none" if value is None else str(value).rstrip("/").rpartition("/")[2]
    return re.sub("[^a-z0-9._]+", "-", text.lower()).strip("-")


def _check_number(num_cells: int, are_meant: bool) -> None:
    if num_cells > MAX_CELLS:
        raise UsageError(
            f"the sweep has {num_cells:,} cells, each a run of its own: leave out values, {MAX_CELLS:,} at most"
        )
    if num_cells > MOST_CELLS and not are_meant:
        raise UsageError(
            f"the sweep has {num_cells:,} cells, each a run: more than {MOST_CELLS:,} take --yes; --dry-run lists them"
        )


def _named_cells(named: Any, config_file: Path | None) -> dict[str, FileSettings]:
    """The settings of each of a file's `cells`; raises UsageError for the first that has a bad name or none of them."""
    if not isinstance(named, FileSettings) or not named:
        raise UsageError(
            f"{config_file}: `cells` must be a mapping of names to settings, such as `fixed: {{exits: [8]}}`"
        )
    for name, settings in named.items():
        where = f"{named.places[name]}: cell {name!r}"
        if not CELL_NAME.fullmatch(name) or name in (".", "..", SWEEP_FILE):
            raise UsageError(
                f"{where}: a cell's name is its folder's, of a-z, 0-9 and . _ - only, and not {SWEEP_FILE}"
            )
        if not isinstance(settings, FileSettings) or not settings:
            raise UsageError(
                f"{where}: expected a mapping of settings that differ from the file's, such as `gamma: 0.5`"
            )
    return dict(named)


def _axes(grid: Any, place: str) -> FileSettings:
    """A file's `grid`; raises UsageError unless it is a mapping of settings to lists of values."""
    if not isinstance(grid, FileSettings) or not grid:
        raise UsageError(f"{place}: `grid` must be a mapping of settings to lists, such as `gamma: [0.5, 0.75]`")
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"{grid.places[name]}: `{name}` of a grid is a list of values, such as [0.5, 0.75]")
    return grid


def _points(axes: FileSettings) -> Iterator[FileSettings]:
    """The settings of every combination of a file's grid, each at the place of its list."""
    for values in itertools.product(*axes.values()):
        yield FileSettings(dict(zip(axes, values, strict=True)), axes.places)


def _cell(name: str, base: FileSettings, settings: FileSettings, point: FileSettings, flags: Mapping[str, Any]) -> Cell:
    full_name = "_".join([*([name] if name else []), *(f"{axis}-{value_name(value)}" for axis, value in point.items())])
    if len(full_name) > MAX_NAME_LEN:
        raise UsageError(f"cell {full_name[:60]}...: a name of more than {MAX_NAME_LEN} signs; name it in `cells`")
    if both := next((axis for axis in point if axis in settings.flattened("decode")), None):
        raise UsageError(f"{point.places[both]}: cell {name!r} has its own `{both}`, which the grid varies; keep one")
    try:
        return Cell(full_name, settings_of(EvalConfig, base, checked_decode(settings), point, flags))
    except UsageError as error:
        raise UsageError(f"cell {full_name!r}: {error}") from None


def _distinct(cells: list[Cell]) -> list[Cell]:
    """`cells`; raises UsageError where two have one name, as the runs of both would have one folder."""
    seen: dict[str, EvalConfig] = {}
    for cell in cells:
        if cell.name in seen:
            same = "and the same settings" if seen[cell.name] == cell.config else "and other settings"
            raise UsageError(
                f"two cells are called {cell.name!r} {same}: a cell's name is its folder's; drop one, or name them in "
                "`cells`"
            )
        seen[cell.name] = cell.config
    return cells


def varying(cells: list[Cell]) -> list[str]:
    """For each cell its settings that are not the same in all, as `gamma 0.5, exits 4-8`."""
    flat = [_flat(cell.config) for cell in cells]
    names = [name for name in flat[0] if any(settings[name] != flat[0][name] for settings in flat)]
    return [", ".join(f"{name} {_shown(settings[name])}" for name in names) for settings in flat]


def _flat(config: EvalConfig) -> dict[str, Any]:
    settings = config.model_dump(mode="json")
    return settings.pop("decode") | settings


def _shown(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)
