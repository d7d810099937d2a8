"""Traces as one Parquet table: a row per node, a row group per sample, and what it was recorded from in the metadata."""

import json
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adadecode.errors import TraceError
from adadecode.files import from_json, whole_file
from adadecode.tuning.trace import Floors, Node, SampleTrace

FORMAT_VERSION = 2
MADE_FROM, FLOORS = b"adadecode.made_from", b"adadecode.floors"

_IDS, _SHARES = pa.list_(pa.int32()), pa.list_(pa.float32())

# E candidate exits, in the order of the metadata's space.exits. Null where not recorded.
TRACE = pa.schema(
    [
        pa.field("task", pa.string(), nullable=False),
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("output_idx", pa.int32(), nullable=False),  # the output token this row stands after
        pa.field("path", _IDS, nullable=False),  # wrong drafts after it; empty on the output itself
        pa.field("prompt_token_ids", _IDS),  # in a sample's first row
        pa.field("token_id", pa.int32()),  # the output token at output_idx; null behind wrong drafts
        pa.field("next_token_id", pa.int32()),  # what the last layer says; null behind wrong drafts and after the end
        pa.field("top1_ids", _IDS),  # [E]; null after the end
        pa.field("confidences", _SHARES),  # [E] probability of each
        pa.field("gates", _SHARES),  # [E] chance a gate gives that the head is right; null without gates
        pa.field("ngram_id", pa.int32()),  # what the n-gram drafter proposes when a round starts here
        pa.field("ngram_confidence", pa.float32()),
    ]
)


def write_traces(path: Path, traces: Iterable[SampleTrace], made_from: dict[str, Any], floors: Floors) -> None:
    """Writes `traces`, complete above `floors`, to `path` as they come, under another name until the last is there."""
    made_from = {"format_version": FORMAT_VERSION, **made_from}
    metadata = {MADE_FROM: json.dumps(made_from).encode(), FLOORS: json.dumps(asdict(floors)).encode()}
    schema = TRACE.with_metadata(metadata)
    with whole_file(path) as unfinished, pq.ParquetWriter(unfinished, schema, compression="zstd") as writer:
        for trace in traces:
            writer.write_table(pa.Table.from_pylist(_rows(trace), schema=TRACE))


def read_floors(path: Path, made_from: dict[str, Any]) -> Floors:
    """The floors of the traces in `path`; raises TraceError when it is damaged or was not made from `made_from`."""
    with _opened(path, made_from) as file:
        stored = from_json((file.schema_arrow.metadata or {})[FLOORS])
        return Floors(tuple(stored["exits"]), stored["ngram"])


def read_traces(path: Path, made_from: dict[str, Any]) -> Iterator[SampleTrace]:
    """The traces in `path`, one at a time; raises TraceError when it is damaged or was not made from `made_from`."""
    with _opened(path, made_from) as file:
        for idx in range(file.num_row_groups):
            yield _trace(file.read_row_group(idx).to_pylist())


@contextmanager
def _opened(path: Path, made_from: dict[str, Any]) -> Generator[pq.ParquetFile]:
    """The file of traces at `path`; raises TraceError when it cannot be read, or was not made from `made_from`."""
    wanted = {"format_version": FORMAT_VERSION, **made_from}
    try:
        with pq.ParquetFile(path) as file:
            stored = from_json((file.schema_arrow.metadata or {}).get(MADE_FROM, b"{}"))
            differing = [name for name in wanted if stored.get(name) != wanted[name]]
            if differing or not file.schema_arrow.equals(TRACE):
                what = f"another {', '.join(differing)}" if differing else "other columns"
                raise TraceError(f"{path}: recorded with {what}; delete it to record again, or choose another folder")
            yield file
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        if isinstance(error, TraceError):
            raise
        raise TraceError(f"{path}: not a readable trace; delete it to record again ({type(error).__name__})") from error


def _rows(trace: SampleTrace) -> list[dict[str, Any]]:
    """One row per node, in the order of the output; one more for the last token, which is never fed."""
    rows: list[dict[str, Any]] = []
    common = {"task": trace.task, "sample_id": trace.sample_id}
    for idx, token_id in enumerate(trace.output_ids):
        row: dict[str, Any] = {**common, "output_idx": idx, "path": [], "token_id": token_id}
        if idx == 0:
            row["prompt_token_ids"] = trace.prompt_ids
        if idx < len(trace.nodes):
            row |= _columns(trace.nodes[idx]) | {"next_token_id": trace.output_ids[idx + 1]}
            ngram = trace.ngrams[idx]
            if ngram is not None:
                row["ngram_id"], row["ngram_confidence"] = ngram
        rows.append(row)
    rows += [
        {**common, "output_idx": idx, "path": path, **_columns(node)} for (idx, path), node in trace.off_path.items()
    ]
    return rows


def _columns(node: Node) -> dict[str, Any]:
    token_ids, confidences = zip(*node.proposals, strict=True)
    return {"top1_ids": token_ids, "confidences": confidences, "gates": node.gates or None}


def _trace(rows: list[dict[str, Any]]) -> SampleTrace:
    first, on_path = rows[0], [row for row in rows if not row["path"]]
    trace = SampleTrace(
        first["task"],
        first["sample_id"],
        tuple(first["prompt_token_ids"]),
        tuple(row["token_id"] for row in on_path),
        [],
        {(row["output_idx"], tuple(row["path"])): _node(row) for row in rows if row["path"]},
        [],
    )
    for row in on_path[:-1]:
        trace.nodes.append(_node(row))
        trace.ngrams.append(None if row["ngram_id"] is None else (row["ngram_id"], row["ngram_confidence"]))
    return trace


def _node(row: dict[str, Any]) -> Node:
    return Node(list(zip(row["top1_ids"], row["confidences"], strict=True)), tuple(row["gates"] or ()))
