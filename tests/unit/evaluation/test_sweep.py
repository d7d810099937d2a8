import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from adadecode.cli.main import main
from adadecode.evaluation.cells import Grid, plan_cells
from adadecode.evaluation.sweep import join_cells
from adadecode.report.schema import SCHEMA_VERSION, SWEEP
from adadecode.runs.folder import read_run, read_samples
from tests.folders import save_tiny_heads, save_tiny_model, undo_shard, write_prompts

ABLATION = Path(__file__).parents[3] / "adadecode" / "recipes" / "ablation.yaml"


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("sweep")
    save_tiny_model(folder / "model", num_layers=4)
    save_tiny_heads(folder / "heads", folder / "model", (1, 2, 3))
    write_prompts(folder / "prompts.jsonl", ["w5 w9 w11", "w20"])
    arguments = ["sweep", "--local", "--threads", "1", "--task", "jsonl", "--max-new-tokens", "8"]
    for flag, name in (("--model", "model"), ("--heads", "heads"), ("--data-file", "prompts.jsonl")):
        arguments += [flag, str(folder / name)]
    return arguments


def test_a_sweep_runs_every_cell_into_a_folder_of_its_own_and_a_rerun_computes_nothing(arguments, tmp_path):
    grid = ["--gammas", "0.05,0.5", "--exits", "1,3", "--exits", "2", "--max-drafts", "0,3", "--out", str(tmp_path)]
    result = CliRunner().invoke(main, [*arguments, *grid])
    assert result.exit_code == 0, result.output
    cells = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert len(cells) == 8
    assert "jsonl_gamma-0.05_exits-1-3_drafts-3" in cells
    for name in cells:
        decode = json.loads((tmp_path / name / "run.json").read_text())["config"]["decode"]
        assert f"gamma-{decode['gamma']:g}_exits-{'-'.join(map(str, decode['exits']))}" in name
    table = (tmp_path / "sweep.parquet").read_bytes()
    again = CliRunner().invoke(main, [*arguments, *grid])
    assert again.exit_code == 0
    assert again.output.count("1 done before, 0 to do") == 8
    assert (tmp_path / "sweep.parquet").read_bytes() == table
    assert set(pq.read_table(tmp_path / "sweep.parquet")["cell"].to_pylist()) == set(cells)


@pytest.mark.parametrize(("flag", "value"), [("--gammas", "0.5,x"), ("--max-drafts", "1.5"), ("--exits", "2,b")])
def test_a_grid_that_cannot_be_read_is_one_line_and_computes_nothing(arguments, tmp_path, flag, value):
    result = CliRunner().invoke(main, [*arguments, flag, value, "--out", str(tmp_path / "sweep")])
    assert result.exit_code == 2
    assert value in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "sweep").exists()


def test_a_bad_cell_is_refused_before_the_first_one_runs(arguments, tmp_path):
    result = CliRunner().invoke(main, [*arguments, "--gammas", "0.5,1.5", "--out", str(tmp_path / "sweep")])
    assert result.exit_code == 2
    assert "--gamma 1.5" in result.stderr
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_takes_the_flags_of_a_policy(arguments, tmp_path):
    flags = ["--head", "full", "--gate", "0", "--reject", "0.4", "--ngram", "0.3", "--policy", "paper"]
    result = CliRunner().invoke(main, [*arguments, *flags, "--limit", "1", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    (cell,) = (path for path in tmp_path.iterdir() if path.is_dir())
    decode = read_run(cell)["config"]["decode"]
    assert (decode["reject"], decode["ngram"], decode["policy"]) == (0.4, 0.3, "paper")


@pytest.fixture
def sweep_file(tiny, tmp_path):
    """Writes a sweep file over the tiny folders with `cells`, and returns its path; `changed` replaces its settings."""

    def write(cells: object, **changed: object) -> Path:
        settings = {
            "model": str(tiny.model),
            "heads": str(tiny.heads),
            "task": "jsonl",
            "data_file": str(tiny.prompts),
            "dtype": "float32",
            "threads": 1,
            "local": True,
            "max_new_tokens": 10,
            "gamma": 0.02,
        }
        file = tmp_path / "sweep.yaml"
        file.write_text(yaml.safe_dump(settings | changed | {"cells": cells}, sort_keys=False))
        return file

    return write


@pytest.fixture
def sweep_error(usage_error, tmp_path):
    """The line with which a sweep file is refused; nothing has been computed by then."""

    def refuse(file: Path, *flags: object) -> str:
        line = usage_error("sweep", "--config", file, *flags, "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return line

    return refuse


def test_a_file_of_cells_runs_each_with_its_own_settings_and_ends_in_one_table(cli, sweep_file, tmp_path):
    cells = {
        "adaptive": {"exits": [1, 2]},
        "fixed.2": {"exits": [2], "decode": {"gamma": 0.05}, "max_drafts": 3},
        "original-head": {"heads": "original", "exits": [1, 3]},
        "without-heads": {"heads": None, "methods": ["vanilla", "transformers"]},
        "ngram_only": {"ngram": 0.2, "gamma": 1.0, "reject": 0.5, "repeats": 2},
        "without-verification": {"gamma": 0.0, "methods": ["vanilla", "vanilla-w1", "adadecode-unverified"]},
    }
    file, out = sweep_file(cells), tmp_path / "out"
    result = cli("sweep", "--config", file, "--limit", 4, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in out.iterdir()) == sorted([*cells, "sweep.parquet"])
    decode = {name: read_run(out / name)["config"]["decode"] for name in cells}
    assert (decode["fixed.2"]["exits"], decode["fixed.2"]["gamma"], decode["fixed.2"]["max_drafts"]) == ([2], 0.05, 3)
    assert (decode["adaptive"]["gamma"], decode["adaptive"]["max_drafts"]) == (0.02, 5)
    assert {tuple(row["exits"]) for row in rows_of(out / "original-head", "adadecode")} == {(1, 3)}

    table = pq.read_table(out / "sweep.parquet")
    assert table.replace_schema_metadata(None).schema == SWEEP
    assert table.schema.metadata[b"schema_version"] == str(SCHEMA_VERSION).encode()
    rows = table.to_pylist()
    assert list(dict.fromkeys(row["cell"] for row in rows)) == list(cells)
    assert len(rows) == 4 * 3 + 2 + 3
    for row in rows:
        assert row["lossy"] == (row["method"] == "adadecode-unverified")
        assert row["n"] == (8 if row["cell"] == "ngram_only" else 4)
        if row["method"] == "adadecode":
            assert (row["num_parity_exact"], row["consistency"]) == (row["n"], 1.0)
    printed = result.stdout.rpartition("cell ")[2]
    for name in cells:
        assert name in printed
    assert "(lossy)" in printed

    again = cli("sweep", "--config", file, "--limit", 4, "--out", out)
    assert again.exit_code == 0
    assert again.stdout.count("1 done before, 0 to do") == len(cells)
    assert pq.read_table(out / "sweep.parquet").equals(table)


def rows_of(run: Path, method: str) -> list[dict]:
    return [row for row in read_samples(run).to_pylist() if row["method"] == method]


def test_a_lossy_cell_is_reported_as_such_and_is_no_failure(cli, sweep_file, tmp_path):
    cells = {"unverified": {"gamma": 0.0, "methods": ["vanilla", "adadecode-unverified"]}}
    result = cli("sweep", "--config", sweep_file(cells), "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    rows = rows_of(tmp_path / "out" / "unverified", "adadecode-unverified")
    num_different = sum(row["parity"] != "exact" for row in rows)
    assert num_different > 0, "the test needs wrong drafts"
    assert (
        f"adadecode-unverified: {num_different} of 5 outputs differ from vanilla's (lossy by design)" in result.stdout
    )
    assert "mismatch at output position" not in result.stdout
    assert {row["lossy"] for row in rows} == {True}
    for row in rows:
        assert row["num_accepted"] == row["num_drafted"] > 0
        assert row["num_accepted"] + row["num_rounds"] == row["output_len"] - 1 == 9
        assert row["logits_digest"] is row["logits_equal"] is row["method_margin"] is None
    line = next(row for row in pq.read_table(tmp_path / "out" / "sweep.parquet").to_pylist() if row["lossy"])
    assert line["acceptance_rate"] is None
    assert 0.0 < line["consistency"] < 1.0
    assert cli("verify", tmp_path / "out" / "unverified").exit_code == 0
    assert "(lossy)" in cli("report", tmp_path / "out" / "unverified").stdout


def test_an_interrupted_sweep_is_finished_by_the_same_command(cli, sweep_file, tmp_path):
    file, out = sweep_file({"a": {"gamma": 0.1}, "b": {"gamma": 0.2}}), tmp_path / "out"
    assert cli("sweep", "--config", file, "--shard-size", 2, "--out", out).exit_code == 0
    (out / "sweep.parquet").unlink()
    undo_shard(out / "b", 1)
    # its shards keep their size where none is given
    result = cli("sweep", "--config", file, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "3 done before, 0 to do" in result.stdout
    assert "2 done before, 1 to do" in result.stdout
    assert pq.read_table(out / "sweep.parquet")["n"].to_pylist() == [5] * 6


@pytest.mark.parametrize(
    "flags", [("--gammas", "0.5"), ("--exits", "1"), ("--max-drafts", "2"), ("--tasks", "jsonl")], ids=" ".join
)
def test_cells_beside_a_grid_are_one_line(sweep_error, sweep_file, flags):
    line = sweep_error(sweep_file({"a": {"gamma": 0.1}}), *flags)
    assert "names its cells: drop --tasks, --gammas, --exits and --max-drafts, or its `cells`" in line


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({}, "`cells` must be a mapping of names to settings"),
        (None, "`cells` must be a mapping of names to settings"),
        ([{"gamma": 0.5}], "`cells` must be a mapping of names to settings"),
        ({"a": {"gamma": 0.5}, "B": {"gamma": 0.5}}, "cell 'B': a cell's name is its folder's, of a-z, 0-9 and . _ -"),
        ({"a/b": {"gamma": 0.5}}, "cell 'a/b': a cell's name"),
        ({"..": {"gamma": 0.5}}, "cell '..': a cell's name"),
        ({"": {"gamma": 0.5}}, "cell '': a cell's name"),
        ({"sweep.parquet": {"gamma": 0.5}}, "cell 'sweep.parquet': a cell's name"),
        ({"a": {"gamma": 0.5}, "b": {}}, "cell 'b': expected a mapping of settings that differ"),
        ({"a": None}, "cell 'a': expected a mapping of settings that differ"),
        ({"a": 0.5}, "cell 'a': expected a mapping of settings that differ"),
        ({"a": {"decode": 0.5}}, "`decode` must be a mapping of settings"),
        ({"a": {"gamma": 0.5, "decode": {"gamma": 0.5}}}, "`gamma` stands in `decode` too"),
        ({"a": {"gamma": 0.5}, "b": {"gama": 0.5}}, "there is no setting `gama`; did you mean `gamma`?"),
        ({"a": {"gamma": 0.5}, "b": {"gamma": 1.5}}, ": gamma '1.5': the exit threshold must lie in [0, 1]"),
        ({"a": {"gamma": 0.5}, "b": {"heads": "none"}}, "cell 'b': --heads 'none': not a folder"),
        ({"a": {"gamma": 0.5}, "b": {"exits": [1, 3]}}, "cell 'b': --exits 1,3: there are no heads at [3]; those in '"),
        ({"a": {"heads": "original", "head": "shortlist"}}, "line 12, line 13: --heads original is the model's own"),
        ({"a": {"methods": ["adadecode"]}}, ": methods adadecode: methods must be distinct"),
        ({"a": {"cells": {"b": {"gamma": 0.5}}}}, "there is no setting `cells`"),
    ],
    ids=str,
)
def test_a_bad_file_of_cells_is_one_line_before_anything_runs(sweep_error, sweep_file, cells, message):
    file = sweep_file(cells)
    line = sweep_error(file)
    assert message in line
    assert str(file) in line or "cell " in line


def test_a_flag_wins_over_the_file_and_its_cells(sweep_file):
    cells = plan_cells(sweep_file({"a": {"exits": [1], "reject": 0.4}}), Grid(), {"reject": 0.6, "limit": None})
    assert [(cell.name, cell.config.decode.reject, cell.config.decode.exits) for cell in cells] == [("a", 0.6, (1,))]


def test_a_null_in_a_cell_takes_a_setting_of_the_file_back(sweep_file):
    file = sweep_file({"with": {"gamma": 0.5}, "without": {"ngram": None, "exits": None}}, ngram=0.3, exits=[1])
    settings = [(cell.config.decode.ngram, cell.config.decode.exits) for cell in plan_cells(file, Grid(), {})]
    assert settings == [(0.3, (1,)), (None, None)]


def test_eval_names_the_command_that_takes_cells(usage_error, sweep_file, tmp_path):
    line = usage_error("eval", "--config", sweep_file({"a": {"gamma": 0.5}}), "--out", tmp_path / "run")
    assert "`cells` are a sweep's: run the file with `adadecode sweep`" in line


def test_the_ablation_is_the_papers_policy_in_every_cell_and_lossy_in_one():
    cells = {cell.name: cell.config for cell in plan_cells(ABLATION, Grid(), {"local": True, "limit": 100})}
    assert list(cells) == [
        "adaptive",
        *(f"fixed-layer-{layer}" for layer in (4, 8, 12)),
        *("original-head", "mixed-heads", "full-head", "without-verification"),
    ]
    for name, config in cells.items():
        decode = config.decode
        assert (config.model, config.task, config.limit) == ("demo", "gsm8k", 100)
        assert (decode.gamma, decode.head, decode.gate, decode.reject, decode.ngram) == (0.75, "full", 0.0, None, None)
        assert (decode.max_drafts, decode.max_new_tokens) == (5, 256)
        layer = name.removeprefix("fixed-layer-")
        assert decode.exits == ((4, 8, 12) if layer == name else (int(layer),))
        method = "adadecode-unverified" if name == "without-verification" else "adadecode"
        assert config.methods == ("vanilla", "vanilla-w1", method)
    assert cells["original-head"].heads == "original"
    assert {name: config.heads for name, config in cells.items() if config.heads not in (None, "original")} == {
        "mixed-heads": "build/demo/ablation/mixed",
        "full-head": "build/demo/ablation/math-full",
    }


def test_cells_are_joined_in_their_order_with_their_names(summaries):
    table = join_cells(summaries)
    assert table.schema == SWEEP
    assert table["cell"].to_pylist() == ["adaptive", "adaptive", "lossy", "lossy"]
    assert table.drop_columns("cell").slice(2).equals(summaries["lossy"])


def test_a_sweep_without_rows_is_an_empty_table():
    assert join_cells({}).schema == SWEEP
