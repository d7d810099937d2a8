"""Cells of a sweep: those of a grid in a file, how many may be made, which collide, and what is told without decoding."""

import re
from pathlib import Path

import pytest
import yaml

from adadecode.evaluation.cells import Grid, plan_cells, value_name, varying

RECIPES = Path(__file__).parents[3] / "adadecode" / "recipes"
SWEEPS = {"gamma": 11, "layerskip": 16, "methods": 2}


@pytest.fixture
def file_of(tmp_path):
    def write(**settings: object) -> Path:
        file = tmp_path / "sweep.yaml"
        file.write_text(yaml.safe_dump(settings, sort_keys=False))
        return file

    return write


def test_a_grid_in_a_file_is_a_cell_for_each_combination_named_by_what_varies(file_of):
    file = file_of(task="demo-math", grid={"gamma": [0.5, 0.75], "exits": [[4], [4, 8]]})
    cells = {cell.name: cell.config for cell in plan_cells(file, Grid(), {"limit": 3})}
    assert list(cells) == [f"gamma-{gamma}_exits-{exits}" for gamma in (0.5, 0.75) for exits in ("4", "4-8")]
    config = cells["gamma-0.75_exits-4-8"]
    assert (config.decode.gamma, config.decode.exits, config.task, config.limit) == (0.75, (4, 8), "demo-math", 3)
    assert varying(plan_cells(file, Grid(), {}))[1] == "gamma 0.5, exits 4-8"


def test_any_setting_can_vary_and_every_named_cell_in_it(file_of):
    cells = {"tuned": {"policy": "demo"}, "paper": {"policy": "paper", "decode": {"reject": 0.5}}}
    grid = {"methods": [["vanilla", "ngram"], "vanilla,adadecode"], "dtype": ["float32", "bfloat16"]}
    planned = plan_cells(file_of(cells=cells, grid=grid), Grid(), {})
    assert len(planned) == 8
    last = planned[-1]
    assert last.name == "paper_methods-vanilla-adadecode_dtype-bfloat16"
    assert (last.config.decode.policy, last.config.decode.reject, last.config.dtype) == ("paper", 0.5, "bfloat16")
    assert last.config.methods == ("vanilla", "adadecode")


@pytest.mark.parametrize(
    ("value", "name"),
    [
        *(("0.50", "0.50"), (["4", "8"], "4-8"), ([], "none"), (None, "none"), ("Qwen/Qwen3-0.6B", "qwen3-0.6b")),
        *(("build/heads/", "heads"), ("Be brief.", "be-brief."), ("\n\n", "")),
    ],
)
def test_a_value_in_a_name_is_of_signs_that_a_folder_may_have(value, name):
    assert value_name(value) == name


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"grid": {}}, "`grid` must be a mapping of settings to lists, such as `gamma: [0.5, 0.75]`"),
        ({"grid": [0.5]}, "`grid` must be a mapping of settings to lists"),
        ({"grid": {"gamma": 0.5}}, "`gamma` of a grid is a list of values, such as [0.5, 0.75]"),
        ({"grid": {"gamma": []}}, "`gamma` of a grid is a list of values"),
        ({"grid": {"gama": [0.5]}}, "there is no setting `gama`; did you mean `gamma`?"),
        ({"grid": {"gamma": [0.5, 1.5]}}, "cell 'gamma-1.5': "),
        ({"grid": {"gamma": [0.5, 0.5]}}, "two cells are called 'gamma-0.5' and the same settings"),
        ({"grid": {"heads": ["a/math", "b/math"]}}, "two cells are called 'heads-math' and other settings"),
        (
            {"cells": {"a": {"gamma": 0.5}}, "grid": {"gamma": [0.1]}},
            "cell 'a' has its own `gamma`, which the grid varies; keep one",
        ),
        ({"grid": {"stop_strings": [["x" * 250]]}}, "a name of more than 200 signs"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_grid_that_cannot_be_is_one_line_before_anything_runs(usage_error, file_of, settings, said, tmp_path):
    line = usage_error("sweep", "--config", file_of(**settings), "--local", "--out", tmp_path / "out")
    assert said in line
    assert not (tmp_path / "out").exists()


def test_flags_beside_a_grid_that_varies_the_same_are_one_line(usage_error, file_of, tmp_path):
    file = file_of(grid={"task": ["demo-math", "demo-code"]})
    out = ("--out", tmp_path / "out")
    assert "the grid varies `task`, and a flag sets it; keep one" in usage_error(
        "sweep", "--config", file, "--task", "demo", *out
    )
    assert "has a grid of its own: drop --tasks, --gammas" in usage_error(
        "sweep", "--config", file, "--gammas", "0.5", *out
    )
    assert "`grid` is a sweep's: run the file with `adadecode sweep`" in usage_error("eval", "--config", file)


def test_values_of_flags_that_give_one_folder_are_refused(usage_error, tmp_path):
    line = usage_error("sweep", "--gammas", "0.5,0.50000001", "--local", "--out", tmp_path / "out")
    assert re.search("two cells are called 'demo_gamma-0.5_exits-[0-9-]+_drafts-5' and other settings", line)


@pytest.mark.parametrize("kind", ["flags", "file"])
def test_thousands_of_cells_are_told_before_one_is_made_and_take_a_yes(usage_error, file_of, kind, tmp_path):
    gammas = [idx / 10_000 for idx in range(100)]
    if kind == "file":
        flags = ["--config", file_of(grid={"gamma": gammas, "max_drafts": [*range(1, 6)] * 20})]
    else:
        flags = ["--gammas", ",".join(map(str, gammas)), "--max-drafts", ",".join(["1"] * 100)]
    line = usage_error("sweep", *flags, "--local", "--out", tmp_path / "out")
    assert "the sweep has 10,000 cells, each a run: more than 1,000 take --yes; --dry-run lists them" in line
    flags = ["--config", file_of(grid={"gamma": gammas * 10, "max_drafts": [1] * 10, "repeats": [1] * 11})]
    line = usage_error("sweep", *flags, "--yes", "--local", "--out", tmp_path / "out")
    assert "the sweep has 110,000 cells, each a run of its own: leave out values, 100,000 at most" in line


def test_a_yes_lets_them_be_planned(file_of):
    file = file_of(grid={"gamma": [idx / 1001 for idx in range(1001)]}, policy="paper")
    assert len(plan_cells(file, Grid(), {}, are_meant=True)) == 1001


@pytest.mark.parametrize(("name", "num_cells"), SWEEPS.items())
def test_a_sweep_that_ships_is_valid_as_it_stands(cli, name, num_cells, tmp_path):
    out = tmp_path / "out"
    result = cli("sweep", "--config", RECIPES / f"{name}.yaml", "--local", "--dry-run", "--out", out)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == num_cells + 1
    assert lines[-1] == f"{num_cells} cells: {num_cells} new; nothing was decoded"
    assert not out.exists()


def test_every_sweep_that_ships_is_known_here():
    swept = [file.stem for file in RECIPES.glob("*.yaml") if "\ngrid:" in file.read_text()]
    assert sorted(swept) == sorted(SWEEPS)


def test_gamma_goes_from_always_to_never_in_the_papers_policy():
    configs = [cell.config for cell in plan_cells(RECIPES / "gamma.yaml", Grid(), {})]
    assert [config.decode.gamma for config in configs] == [idx / 10 for idx in range(11)]
    assert {(config.decode.ngram, config.decode.reject, config.decode.head) for config in configs} == {
        (None, None, "full")
    }
