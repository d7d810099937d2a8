"""A second copy of a shard, in a process of its own, that is done when the run was closed; and readers of the folder."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import datasets
import duckdb
import pandas as pd
import polars as pl
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from adadecode.evaluation.local import run_local
from adadecode.runs.folder import read_run, read_samples
from adadecode.runs.run import close_run, open_run
from adadecode.settings import EvalConfig

ROOT = Path(__file__).parents[3]
LATE = """
import sys
from adadecode.evaluation.shard import do_shard
from adadecode.evaluation.worker import load_worker
from adadecode.runs.disk import LocalStorage
from adadecode.runs.folder import RunFolder, read_run
from adadecode.runs.run import plan_run
from adadecode.settings import EvalConfig

out, before = sys.argv[1:]
create = LocalStorage.create

def create_late(storage, name, content):
    if name.startswith(before):
        print("computed", flush=True)
        sys.stdin.readline()
    return create(storage, name, content)

LocalStorage.create = create_late
config = EvalConfig.model_validate(read_run(out)["config"])
_, shards, _ = plan_run(config)
print(do_shard(load_worker(config, ("jsonl",), "late", 1), shards[0], RunFolder(out)), flush=True)
"""


def contents(out: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(out)): file.read_bytes()
        for file in out.rglob("*")
        if file.parent.name != "lease" and file.is_file()
    }


@pytest.fixture(scope="module")
def config(tiny, cli, tmp_path_factory) -> EvalConfig:
    out = tmp_path_factory.mktemp("first") / "run"
    assert cli("eval", "--local", *tiny.flags(max_new_tokens=4), "--out", out).exit_code == 0
    return EvalConfig.model_validate(read_run(out)["config"])


@pytest.mark.parametrize("before", [pytest.param("samples/", marks=pytest.mark.slow), "commits/"])
@pytest.mark.parametrize("is_killed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_copy_that_is_done_after_the_run_was_closed_changes_nothing(config, tmp_path, before, is_killed):
    out = tmp_path / "run"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in (str(ROOT), *sys.path) if path)}
    with open_run(config, out) as prepared:
        late = subprocess.Popen(
            [sys.executable, "-c", LATE, str(out), before],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert late.stdout is not None
        assert late.stdout.readline() == "computed\n"
        run_local(prepared)
        result = close_run(prepared)
    assert result.exit_code == 0
    complete = contents(out)
    if is_killed:
        late.kill()
    answer, _ = late.communicate("\n")
    assert is_killed or "ShardOutcome(num_samples=2, num_error_samples=0" in answer
    assert contents(out) == complete
    keys = [(row["sample_id"], row["method"]) for row in pq.read_table(out / "samples").to_pylist()]
    assert len(keys) == len(set(keys)) == 5 * 3
    assert read_samples(out).num_rows == len(keys)
    if before == "commits/":
        assert set(pq.read_table(out / "samples/part-00000.parquet")["worker_id"].to_pylist()) == {"late"}, (
            "it was first"
        )


@pytest.fixture(scope="module")
def samples(config, tmp_path_factory) -> Path:
    """The samples of a complete run, one shard of which was withdrawn and done again."""
    out = tmp_path_factory.mktemp("read") / "run"
    with open_run(config, out) as prepared:
        run_local(prepared)
        close_run(prepared)
    (out / "samples" / "part-00001.parquet").write_bytes(b"damaged")
    with open_run(config, out) as prepared:
        run_local(prepared)
        close_run(prepared)
    return out / "samples"


READERS = {
    "pandas, folder": lambda path: pd.read_parquet(path).to_dict("records"),
    "pyarrow table, folder": lambda path: pq.read_table(path).to_pylist(),
    "pyarrow dataset, hive": lambda path: ds.dataset(path, partitioning="hive").to_table().to_pylist(),
    "pyarrow dataset, plain": lambda path: ds.dataset(path).to_table().to_pylist(),
    "polars, folder": lambda path: pl.read_parquet(path).to_dicts(),
    "polars, glob": lambda path: pl.read_parquet(path / "*.parquet").to_dicts(),
    "polars, lazy and hive": lambda path: pl.scan_parquet(path, hive_partitioning=True).collect().to_dicts(),
    "DuckDB, glob": lambda path: duckdb.sql(f"from '{path}/*.parquet'").to_arrow_table().to_pylist(),
    "DuckDB, below": lambda path: duckdb.sql(f"from read_parquet('{path}/**/*.parquet')").to_arrow_table().to_pylist(),
    "datasets, folder": lambda path: datasets.load_dataset(
        str(path), split="train", cache_dir=path.parent / "c1"
    ).to_list(),
    "datasets, glob": lambda path: datasets.load_dataset(
        "parquet", data_files=f"{path}/*.parquet", split="train", cache_dir=path.parent / "c2"
    ).to_list(),
}


@pytest.mark.parametrize("reader", READERS)
def test_any_reader_of_the_folder_sees_each_row_once(samples, reader):
    found = Counter((row["task"], row["sample_id"], row["method"], row["shard"]) for row in READERS[reader](samples))
    rows = read_samples(samples.parent).to_pylist()
    assert found == Counter((row["task"], row["sample_id"], row["method"], row["shard"]) for row in rows)
    assert len(found) == 5 * 3
