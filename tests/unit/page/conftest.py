"""A small finished run, and copies of it to be altered."""

import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from adadecode.report.schema import SWEEP
from adadecode.runs.editions import parquet_bytes
from adadecode.runs.result import read_result


@pytest.fixture(scope="session")
def made(tiny, cli, tmp_path_factory) -> Path:
    """A run of five samples by vanilla, the same at width 1, and AdaDecode with early rejection."""
    out = tmp_path_factory.mktemp("page") / "run"
    flags = tiny.flags(methods="vanilla,vanilla-w1,adadecode", reject=0.01, shard_size=5)
    result = cli("eval", *flags, "--ngram", "0.2", "--local", "--out", out)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def run(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture(scope="session")
def sweep(made, tmp_path_factory) -> Path:
    """A sweep of two cells that came to what the run came to."""
    folder = tmp_path_factory.mktemp("sweep")
    rows = read_result(made).summary.to_pylist()
    cells = [row | {"cell": cell} for cell in ("gamma-0.5", "gamma-0.9") for row in rows]
    (folder / "sweep.parquet").write_bytes(parquet_bytes(pa.Table.from_pylist(cells, schema=SWEEP), {}))
    return folder
