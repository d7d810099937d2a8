"""Rows of a finished run decoded again, drawn at random, with the run's own model: what no table can prove of itself."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adadecode.engine.generate import room_for_output
from adadecode.engine.invariance import check_rows_once
from adadecode.errors import EXIT_FAILED, EXIT_MISMATCH, EXIT_OK, RunFolderError, UsageError
from adadecode.evaluation.compare import logits_digest
from adadecode.evaluation.shard import commit_facts
from adadecode.evaluation.worker import Worker, decode_prompt, load_worker
from adadecode.model.memory import out_of_memory_named
from adadecode.records import Say
from adadecode.report.parity import KEY, first_difference, row_name
from adadecode.report.proof import proof_sentence
from adadecode.runs.engines import DECISIVE, OF_SPEED
from adadecode.runs.fingerprint import source_hashes, stored_hashes
from adadecode.runs.folder import committed_tables, read_commits, read_run
from adadecode.settings import EvalConfig, settings_of_run
from adadecode.tasks import expand_task

MAX_LINES = 20  # differing rows that have one each
TOLD_EVERY = 50  # rows
NEEDED = (*KEY, "shard", "prompt_token_ids", "output_token_ids", "finish_reason", "logits_digest")
MADE_LATER = {"code_hash"}  # decisive facts that a later version of this program may have otherwise
NOT_OF_BITS = {"python", "gpu_driver"}  # facts of speed by which no bit changes
Facts = Mapping[str, Any]  # of a worker


@dataclass(frozen=True)
class Recomputed:
    """What came of decoding rows again: how many of how many, and a line for each that is not what is stored."""

    num_rows: int
    num_drawn: int
    differing: Sequence[str]
    other_engine: Sequence[str]  # what of this machine and version is not the run's

    @property
    def exit_code(self) -> int:
        """3 where a row is false; 1 where one differs, but on another engine, whose bits may be others; else 0."""
        if not self.differing:
            return EXIT_OK
        return EXIT_FAILED if self.other_engine else EXIT_MISMATCH

    def lines(self) -> list[str]:
        """What a person should know of it."""
        shown = [f"recompute: {line}" for line in self.differing[:MAX_LINES]]
        if len(self.differing) > MAX_LINES:
            shown.append(f"recompute: and {len(self.differing) - MAX_LINES} more rows")
        if self.other_engine:
            told = "; ".join(self.other_engine)
            shown.append(f"recompute: on another engine than the run's, whose bits may be others: {told}")
        if self.differing and self.other_engine:
            num_equal = self.num_drawn - len(self.differing)
            return [*shown, f"recompute: {num_equal} of {self.num_drawn} rows are equal; the others prove nothing here"]
        return [*shown, f"recompute: {proof_sentence(self.num_rows, self.num_drawn, len(self.differing))}"]


def recompute(location: str | Path, num_rows: int, seed: int, say: Say) -> Recomputed:
    """Decodes `num_rows` ok rows of the run at `location` again, all where it has fewer; writes nothing.

    They are drawn without replacement, by `seed`. Raises UsageError where the model, heads or draft model are not those
    of the run, by their hashes, or cannot be had, and RunFolderError where the run has no rows.
    """
    if num_rows < 1:
        raise UsageError(f"--recompute {num_rows}: give a number of rows from 1 on; 459 prove much")
    if seed < 0:
        raise UsageError(f"--seed {seed}: give a whole number from 0 on")
    run, commits = read_run(location), read_commits(location)
    rows = _ok_rows(committed_tables(location, commits))
    if not rows.num_rows:
        raise RunFolderError(f"{str(location)!r}: it has no rows with an output to decode again")
    drawn = np.random.default_rng(seed).choice(rows.num_rows, min(num_rows, rows.num_rows), replace=False)
    chosen = rows.take(pa.array(np.sort(drawn))).to_pylist()
    config = settings_of_run(EvalConfig, run["config"])
    _check_sources(run, config)
    facts = [commits[row["shard"]]["worker"] for row in chosen]
    worker = load_worker(_as_run(config, facts[0]), expand_task(config.task), "verify", facts[0].get("threads"))
    here = commit_facts(worker)
    for of in facts:
        _check_model(of, here)
    differing: list[str] = []
    for idx, row in enumerate(chosen):
        if idx and idx % TOLD_EVERY == 0:
            say(f"decoding again: {idx} of {len(chosen)} rows")
        differing += _differing(worker, row)
    return Recomputed(
        rows.num_rows, len(chosen), differing, sorted({text for of in facts for text in _other(of, here)})
    )


def _ok_rows(tables: Iterator[pa.Table]) -> pa.Table:
    """The rows with an output, of those columns that are needed."""
    found = [table.filter(pc.equal(table["status"], "ok")).select(NEEDED) for table in tables]
    return pa.concat_tables(found).combine_chunks() if found else pa.table({})


def _check_sources(run: Mapping[str, Any], config: EvalConfig) -> None:
    """Raises UsageError where the files of the model or the heads have other hashes than those in `run`."""
    stored = stored_hashes(run)
    for name, found in source_hashes(config, expand_task(config.task)).items():
        if name in stored and stored[name] != found:
            raise UsageError(
                f"--recompute: {name} has the hash {found}, and that of the run is {stored[name]}: only what made the rows "
                "can say whether they are true; put it back"
            )


def _as_run(config: EvalConfig, facts: Facts) -> EvalConfig:
    """`config` with the kernels that the rows were computed with."""
    kernels = facts.get("kernels")
    return config.model_copy(update={"kernels": kernels} if isinstance(kernels, str) else {})


def _check_model(of_rows: Facts, here: Facts) -> None:
    """Raises UsageError where a decisive fact of what made rows is not that of what is loaded."""
    for fact, what in DECISIVE.items():
        if fact not in MADE_LATER and fact in of_rows and of_rows[fact] != here.get(fact):
            raise UsageError(
                f"--recompute: the run has {what} {of_rows[fact]}, and what is loaded {here.get(fact)}: only what made the "
                "rows can say whether they are true; put it back"
            )


def _other(of_rows: Facts, here: Facts) -> Iterator[str]:
    """What of the engine that made rows may give other bits than the one here."""
    names = {"code_hash": "code", **{name: what for name, what in OF_SPEED.items() if name not in NOT_OF_BITS}}
    for fact, what in names.items():
        if of_rows.get(fact) != here.get(fact):
            yield f"{what} {here.get(fact)}, there {of_rows.get(fact, 'not stored')}"


@out_of_memory_named()
def _differing(worker: Worker, row: dict[str, Any]) -> list[str]:
    """A line where the output, its end or its logits are not those that `row` stores; none where they are."""
    prompt_ids, stored_ids = row["prompt_token_ids"], row["output_token_ids"]
    limit = min(worker.config.decode.max_new_tokens, room_for_output(worker.model, len(prompt_ids)))
    check_rows_once(worker.model, worker.width, len(prompt_ids) + limit, worker.checked)
    decoded = decode_prompt(worker, row["method"], row["task"], prompt_ids)
    found = decoded.generation
    idx = first_difference(list(found.output_token_ids), stored_ids)
    if idx is not None:
        ids = (ids[idx] if idx < len(ids) else "none" for ids in (stored_ids, list(found.output_token_ids)))
        return [f"{row_name(row)}: output position {idx} is stored as {next(ids)} and decoded as {next(ids)}"]
    if found.finish_reason != row["finish_reason"]:
        return [f"{row_name(row)}: finish_reason is stored as {row['finish_reason']} and was {found.finish_reason}"]
    digest = logits_digest(decoded.logits)
    if row["logits_digest"] is not None and digest is not None and digest != row["logits_digest"]:
        return [f"{row_name(row)}: logits_digest is stored as {row['logits_digest']} and was {digest}"]
    return []
