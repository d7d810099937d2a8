"""A sweep before and after its cells run: what can be told of them, and the file over all of them."""

from collections.abc import Mapping, Sequence

import pyarrow as pa

from adadecode.engine.policy import check_heads_at
from adadecode.errors import ExitHeadsError, RunFolderError, UsageError
from adadecode.evaluation.cells import SWEEP_FILE, Cell
from adadecode.methods import METHODS
from adadecode.model.draft_model import check_draft_tokens
from adadecode.model.head_files import read_facts
from adadecode.model.medusa_heads import FACTS as MEDUSA_FACTS
from adadecode.provenance import git_sha
from adadecode.report.schema import SWEEP
from adadecode.runs.commits import commit_names
from adadecode.runs.editions import parquet_bytes
from adadecode.runs.fingerprint import changed_settings, heads_folders
from adadecode.runs.run_file import RUN_FILE, part_of, run_in
from adadecode.runs.storage import join, open_storage
from adadecode.settings import ModelSettings, fingerprint_of
from adadecode.tasks import expand_task, task_domain
from adadecode.tasks.heads import medusa_folder


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


def state_of(cell: Cell, out: str) -> str:
    """What there is of `cell` in the sweep's folder `out`: `new`, `complete`, or how many shards are done.

    Raises RunFolderError where its folder has results of other settings.
    """
    storage = open_storage(join(out, cell.name))
    try:
        storage.read(RUN_FILE)
    except FileNotFoundError:
        return "new"
    run, num_done = run_in(storage), len(commit_names(storage))
    theirs, ours = part_of(run, "config"), cell.config.model_dump(mode="json")
    if ours["shard_size"] is None:  # then it is that of the run
        ours["shard_size"] = theirs.get("shard_size")
    if num_done and fingerprint_of(theirs, {}) != fingerprint_of(ours, {}):
        raise RunFolderError(
            f"cell {cell.name!r}: {storage.location!r} has results of other settings ({changed_settings(theirs, ours)}): "
            "choose another --out, or repeat those settings to finish it"
        )
    return "complete" if run.get("status") == "complete" else f"begun, {num_done} shards done" if num_done else "new"


def by_model(cells: Sequence[Cell]) -> list[Cell]:
    """`cells` in the order in which they run: those of one model one after the other, so that it is loaded once."""
    models = [cell.config.model_dump(include=set(ModelSettings.model_fields)) for cell in cells]
    return [cell for _, cell in sorted(zip(models, cells, strict=True), key=lambda pair: models.index(pair[0]))]


def write_sweep(out: str, summaries: Mapping[str, pa.Table]) -> pa.Table:
    """Writes `out`/sweep.parquet, the SUMMARY tables of all cells under each other; returns the table."""
    table = join_cells(summaries)
    open_storage(out).replace(SWEEP_FILE, parquet_bytes(table, {"git_sha": git_sha() or ""}))
    return table


def join_cells(summaries: Mapping[str, pa.Table]) -> pa.Table:
    """A SWEEP table: the rows of each cell's SUMMARY table with the cell's name, in the cells' order."""
    rows = [{"cell": cell, **row} for cell, summary in summaries.items() for row in summary.to_pylist()]
    return pa.Table.from_pylist(rows, schema=SWEEP)
