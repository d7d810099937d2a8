"""What a shard came to, from its rows: the few numbers its commit keeps."""

import pyarrow as pa
import pyarrow.compute as pc

from adadecode.methods import REFERENCE, names_that_owe
from adadecode.records import ShardOutcome


def outcome_of(table: pa.Table) -> ShardOutcome:
    """The outcome of a shard's rows, of the SAMPLES schema of any version."""
    is_error = pc.not_equal(table["status"], "ok")
    is_vanilla = pc.and_(pc.equal(table["method"], REFERENCE), pc.invert(is_error))
    is_contract = pc.is_in(table["method"], pa.array(names_that_owe("exact")))
    num_contract_methods = len(set(names_that_owe("exact")) & set(table["method"].unique().to_pylist()))
    return ShardOutcome(
        num_samples=pc.count_distinct(table["sample_id"]).as_py(),
        num_error_samples=pc.count_distinct(table.filter(is_error)["sample_id"]).as_py(),
        num_output_tokens=pc.sum(table["output_len"]).as_py() or 0,
        busy_s=pc.sum(table["e2e_s"]).as_py() or 0.0,
        num_exact=pc.sum(pc.and_(is_contract, pc.equal(table["parity"], "exact"))).as_py() or 0,
        num_owed=num_contract_methods * (pc.sum(is_vanilla).as_py() or 0),
    )
