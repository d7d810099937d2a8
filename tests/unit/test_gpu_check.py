"""tests/gpu/check.sh without a GPU: an interpreter that pretends to be there, one of whose checks fails."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "gpu" / "check.sh"
STAND_IN = r"""#!/usr/bin/env bash
case "$*" in
-c*) echo "${DEVICES:-1}" ;;
tests/gpu/facts.py) printf '# gpu-stand-in-1234567\n\n| | |\n|---|---|\n| GPU | stand-in |\n' ;;
"-m pytest "*) echo "2 failed"; exit 1 ;;
"-m adadecode doctor "*) echo "warning    gpus: of several kinds"; exit 1 ;;
"-m adadecode bench "*) while [ "$1" != --out ]; do shift; done; echo "tokens/s" > "$2/bench.txt" ;;
*) echo "made" ;;
esac
"""
CHECKS = ["doctor", "pytest", "eval-demo", "eval-demo-drawn", "tune-demo"]


@pytest.fixture
def check(tmp_path):
    """Runs the script into a folder; `devices` are what it sees."""
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)

    def run(out: Path, *only: str, devices: int = 1) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PYTHON": str(python), "DEVICES": str(devices)}
        return subprocess.run([SCRIPT, out, *only], env=environment, capture_output=True, text=True, timeout=60)

    return run


def test_a_check_that_fails_is_told_and_the_others_go_on_and_the_folder_says_of_what_it_is(check, tmp_path):
    out = tmp_path / "checks"
    done = check(out)
    assert (done.returncode, done.stderr) == (1, "")
    assert "pytest: exit code 1 after " in done.stdout
    assert "\n2 failed\n" in done.stdout, "the end of its log"
    assert done.stdout.endswith(f"failed: pytest; 15 others passed; results in {out}\n")
    made = {folder.name for folder in out.iterdir() if folder.is_dir()}
    assert made > set(CHECKS)
    assert len(list(out.glob("*/bench.txt"))) == len(made) - len(CHECKS)
    readme = (out / "README.md").read_text()
    assert readme.startswith("# gpu-stand-in-1234567\n\n| | |\n|---|---|\n| GPU | stand-in |\n")
    rows = [line.split(" | ") for line in readme.splitlines() if line.startswith("| `")]
    assert {row[0].strip("| `") for row in rows} == made
    assert {row[0].strip("| `"): row[1] for row in rows} == {
        **dict.fromkeys(made, "0"),
        "pytest": "1",
        "doctor": "0 (with warnings)",
    }
    assert "`python -m adadecode eval --local --device cuda " in readme
    assert readme.endswith("\nfailed: pytest; 15 others passed\n\n")


def test_what_is_there_is_made_again_only_where_it_is_named(check, tmp_path):
    out = tmp_path / "checks"
    assert check(out, "eval-demo").returncode == 0
    (out / "eval-demo" / "old").touch()
    refused = check(out)
    assert refused.returncode == 1
    assert refused.stdout == (
        f"{out} has a README.md of earlier checks: give another folder, or name the checks that are to be made again\n"
    )
    again = check(out, "eval-demo", "pytest")
    assert again.returncode == 1
    assert not (out / "eval-demo" / "old").exists()
    assert not (out / "doctor").exists()
    assert (out / "README.md").read_text().count("# gpu-stand-in") == 1
    unknown = check(out, "eval")
    assert unknown.returncode == 1
    assert unknown.stdout.endswith(f"no check is called eval; results in {out}\n")


def test_without_a_device_nothing_is_done(check, tmp_path):
    done = check(tmp_path / "checks", devices=0)
    assert (done.returncode, (tmp_path / "checks").exists()) == (0, False)
    assert "no CUDA device is visible" in done.stdout
