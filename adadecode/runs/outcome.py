"""What a shard came to, from its rows: the few numbers its commit keeps."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adadecode.methods import REFERENCE, names_that_owe
from adadecode.records import ShardOutcome


def outcome_of(table: pa.Table) -> ShardOutcome:
    """The outcome of a shard's rows, of the SAMPLES schema of any version."""
    return outcomes_of(table, np.zeros(table.num_rows, np.int64), 1)[0]


def outcomes_of(table: pa.Table, shard_idx: NDArray[np.int64], num_shards: int) -> list[ShardOutcome]:
    """The outcomes of several shards' rows; row i is of the shard at `shard_idx[i]`, from 0 on."""

    def sums(weights: NDArray | None, chosen: NDArray[np.bool_] | None = None) -> NDArray:
        rows = slice(None) if chosen is None else chosen
        return np.bincount(shard_idx[rows], None if weights is None else weights[rows], num_shards)

    def distinct(name: str, chosen: NDArray[np.bool_]) -> NDArray:
        encoded = pc.dictionary_encode(table[name].combine_chunks(), null_encoding="encode")
        values = encoded.indices.to_numpy(zero_copy_only=False)
        pairs = np.unique(shard_idx[chosen] * (len(encoded.dictionary) + 1) + values[chosen])
        return np.bincount(pairs // (len(encoded.dictionary) + 1), minlength=num_shards)

    def where(condition: pa.ChunkedArray) -> NDArray[np.bool_]:
        return pc.fill_null(condition, False).to_numpy()

    is_error = where(pc.not_equal(table["status"], "ok"))
    is_contract = where(pc.is_in(table["method"], pa.array(names_that_owe("exact"))))
    lengths, times = (pc.fill_null(table[name].cast(pa.float64()), 0).to_numpy() for name in ("output_len", "e2e_s"))
    columns = zip(
        distinct("sample_id", np.ones(table.num_rows, bool)).tolist(),
        distinct("sample_id", is_error).tolist(),
        sums(lengths).tolist(),
        sums(times).tolist(),
        sums(None, is_contract & where(pc.equal(table["parity"], "exact"))).tolist(),
        (
            distinct("method", is_contract) * sums(None, where(pc.equal(table["method"], REFERENCE)) & ~is_error)
        ).tolist(),
        strict=True,
    )
    return [
        ShardOutcome(
            num_samples=num_samples,
            num_error_samples=num_error_samples,
            num_output_tokens=int(num_output_tokens),
            busy_s=busy_s,
            num_exact=num_exact,
            num_owed=num_owed,
        )
        for num_samples, num_error_samples, num_output_tokens, busy_s, num_exact, num_owed in columns
    ]
