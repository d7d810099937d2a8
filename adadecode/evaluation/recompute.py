"""Rows of a finished run decoded again, drawn at random, with the run's own model: what no table can prove of itself."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adadecode.engine.generate import room_for_output
from adadecode.engine.invariance import check_rows_once
from adadecode.engine.tally import Decoded
from adadecode.errors import (
    EXIT_FAILED,
    EXIT_MISMATCH,
    EXIT_OK,
    NonFiniteLogitsError,
    PromptError,
    RunFolderError,
    UsageError,
)
from adadecode.evaluation.compare import logits_digest
from adadecode.evaluation.shard import commit_facts
from adadecode.evaluation.worker import Worker, decode_prompt, load_worker
from adadecode.model.memory import out_of_memory_named
from adadecode.provenance import package_versions
from adadecode.records import Say
from adadecode.report.parity import KEY, first_difference, row_name
from adadecode.report.proof import proof_sentence
from adadecode.runs.commits import Shards
from adadecode.runs.engines import DECISIVE, OF_SPEED
from adadecode.runs.fingerprint import source_hashes, stored_hashes
from adadecode.runs.folder import read_commits, read_run, shards_of
from adadecode.settings import EvalConfig, settings_of_run
from adadecode.tasks import expand_task, stops_of
from adadecode.tasks.encode import decode_output

MAX_LINES = 20  # differing rows that have one each
TOLD_EVERY = 50  # rows
NEEDED = (*KEY, "prompt_token_ids", "output_token_ids", "output_text", "finish_reason", "logits_digest")
MADE_LATER = {"code_hash"}  # decisive facts that a later version of this program may have otherwise
NOT_OF_BITS = {"python", "gpu_driver"}  # facts of speed by which no bit changes
OF_TEXTS = ("tokenizers", "transformers")
Facts = Mapping[str, Any]  # of a worker


@dataclass(frozen=True)
class Recomputed:
    """What came of decoding rows again: how many of how many, and a line for each that is not what is stored."""

    num_rows: int
    num_drawn: int
    differing: Sequence[str]
    other_engine: Sequence[str]  # what of this machine and version is not the run's
    seed: int  # of the draw

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
        proof = proof_sentence(self.num_rows, self.num_drawn, len(self.differing))
        return [*shown, f"recompute: {proof}; drawn by --seed {self.seed}"]


def recompute(location: str | Path, num_rows: int, seed: int | None, say: Say) -> Recomputed:
    """Decodes `num_rows` ok rows of the run at `location` again, all where it has fewer; writes nothing.

    They are drawn without replacement, by `seed`, or by one that nobody could know before, without which the draw proves
    nothing to who does not trust the run's maker. Raises UsageError where the model, heads or draft model are not those
    of the run, by their hashes, or cannot be had, and RunFolderError where the run has no rows.
    """
    if num_rows < 1:
        raise UsageError(f"--recompute {num_rows}: give a number of rows from 1 on; 459 prove much")
    if seed is None:
        seed = secrets.randbits(32)
    if seed < 0:
        raise UsageError(f"--seed {seed}: give a whole number from 0 on")
    run, commits = read_run(location), read_commits(location)
    drawn = _drawn(location, commits, num_rows, seed)
    if not drawn.rows:
        raise RunFolderError(f"{str(location)!r}: it has no rows with an output to decode again")
    config = settings_of_run(EvalConfig, run["config"])
    _check_sources(run, config)
    facts = [commits[shard_idx]["worker"] for shard_idx in drawn.shards]
    worker = load_worker(_as_run(config, facts[0]), expand_task(config.task), "verify", _threads(facts[0]))
    here = commit_facts(worker)
    for of in facts:
        _check_model(of, here)
    differing: list[str] = []
    for idx, row in enumerate(drawn.rows):
        if idx and idx % TOLD_EVERY == 0:
            say(f"decoding again: {idx} of {len(drawn.rows)} rows")
        differing += _differing(worker, row)
    others = {text for of in facts for text in _other(of, here)} | set(_other_packages(run))
    return Recomputed(drawn.num_rows, len(drawn.rows), differing, sorted(others), seed)


class _Drawn(NamedTuple):
    """Rows that were drawn, of those columns that are needed, the shard whose commit has each, and of how many they are."""

    rows: list[dict[str, Any]]
    shards: list[int]
    num_rows: int


def _drawn(location: str | Path, commits: Mapping[int, dict[str, Any]], num_rows: int, seed: int) -> _Drawn:
    """A draw of `num_rows` rows with an output, all where there are fewer; of the others no ids are kept in memory."""
    ok_of_shard = [ok for shards in shards_of(location, commits) for ok in _ok_places(shards)]
    ends = np.cumsum([len(ok) for ok in ok_of_shard], dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    drawn = np.sort(np.random.default_rng(seed).choice(total, min(num_rows, total), replace=False))
    rows: list[dict[str, Any]] = []
    shards: list[int] = []
    for shard, ok, end in zip(commits.items(), ok_of_shard, ends.tolist(), strict=True):
        places = drawn[(drawn >= end - len(ok)) & (drawn < end)] - (end - len(ok))
        if len(places):
            [again] = shards_of(location, dict([shard]))
            rows += again.rows.select(NEEDED).take(pa.array(ok[places])).to_pylist()
            shards += [shard[0]] * len(places)
    return _Drawn(rows, shards, total)


def _ok_places(shards: Shards) -> list[NDArray[np.int64]]:
    """Where the rows with an output are in each of `shards`."""
    is_ok = pc.equal(shards.rows["status"], "ok").to_numpy()
    return [np.flatnonzero(of_shard) for of_shard in np.split(is_ok, np.cumsum(shards.num_rows)[:-1])]


def _threads(facts: Facts) -> int | None:
    """The threads that rows were decoded with; None where that is not stored."""
    threads = facts.get("threads")
    return threads if type(threads) is int and threads > 0 else None


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


def _other_packages(run: Mapping[str, Any]) -> Iterator[str]:
    """What of the packages that make texts, and transformers' own outputs, is not what the run had."""
    provenance, here = run.get("provenance"), package_versions()
    stored = provenance.get("packages") if isinstance(provenance, dict) else None
    if isinstance(stored, dict):
        for name in OF_TEXTS:
            if stored.get(name) != here.get(name):
                yield f"{name} {here.get(name)}, there {stored.get(name, 'not stored')}"


def _differing(worker: Worker, row: dict[str, Any]) -> list[str]:
    """A line where the output, its end, its text or its logits are not those that `row` stores; none where they are."""
    config = worker.config
    if row["method"] not in config.methods or row["task"] not in expand_task(config.task):
        return [f"{row_name(row)}: the run has no such method or task"]
    if not row["prompt_token_ids"] or row["output_token_ids"] is None:
        return [f"{row_name(row)}: it stores no prompt, or no output"]
    try:
        found = _decoded_again(worker, row)
    except (PromptError, NonFiniteLogitsError) as error:
        return [f"{row_name(row)}: it cannot be decoded again: {error}"]
    return [f"{row_name(row)}: {what}" for what in _unlike(worker, row, found)][:1]


@out_of_memory_named()
def _decoded_again(worker: Worker, row: dict[str, Any]) -> Decoded:
    prompt_ids = row["prompt_token_ids"]
    limit = min(worker.config.decode.max_new_tokens, room_for_output(worker.model, len(prompt_ids)))
    check_rows_once(worker.model, worker.width, len(prompt_ids) + limit, worker.checked)
    # not by the key that the row stores: that is held against the settings too
    key = worker.config.sampling_key(row["task"], row["sample_id"], row["repeat"], row["turn"])
    return decode_prompt(worker, row["method"], row["task"], prompt_ids, key=key)


def _unlike(worker: Worker, row: dict[str, Any], decoded: Decoded) -> Iterator[str]:
    """What `row` stores otherwise than it was `decoded`, the ids first."""
    generation, stored_ids = decoded.generation, row["output_token_ids"]
    idx = first_difference(list(generation.output_token_ids), stored_ids)
    if idx is not None:
        ids = (ids[idx] if idx < len(ids) else "none" for ids in (stored_ids, list(generation.output_token_ids)))
        yield f"output position {idx} is stored as {next(ids)} and decoded as {next(ids)}"
    if generation.finish_reason != row["finish_reason"]:
        yield f"finish_reason is stored as {row['finish_reason']} and was {generation.finish_reason}"
    text = decode_output(worker.tokenizer, generation, stops_of(worker.config, row["task"]))
    if text != row["output_text"]:
        yield "output_text is not what its ids mean"
    digest = logits_digest(decoded.logits)
    if row["logits_digest"] is not None and digest is not None and digest != row["logits_digest"]:
        yield f"logits_digest is stored as {row['logits_digest']} and was {digest}"
