"""`--profile`: one trace beside a run, of tokens that no row records."""

import gzip
import json
from pathlib import Path

import pytest

from adadecode.evaluation import profiling
from adadecode.report.schema import SAMPLES
from adadecode.runs.folder import read_samples
from tests.folders import undo_shard
from tests.models import needs_compiler

TIMES = {"run_id", "attempt", "started_at", "ttft_s", "decode_s", "e2e_s", "tpot_s", "step_gaps_s"}
SAID = ", to be opened at https://ui.perfetto.dev"


def rows(out: Path):
    return read_samples(out).select([name for name in SAMPLES.names if name not in TIMES])


def spans(trace: Path) -> list[str]:
    """The names of the spans in a trace, in the order in which they began."""
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    return [event["name"] for event in sorted(events, key=lambda event: event["ts"]) if event["ph"] == "X"]


@needs_compiler
def test_a_trace_names_what_native_kernels_do(tiny, cli, tmp_path):
    assert cli("eval", "--local", *tiny.flags(kernels="native"), "--profile", 3, "--out", tmp_path).exit_code == 0
    found = spans(tmp_path / "profile" / "local-00000.json.gz")
    methods = ["vanilla", "vanilla-w1", "adadecode"]
    assert [name for name in found if name in methods] == methods
    assert sum(name.startswith("prefill of ") for name in found) == 3
    of_vanilla = found[found.index("vanilla") : found.index("vanilla-w1")]
    assert sum(name.startswith("verify, ") for name in of_vanilla) == 2, "the first token is the prompt's"
    assert any("exit test, " in name for name in found)
    assert "aten::linear" not in found, "so without names a trace would be empty"


def test_one_shard_of_a_start_is_traced_and_the_rows_are_those_of_any_run(tiny, cli, tmp_path):
    plain, out, flags = tmp_path / "plain", tmp_path / "run", tiny.flags(kernels="eager")
    assert cli("eval", "--local", *flags, "--out", plain).exit_code == 0
    profiled = cli("eval", "--local", *flags, "--profile", 2, "--out", out)
    assert profiled.exit_code == 0, profiled.stderr
    (trace,) = (out / "profile").iterdir()
    assert f"profile: {trace}{SAID}" in profiled.stdout.splitlines()
    assert {"layers 0-1, 1 rows", "aten::linear"} <= set(spans(trace))
    assert rows(out).equals(rows(plain)), "a trace is no setting of the results"
    assert cli("verify", out).exit_code == 0, "and nothing to an audit"
    undo_shard(out, 1)
    resumed = cli("eval", "--local", *flags, "--profile", 1, "--out", out)
    assert [line for line in resumed.stdout.splitlines() if line.startswith("profile: ")] == [
        f"profile: {out}/profile/local-0000{shard}.json.gz{SAID}" for shard in (0, 1)
    ]


def test_a_trace_that_fails_costs_no_row_and_is_one_line(tiny, cli, tmp_path, monkeypatch, caplog):
    def broken(*_: object) -> bytes:
        raise RuntimeError("the tracing library is broken")

    monkeypatch.setattr(profiling, "trace", broken)
    result = cli("eval", "--local", *tiny.flags(), "--profile", 3, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert "profile: no trace was written; if a worker came to it, its log says why not" in result.stdout.splitlines()
    assert "the profile failed: RuntimeError: the tracing library is broken" in caplog.text


@pytest.mark.parametrize("value", ["0", "33", "folder", "-1"])
def test_what_is_no_number_of_tokens_to_trace_is_one_line(value, cli, tmp_path):
    result = cli("eval", "--local", "--profile", value, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "--profile" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()
