"""A sweep: its cells, from a grid of flags or from a file that names them, and the file over all of them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from adadecode.engine.policy import check_heads_at
from adadecode.errors import ExitHeadsError, UsageError
from adadecode.methods import METHODS
from adadecode.model.draft_model import check_draft_tokens
from adadecode.model.head_files import read_facts
from adadecode.model.medusa_heads import FACTS as MEDUSA_FACTS
from adadecode.provenance import git_sha
from adadecode.report.schema import SWEEP
from adadecode.runs.editions import parquet_bytes
from adadecode.runs.fingerprint import heads_folders
from adadecode.runs.storage import open_storage
from adadecode.settings import EvalConfig, FileSettings, checked_decode, given_flags, read_settings, settings_of
from adadecode.tasks import expand_task, task_domain
from adadecode.tasks.heads import medusa_folder

SWEEP_FILE = "sweep.parquet"
CELL_NAME = re.compile(r"[a-z0-9._-]+")


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
    def is_given(self) -> bool:
        return any((self.tasks, self.gammas, self.exit_sets, self.max_drafts))

    def points(self) -> list[dict[str, Any]]:
        """The settings of every combination."""
        return [
            given_flags({"task": task, "gamma": gamma, "exits": exits, "max_drafts": max_drafts})
            for task in self.tasks or (None,)
            for gamma in self.gammas or (None,)
            for exits in self.exit_sets or (None,)
            for max_drafts in self.max_drafts or (None,)
        ]


def plan_cells(config_file: Path | None, grid: Grid, flags: dict[str, Any]) -> list[Cell]:
    """The cells of the file's `cells`, else of `grid`; `flags` that are not None win over the file and its cells.

    Raises UsageError for the first cell that has a bad name or setting, for a file whose `cells` are none, and for a
    grid beside them.
    """
    values = FileSettings({}, {}) if config_file is None else read_settings(config_file)
    if "cells" not in values:
        configs = [settings_of(EvalConfig, values, given_flags(flags), point) for point in grid.points()]
        return [Cell(grid_name(config), config) for config in configs]
    named, values = values["cells"], values.without({"cells"})
    if grid.is_given:
        raise UsageError(
            f"{config_file} names its cells: drop --tasks, --gammas, --exits and --max-drafts, or its `cells`"
        )
    if not isinstance(named, FileSettings) or not named:
        raise UsageError(
            f"{config_file}: `cells` must be a mapping of names to settings, such as `fixed: {{exits: [8]}}`"
        )
    cells = []
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
        try:
            cells.append(Cell(name, settings_of(EvalConfig, values, checked_decode(settings), given_flags(flags))))
        except UsageError as error:
            raise UsageError(f"cell {name!r}: {error}") from None
    return cells


def grid_name(config: EvalConfig) -> str:
    """The folder name of a grid's cell: what varies in it."""
    decode = config.decode
    exits = "heads" if decode.exits is None else "-".join(map(str, decode.exits))
    gammas = decode.gamma if isinstance(decode.gamma, tuple) else (decode.gamma,)
    gamma = "-".join(f"{g:g}" for g in gammas)
    return f"{config.task}_gamma-{gamma}_exits-{exits}_drafts-{decode.max_drafts}"


def check_heads_exist(cells: Sequence[Cell]) -> None:
    """Raises UsageError when a cell needs heads that are not there, before the first has run for hours."""
    for cell in cells:
        try:
            folders = heads_folders(cell.config, expand_task(cell.config.task))
            for folder in set(folders.values()):
                facts = read_facts(folder)
                if facts is None:
                    raise ExitHeadsError(f"--heads {str(folder)!r}: no finished heads there; train them first")
                decode = cell.config.decode
                whose, head_exits = f"those in {str(folder)!r}", facts.exits_of(decode.head)
                if decode.exits is not None:
                    check_heads_at(decode.exits, head_exits, whose)
                of_heads = [METHODS[name] for name in cell.config.methods if METHODS[name].needs_heads(decode.exits)]
                if decode.layerskip_exit is not None and any(method.one_exit for method in of_heads):
                    check_heads_at((decode.layerskip_exit,), head_exits, whose, "--layerskip-exit")
            for task in expand_task(cell.config.task):
                folder = medusa_folder(cell.config, task_domain(task))
                if folder is not None and read_facts(folder, MEDUSA_FACTS) is None:
                    raise ExitHeadsError(f"--medusa-heads {str(folder)!r}: no finished heads there; train them first")
        except UsageError as error:
            raise UsageError(f"cell {cell.name!r}: {error}") from None


def check_draft_models(cells: Sequence[Cell]) -> None:
    """Raises UsageError when a cell's draft model has other tokens than its model, before the first has run for hours."""
    known: set[tuple[str | None, ...]] = set()
    for cell in cells:
        decode = cell.config.decode
        pair = (cell.config.model, cell.config.revision, decode.draft_model, decode.draft_revision)
        if pair not in known:
            known.add(pair)
            try:
                check_draft_tokens(cell.config)
            except UsageError as error:
                raise UsageError(f"cell {cell.name!r}: {error}") from None


def write_sweep(out: str, summaries: Mapping[str, pa.Table]) -> pa.Table:
    """Writes `out`/sweep.parquet, the SUMMARY tables of all cells under each other; returns the table."""
    table = join_cells(summaries)
    open_storage(out).replace(SWEEP_FILE, parquet_bytes(table, {"git_sha": git_sha() or ""}))
    return table


def join_cells(summaries: Mapping[str, pa.Table]) -> pa.Table:
    """A SWEEP table: the rows of each cell's SUMMARY table with the cell's name, in the cells' order."""
    rows = [{"cell": cell, **row} for cell, summary in summaries.items() for row in summary.to_pylist()]
    return pa.Table.from_pylist(rows, schema=SWEEP)
