"""A run of any size, grown from a small one of today: its rows again and again under new names, everything else fitting."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adadecode.methods import in_turn
from adadecode.report.schema import PLAN
from adadecode.runs.editions import Edition, data_bytes
from adadecode.runs.fingerprint import recomputed_fingerprint
from adadecode.runs.folder import RunFolder, read_samples
from adadecode.runs.outcome import outcome_of
from adadecode.runs.plan import plan_hash
from adadecode.runs.result import read_result
from adadecode.runs.scores import score_run

ATTEMPT = "a" * 12
OTHER_IDS = 1000  # which no row begins with, and none of which ends an output


def grow(small: Path, large: Path, num_samples: int, shard_size: int) -> Path:
    """A finished run of `num_samples` samples at `large`, which takes the rows of the run at `small` in turn.

    Prompts, outputs and texts of each sample are its own. Returns `large`.
    """
    run = json.loads((small / "run.json").read_text())
    commit = json.loads((small / "commits" / "00000.json").read_text())
    base = read_samples(small).combine_chunks()
    rows_of = _rows_by_sample(base)
    task, methods = base["task"][0].as_py(), tuple(run["config"]["methods"])
    ids = [f"sample-{idx:06d}" for idx in range(num_samples)]
    plan = pa.table(
        {
            "task": [task] * num_samples,
            "sample_id": ids,
            "shard": [idx // shard_size for idx in range(num_samples)],
            "prompt_hash": ["0" * 16] * num_samples,
            "num_turns": [1] * num_samples,
        },
        PLAN,
    )
    run["config"] |= {"limit": num_samples, "shard_size": shard_size}
    run["provenance"]["hashes"]["plan"] = plan_hash(plan)
    run |= {"run_id": large.name, "fingerprint": recomputed_fingerprint(run)}
    run |= {"workers": [commit["worker"]], "status": "complete"}
    for name in ("samples", "commits"):
        (large / name).mkdir(parents=True)
    (large / "run.json").write_text(json.dumps(run))
    folder = RunFolder(large)
    folder.write_table("plan.parquet", plan)
    orders = [{name: idx for idx, name in enumerate(in_turn(methods, turn))} for turn in range(2 * len(methods))]
    for shard_idx, start in enumerate(range(0, num_samples, shard_size)):
        of_shard = range(start, min(start + shard_size, num_samples))
        taken = [rows_of[idx % len(rows_of)] for idx in of_shard]
        sample_of = np.repeat(of_shard, [len(rows) for rows in taken])
        rows = base.take(pa.array(np.concatenate(taken))).combine_chunks()
        turns = zip(sample_of - start, rows["repeat"].to_pylist(), rows["method"].to_pylist(), strict=True)
        changed = {
            "sample_id": [ids[idx] for idx in sample_of],
            "shard": [shard_idx] * rows.num_rows,
            "run_id": [large.name] * rows.num_rows,
            "attempt": [ATTEMPT] * rows.num_rows,
            "order_idx": [orders[(shard_idx + at + repeat) % len(orders)][method] for at, repeat, method in turns],
            "output_text": [
                f"{_in_letters(idx)} {text}"
                for idx, text in zip(sample_of, rows["output_text"].to_pylist(), strict=True)
            ],
            **{name: _of_its_own(rows[name], sample_of) for name in ("prompt_token_ids", "output_token_ids")},
        }
        for name, values in changed.items():
            idx = rows.schema.get_field_index(name)
            rows = rows.set_column(idx, rows.schema.field(idx), pa.array(values, rows.schema.field(idx).type))
        _commit(large, run, Edition(shard_idx), rows, commit)
    result = read_result(large)
    folder.write_table("verify.parquet", result.verify)
    folder.write_table("summary.parquet", result.summary)
    score_run(large)
    return large


def _rows_by_sample(base: pa.Table) -> list[NDArray[np.int64]]:
    """The places of the rows of each sample in `base`."""
    codes = pc.dictionary_encode(base["sample_id"].combine_chunks()).indices.to_numpy()
    return [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]


def _in_letters(idx: int) -> str:
    """A word of the number `idx`, in which no scorer finds one."""
    return "".join(chr(ord("a") + int(digit)) for digit in str(idx))


def _of_its_own(lists: pa.ChunkedArray, sample_of: NDArray[np.int64]) -> pa.Array:
    """`lists` of token ids with the number of each row's sample, and OTHER_IDS, as the first id."""
    column = lists.combine_chunks()
    values, offsets = column.flatten().to_numpy().copy(), column.offsets.to_numpy()
    values[offsets[:-1] - offsets[0]] = sample_of + OTHER_IDS
    return pa.ListArray.from_arrays(pa.array(offsets - offsets[0]), pa.array(values))


def _commit(large: Path, run: dict[str, Any], edition: Edition, rows: pa.Table, like: dict[str, Any]) -> None:
    """Writes a shard's file and its commit, without the flush to disk that a run takes care of."""
    rows = _as_decoded(rows)
    facts = {"run_id": run["run_id"], "fingerprint": run["fingerprint"], "git_sha": run["provenance"]["git_sha"] or ""}
    content = data_bytes(rows, facts, ATTEMPT, like["worker"])
    (large / edition.data).write_bytes(content)
    commit = like | {
        "shard": edition.shard_idx,
        "file": edition.data,
        "sha256": hashlib.sha256(content).hexdigest(),
        "num_rows": rows.num_rows,
        "fingerprint": run["fingerprint"],
        "attempt": ATTEMPT,
        "outcome": dataclasses.asdict(outcome_of(rows)),
    }
    (large / edition.commit).write_text(json.dumps(commit, indent=2, sort_keys=True))


def _as_decoded(rows: pa.Table) -> pa.Table:
    """The `rows` of a shard, each begun a millisecond after the one before ended, with digests of its sample's own."""
    samples = pc.dictionary_encode(rows["sample_id"].combine_chunks()).indices.to_numpy()
    in_turn = np.lexsort([*(rows[name].to_numpy() for name in ("order_idx", "turn", "repeat")), samples])
    took_us = (rows["e2e_s"].to_numpy()[in_turn] * 1e6).astype(np.int64) + 1000
    started_us = np.empty(rows.num_rows, np.int64)
    started_us[in_turn] = np.cumsum(took_us) - took_us + pc.min(rows["started_at"].cast(pa.int64())).as_py()
    pairs = zip(rows["sample_id"].to_pylist(), rows["logits_digest"].to_pylist(), strict=True)
    columns = {
        "started_at": pa.array(started_us).cast(rows.schema.field("started_at").type),
        "logits_digest": pa.array(
            [
                digest and hashlib.blake2b(f"{name} {digest}".encode(), digest_size=16).hexdigest()
                for name, digest in pairs
            ],
            pa.string(),
        ),
    }
    for name, column in columns.items():
        rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), column)
    return rows
