"""Which samples failed, in which methods and with which errors."""


# pyarrow makes its compute functions at import time, where pyright cannot see them.
# pyright: reportAttributeAccessIssue=false

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

ERROR_COLUMNS = ("task", "sample_id", "method", "status", "error_type", "error_message")
MAX_SHOWN_LEN = 200  # of the first error's message, in characters


def error_lines(samples: pa.Table) -> list[str]:
    """One line that counts the failed samples, their rows by method and by error, and names the first; none without.

    `samples` are rows of a SAMPLES table, of which ERROR_COLUMNS suffice. Commonest errors first.
    """
    failed = samples.select(ERROR_COLUMNS).filter(pc.equal(samples["status"], "error"))
    if not failed.num_rows:
        return []
    num_failed, num_samples = num_distinct_samples(failed), num_distinct_samples(samples)
    methods = ", ".join(f"{method} {count}" for method, count in _counts(failed["method"]))
    kinds = ", ".join(f"{count} {kind}" for kind, count in _counts(failed["error_type"]))
    first = failed.slice(0, 1).to_pylist()[0]
    message = first["error_message"] or first["error_type"] or "no message"
    if len(message) > MAX_SHOWN_LEN:
        message = message[:MAX_SHOWN_LEN].rstrip() + " ..."
    return [
        f"errors: {num_failed} of {num_samples} samples failed: {methods} rows ({kinds}); "
        f"first: {first['task']}/{first['sample_id']}: {message}"
    ]


def num_distinct_samples(samples: pa.Table) -> int:
    """How many samples the rows are of, whatever their methods and repeats."""
    return samples.group_by(["task", "sample_id"]).aggregate([]).num_rows


def _counts(column: pa.ChunkedArray) -> list[tuple[str, int]]:
    """The values and how often each stands there, the most frequent first."""
    return Counter("unknown" if value is None else value for value in column.to_pylist()).most_common()
