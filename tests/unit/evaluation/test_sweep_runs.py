"""Sweeps as they run: what a failed cell leaves, which models are loaded, what a killed one has done, what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from adadecode.evaluation import shelf
from adadecode.runs.folder import read_run, read_samples
from tests.folders import undo_shard, write_prompts

RECIPES = Path(__file__).parents[3] / "adadecode" / "recipes"


@pytest.fixture
def sweep_of(tiny, tmp_path):
    """Writes a sweep file over the tiny folders; returns the arguments of a command that runs it into `out`."""

    def write(cells: dict, **changed: object) -> list[object]:
        settings = {
            "model": str(tiny.model),
            "heads": str(tiny.heads),
            "task": "jsonl",
            "data_file": str(tiny.prompts),
            "dtype": "float32",
            "threads": 1,
            "local": True,
            "max_new_tokens": 10,
            "methods": ["vanilla", "adadecode"],
            "gamma": 0.02,
            "shard_size": 2,
        }
        file = tmp_path / "sweep.yaml"
        file.write_text(yaml.safe_dump(settings | changed | {"cells": cells}, sort_keys=False))
        return ["sweep", "--config", file, "--out", tmp_path / "out"]

    return write


def test_a_cell_that_fails_leaves_the_others_to_run_and_the_worst_exit_code(cli, sweep_of, tmp_path):
    long = write_prompts(tmp_path / "long.jsonl", ["w5 " * 1500])
    cells = {
        "absent": {"data_file": str(tmp_path / "none.jsonl")},
        "too-long": {"data_file": str(long), "max_errors": 0},
        "good": {"exits": [1]},
    }
    arguments = sweep_of(cells)
    result = cli(*arguments)
    assert result.exit_code == 2, result.stderr
    assert "adadecode: cell absent failed: " in result.stderr
    assert "none.jsonl" in result.stderr
    assert "adadecode: cell too-long failed: " in result.stderr
    assert "2 of 3 cells did not end well: absent, too-long" in result.stderr
    rows = pq.read_table(tmp_path / "out" / "sweep.parquet").to_pylist()
    assert {(row["cell"], row["method"], row["n"], row["num_errors"]) for row in rows} == {
        *(("too-long", method, 0, 1) for method in ("vanilla", "adadecode")),
        *(("good", method, 5, 0) for method in ("vanilla", "adadecode")),
    }
    write_prompts(tmp_path / "none.jsonl", ["w5 w6"])  # what was missing is there now
    again = cli(*arguments)
    assert again.exit_code == 1, again.stderr
    assert "1 of 3 cells did not end well: too-long" in again.stderr
    assert "3 done before, 0 to do" in again.stdout


def test_a_fault_of_the_program_in_one_cell_is_that_cells_too(cli, sweep_of, tmp_path, monkeypatch):
    arguments = sweep_of({"a": {"exits": [1]}, "b": {"exits": [2]}})
    load = shelf.load_model

    def faulty(settings, flag):
        monkeypatch.setattr(shelf, "load_model", load)
        raise RuntimeError("a slip of the program")

    monkeypatch.setattr(shelf, "load_model", faulty)
    result = cli(*arguments)
    assert result.exit_code == 1
    assert "adadecode: cell a failed:" in result.stderr
    assert "RuntimeError: a slip of the program" in result.stderr
    assert set(pq.read_table(tmp_path / "out" / "sweep.parquet")["cell"].to_pylist()) == {"b"}


def test_a_model_stays_loaded_between_the_cells_that_share_it(cli, sweep_of, tiny, tmp_path, monkeypatch):
    loaded: list[tuple[str, str]] = []
    load = shelf.load_model

    def counted(settings, flag):
        loaded.append((flag, settings.dtype))
        return load(settings, flag)

    monkeypatch.setattr(shelf, "load_model", counted)
    speculative = {"methods": ["vanilla", "speculative"], "draft_model": str(tiny.model)}
    cells = {
        "a": {"exits": [1]},
        "other": {"dtype": "bfloat16"},
        "b": {"exits": [2], "max_drafts": 9},  # another width
        "c": speculative,
        "d": speculative | {"draft_gamma": 0.5},
    }
    result = cli(*sweep_of(cells))
    assert result.exit_code == 0, result.stderr
    assert loaded == [("--model", "float32"), ("--draft-model", "float32"), ("--model", "bfloat16")]
    table = pq.read_table(tmp_path / "out" / "sweep.parquet")
    assert list(dict.fromkeys(table["cell"].to_pylist())) == list(cells)
    # and decodes as one that was loaded for the run alone
    alone = cli(
        "eval", *tiny.flags(exits=2, max_drafts=9), "--methods", "vanilla,adadecode", "--local", "--out", tmp_path / "b"
    )
    assert alone.exit_code == 0, alone.stderr
    assert digests(tmp_path / "b") == digests(tmp_path / "out" / "b")


def digests(run: Path) -> list[tuple]:
    names = ("sample_id", "method", "output_token_ids", "logits_digest", "draft_depths")
    return sorted(
        tuple(map(str, row)) for row in zip(*(read_samples(run)[name].to_pylist() for name in names), strict=True)
    )


def test_a_model_whose_files_changed_is_loaded_anew(tmp_path):
    file = tmp_path / "config.json"
    file.write_text("{}")
    before = shelf.files_of(str(tmp_path))
    assert shelf.files_of(str(tmp_path)) == before
    file.write_text("{ }")
    assert shelf.files_of(str(tmp_path)) != before
    assert shelf.files_of("some/hub-id") == ()


def test_a_dry_run_says_what_there_is_of_each_cell_and_changes_nothing(cli, sweep_of, tmp_path):
    cells = {"done": {"gamma": 0.1}, "begun": {"gamma": 0.2}, "new": {"gamma": 0.3, "exits": [1]}}
    out = tmp_path / "out"
    assert cli(*sweep_of({name: cells[name] for name in ("done", "begun")})).exit_code == 0
    undo_shard(out / "begun", 1)
    (out / "begun" / "run.json").write_text(json.dumps(read_run(out / "begun") | {"status": "running"}))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    result = cli(*sweep_of(cells), "--dry-run")
    assert result.exit_code == 0, result.stderr
    methods = "task jsonl, methods vanilla,adadecode"
    assert result.stdout.splitlines() == [
        f"cell 1/3: done: complete; {methods}; gamma 0.1, exits none",
        f"cell 2/3: begun: begun, 2 shards done; {methods}; gamma 0.2, exits none",
        f"cell 3/3: new: new; {methods}; gamma 0.3, exits 1",
        "3 cells: 1 complete, 1 begun, 1 new; nothing was decoded",
    ]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_folder_with_results_of_other_settings_is_refused_before_any_cell_runs(cli, usage_error, sweep_of, tmp_path):
    assert cli(*sweep_of({"b": {"gamma": 0.1}})).exit_code == 0
    line = usage_error(*sweep_of({"a": {"gamma": 0.1}, "b": {"gamma": 0.2}}))
    assert "cell 'b': " in line
    assert "has results of other settings (different: decode)" in line
    assert not (tmp_path / "out" / "a").exists()


def test_a_sweep_that_was_killed_does_nothing_again_that_was_done(cli, sweep_of, tmp_path):
    arguments = [*map(str, sweep_of({name: {"exits": [1]} for name in "abc"}, shard_size=1, max_new_tokens=200))]
    out = tmp_path / "out"
    sweep = subprocess.Popen(
        [sys.executable, "-m", "adadecode", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        until = time.monotonic() + 120
        while not list((out / "b" / "commits").glob("*.json")):
            assert sweep.poll() is None, sweep.stderr and sweep.stderr.read()
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        sweep.send_signal(signal.SIGKILL)
        sweep.communicate()
    assert sweep.returncode == -signal.SIGKILL
    assert not (out / "sweep.parquet").exists()
    done = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.glob("*/commits/*.json")}
    assert {path.parts[-3] for path in done} >= {"a", "b"}
    result = cli(*arguments)
    assert result.exit_code == 0, result.stderr
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in done} == done
    assert "5 done before, 0 to do" in result.stdout
    assert {
        path.name: len(list(path.glob("commits/*.json"))) for path in out.iterdir() if path.is_dir()
    } == dict.fromkeys("abc", 5)
    assert pq.read_table(out / "sweep.parquet")["n"].to_pylist() == [5] * 6


def test_the_sweep_of_methods_and_tasks_that_ships_runs(cli, tmp_path):
    flags = ["--local", "--threads", "1", "--limit", "1", "--max-new-tokens", "12", "--out", tmp_path / "out"]
    result = cli("sweep", "--config", RECIPES / "methods.yaml", *flags)
    assert result.exit_code == 0, result.stderr
    rows = pq.read_table(tmp_path / "out" / "sweep.parquet").to_pylist()
    methods = read_run(tmp_path / "out" / "task-demo-code")["config"]["methods"]
    assert {(row["cell"], row["method"]) for row in rows} == {
        (f"task-{task}", method) for task in ("demo-math", "demo-code") for method in methods
    }
    exact = [row for row in rows if row["method"] in ("adadecode", "ngram", "layerskip")]
    assert {(row["num_parity_exact"], row["n"]) for row in exact} == {(1, 1)}
