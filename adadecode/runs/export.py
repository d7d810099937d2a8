"""A run's committed rows for other tools: comma-separated, JSON Lines, or the records that AIPerf keeps of requests."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from adadecode.errors import UsageError
from adadecode.methods import METHODS
from adadecode.report.acceptance import speculative_decoding
from adadecode.report.row_checks import without_impossible_times
from adadecode.report.schema import SAMPLES
from adadecode.runs.folder import committed_tables, read_commits, read_run
from adadecode.runs.run_file import part_of

ExportForm = Literal["csv", "json", "aiperf"]
Row = Mapping[str, Any]

OF_DRAFTS = ("mean_acceptance_length", "draft_acceptance_rate", "acceptance_histogram", "num_accepted_tokens_per_pos")
_JSON = json.JSONEncoder(default=lambda at: at.isoformat(), allow_nan=False)
# With which a spreadsheet takes text for something to compute; some take full-width signs for the same.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def export_lines(location: str | Path, form: ExportForm, method: str | None = None) -> Iterator[str]:
    """The committed rows of the run at `location`, those of one `method` where it is given, a line each with its end.

    Times that no clock can have shown are left out. A few shards are in memory at a time. Raises RunFolderError where
    there is no run, or a committed file is missing or altered, and UsageError for a method that the run has not.
    """
    run, commits = read_run(location), read_commits(location)
    methods = part_of(run, "config").get("methods")
    if method is not None and (not isinstance(methods, list) or method not in methods):
        told = ", ".join(map(str, methods)) if isinstance(methods, list) else "unknown"
        raise UsageError(f"--method {method}: the run's methods are {told}")
    decode = part_of(part_of(run, "config"), "decode")
    most_drafts = {name: known.most_drafts(decode) for name, known in METHODS.items()}
    lines = {"csv": _csv_lines, "json": _json_lines, "aiperf": _aiperf_lines}[form]
    return lines(_rows(committed_tables(location, commits), method), lambda row: _record(row, most_drafts))


def _rows(tables: Iterator[pa.Table], method: str | None) -> Iterator[Row]:
    for table in tables:
        wanted = without_impossible_times(table.select(SAMPLES.names))
        yield from (wanted if method is None else wanted.filter(pc.equal(wanted["method"], method))).to_pylist()


def _record(row: Row, most_drafts: Mapping[str, int | None]) -> dict[str, Any] | None:
    return speculative_decoding(row, most_drafts.get(row["method"]))


Record = Callable[[Row], dict[str, Any] | None]


def _csv_lines(rows: Iterator[Row], record: Record) -> Iterator[str]:
    """A head and a line for each row; lists as JSON, what is null empty.

    Text that a spreadsheet would compute has an apostrophe before it: models and data sets write it.
    """
    yield _csv_line([*SAMPLES.names, *OF_DRAFTS])
    for row in rows:
        found = record(row) or {}
        yield _csv_line(
            [*(_csv_cell(row[name]) for name in SAMPLES.names), *(_csv_cell(found.get(n)) for n in OF_DRAFTS)]
        )


def _csv_line(cells: list[Any]) -> str:
    line = io.StringIO(newline="")
    csv.writer(line, lineterminator="\r\n").writerow(cells)
    return line.getvalue().encode("utf-8", "backslashreplace").decode()


def _csv_cell(value: Any) -> Any:
    if isinstance(value, list):
        return _json(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, str) and value.startswith(FORMULA):
        return f"'{value}"
    return value


def _json_lines(rows: Iterator[Row], record: Record) -> Iterator[str]:
    """Each row as one object: the columns of samples, and `speculative_decoding` as vLLM has it in `metrics`."""
    for row in rows:
        yield _json_line({**row, "speculative_decoding": record(row)})


def _aiperf_lines(rows: Iterator[Row], record: Record) -> Iterator[str]:
    """Each row as one of the records of AIPerf's profile_export.jsonl: one request, its metrics, what was accepted."""
    for idx, row in enumerate(rows):
        failed = row["status"] != "ok"
        error = {"code": None, "type": row["error_type"], "message": row["error_message"] or ""} if failed else None
        found = None if failed else record(row)
        line = {"metadata": _metadata(idx, row), "metrics": {} if failed else _metrics(row), "error": error}
        yield _json_line(line if found is None else {**line, "spec_decode_acceptance": _acceptance(row, found)})


def _metadata(idx: int, row: Row) -> dict[str, Any]:
    sample = f"{row['task']}/{row['sample_id']}"
    started = int(row["started_at"].timestamp() * 1e6) * 1000
    return {
        "session_num": idx,
        "x_request_id": f"{sample}/{row['turn']}/{row['method']}/{row['repeat']}",
        "x_correlation_id": f"{sample}/{row['method']}/{row['repeat']}",
        "conversation_id": sample,
        "turn_index": row["turn"],
        "request_start_ns": started,
        "request_ack_ns": None,
        "request_end_ns": started + round(1e9 * (row["e2e_s"] or 0)),
        "worker_id": row["worker_id"],
        "record_processor_id": row["attempt"],
        "benchmark_phase": "profiling",
        "was_cancelled": False,
        "cancellation_time_ns": None,
    }


def _metrics(row: Row) -> dict[str, Any]:
    """Each metric with its unit; what is not measured is left out."""
    tpot_s, gaps_s = row["tpot_s"], row["step_gaps_s"]
    found = {
        "input_sequence_length": (row["prompt_len"], "tokens"),
        "output_sequence_length": (row["output_len"], "tokens"),
        "output_token_count": (row["output_len"], "tokens"),
        "time_to_first_token": (_ms(row["ttft_s"]), "ms"),
        "request_latency": (_ms(row["e2e_s"]), "ms"),
        "inter_token_latency": (_ms(tpot_s), "ms"),
        "inter_chunk_latency": (None if gaps_s is None else [_ms(gap) for gap in gaps_s], "ms"),
        "output_token_throughput_per_user": (1 / tpot_s if tpot_s else None, "tokens/sec/user"),
    }
    return {name: {"value": value, "unit": unit} for name, (value, unit) in found.items() if value is not None}


def _acceptance(row: Row, found: dict[str, Any]) -> dict[str, Any]:
    """`found` as AIPerf keeps it: the histogram sparse, by the number of accepted drafts."""
    histogram = {str(accepted): count for accepted, count in enumerate(found["acceptance_histogram"]) if count}
    kept = {name: value for name, value in found.items() if name != "num_accepted_tokens_per_pos"}
    return {"engine": "adadecode", **kept, "acceptance_histogram": histogram, "completion_tokens": row["output_len"]}


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds


def _json_line(value: dict[str, Any]) -> str:
    return _json(value) + "\n"


def _json(value: Any) -> str:
    try:
        return _JSON.encode(value)
    except ValueError:
        return _JSON.encode(_finite(value))


def _finite(value: Any) -> Any:
    """`value` with None for numbers that JSON has not: no clock shows them, but a file that is not ours may hold them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    is_of_floats = isinstance(value, list) and value and isinstance(value[0], float)
    return [_finite(part) for part in value] if is_of_floats else value
