import json

import pytest
from click.testing import CliRunner

from adadecode.cli import main
from tests.folders import save_tiny_heads, save_tiny_model, write_prompts


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
    cells = sorted(path.name for path in tmp_path.iterdir())
    assert len(cells) == 8
    assert "jsonl_gamma-0.05_exits-1-3_drafts-3" in cells
    for name in cells:
        decode = json.loads((tmp_path / name / "run.json").read_text())["config"]["decode"]
        assert f"gamma-{decode['gamma']:g}_exits-{'-'.join(map(str, decode['exits']))}" in name
    again = CliRunner().invoke(main, [*arguments, *grid])
    assert again.exit_code == 0
    assert again.output.count("1 done before, 0 to do") == 8


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
