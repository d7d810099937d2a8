"""What the rows of a shard come to."""

# pyarrow makes its compute functions at import time, where pyright cannot see them.
# pyright: reportAttributeAccessIssue=false

import pyarrow as pa
import pyarrow.compute as pc

from adadecode.records import ShardOutcome
from adadecode.report.schema import CONTRACT_METHODS


def outcome_of(table: pa.Table) -> ShardOutcome:
    """The outcome of rows of the SAMPLES schema."""
    keys = ["task", "sample_id"]
    ok = pc.equal(table["status"], "ok")
    contract = pc.is_in(table["method"], pa.array(CONTRACT_METHODS))
    num_contract = sum(method in CONTRACT_METHODS for method in table["method"].unique().to_pylist())
    num_vanilla = pc.sum(pc.and_(ok, pc.equal(table["method"], "vanilla"))).as_py() or 0
    return ShardOutcome(
        num_samples=table.select(keys).group_by(keys).aggregate([]).num_rows,
        num_error_samples=table.filter(pc.invert(ok)).select(keys).group_by(keys).aggregate([]).num_rows,
        num_output_tokens=pc.sum(table["output_len"]).as_py() or 0,
        busy_s=pc.sum(table["e2e_s"]).as_py() or 0.0,
        num_exact=pc.sum(pc.and_kleene(contract, pc.equal(table["parity"], "exact"))).as_py() or 0,
        num_owed=num_vanilla * num_contract,
    )
