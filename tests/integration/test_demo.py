"""The embedded default, with nothing but what ships in the package."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from adadecode.cli.main import main
from adadecode.demo import HEADS_DIR, MODEL_DIR
from adadecode.runs.folder import read_samples

REPOSITORY = Path(__file__).parents[2]


def test_the_embedded_model_and_heads_fit_in_24_mb():
    files = [file for folder in (MODEL_DIR, HEADS_DIR) for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 24e6


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_embedded_model_decodes_both_domains_with_vanillas_bits(dtype, tmp_path):
    arguments = ["eval", "--local", "--threads", "1", "--limit", "1", "--max-new-tokens", "40", "--dtype", dtype]
    result = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert "parity 2/2, logits 2/2" in result.output
    rows = read_samples(tmp_path / "run").to_pylist()
    assert {row["task"] for row in rows} == {"demo-math", "demo-code"}
    drafting = [row for row in rows if row["method"] == "adadecode"]
    assert sum(row["num_accepted"] for row in drafting) > 0, "real heads must get real drafts accepted"
    assert all(row["layers_per_token"] < 16 for row in drafting if row["num_accepted"])


def test_generate_shows_text_statistics_and_parity():
    arguments = ["generate", "Question: Ann has 3 pens and buys 4 more. How many pens has she?\nAnswer:", "--compare"]
    result = CliRunner().invoke(main, [*arguments, "--max-new-tokens", "40", "--threads", "1"])
    assert result.exit_code == 0, result.output
    assert "tokens equal to vanilla's" in result.output
    assert re.search(r"accepted/drafted layer 0: \d+/\d+, layer 1: \d+/\d+", result.output)


@pytest.mark.slow
def test_the_run_of_make_demo_ends_in_full_parity(tmp_path):
    command = [str(Path(sys.executable).with_name("adadecode")), "eval", "--config", "adadecode/recipes/demo.yaml"]
    command += ["--out", str(tmp_path / "run")]  # a folder of its own: a run that is there already is only reprinted
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "parity 48/48, logits 48/48" in result.stdout
