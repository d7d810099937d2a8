"""Builders of small real samples tables."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest

from adadecode.report.schema import SAMPLES


def _row(method: str, sample_id: str = "s0", **values: Any) -> dict[str, Any]:
    """An ok row whose times and lengths follow from `output_token_ids`, `ttft_s` and `e2e_s`."""
    row = {
        "run_id": "run",
        "task": "demo",
        "sample_id": sample_id,
        "method": method,
        "repeat": 0,
        "shard": 0,
        "status": "ok",
        "prompt_len": 2,
        "prompt_token_ids": [1, 2],
        "output_token_ids": [5, 6, 7],
        "finish_reason": "length",
        "ttft_s": 0.5,
        "e2e_s": 2.5,
        "num_rounds": 2,
        "num_drafted": 0,
        "num_accepted": 0,
        "layers_per_token": 8.0,
        "parity": None if method == "vanilla" else "exact",
        "worker_id": "w0",
        "attempt": "a0",
        "started_at": datetime(2026, 1, 1, tzinfo=UTC),
    } | values
    if row["status"] == "ok" and row["output_token_ids"] is not None:
        num_tokens = len(row["output_token_ids"])
        decode_s = row["e2e_s"] - row["ttft_s"]
        derived = {
            "output_len": num_tokens,
            "decode_s": decode_s,
            "tpot_s": decode_s / (num_tokens - 1) if num_tokens > 1 else None,
        }
        row = derived | row
    return row


def _error_row(method: str, sample_id: str = "s0", **values: Any) -> dict[str, Any]:
    """A row of a sample that failed: null measurements."""
    unmeasured = dict.fromkeys(
        ("prompt_token_ids", "output_token_ids", "ttft_s", "e2e_s", "num_rounds", "num_drafted", "num_accepted")
    )
    failed = {"status": "error", "finish_reason": "error", "parity": None, "layers_per_token": None}
    return _row(
        method, sample_id, **unmeasured, **failed, error_type="NonFiniteLogitsError", error_message="NaN", **values
    )


@pytest.fixture
def row() -> Callable[..., dict[str, Any]]:
    return _row


@pytest.fixture
def error_row() -> Callable[..., dict[str, Any]]:
    return _error_row


@pytest.fixture
def samples_table() -> Callable[..., pa.Table]:
    return lambda *rows: pa.Table.from_pylist(list(rows), schema=SAMPLES)
