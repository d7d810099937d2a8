"""What a submitted job runs, and the exit code it ends with; no cluster."""

import shlex
from typing import Any

import pytest
from ray.dashboard.modules.job.pydantic_models import JobDetails, JobType
from ray.job_submission import JobStatus

from adadecode.cli.main import main
from adadecode.cli.submit import with_absolute_out
from ray_jobs.submit import entrypoint, exit_code
from tests.command_lines import parse, program_commands


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("eval", "--task demo --workers 4"),
        ("train-heads", "--task gsm8k --workers 4 --exits 4,8"),
        ("sweep", "--task demo --gammas 0.6,0.75 --workers 4"),
        ("tune", "--task demo-math --limit 8"),
    ],
)
def test_a_job_runs_the_module_with_the_same_command_and_out_made_absolute(command, flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = with_absolute_out([*flags.split(), "--out", "an out"])
    job = entrypoint(command, arguments)
    assert job.startswith(f"python -m adadecode {command} --task ")
    assert [[command, *arguments]] == list(program_commands(job))
    assert str(parse([command, *arguments])["out"]) == str(tmp_path / "an out")


def test_submit_takes_the_commands_that_make_results():
    submit = main.commands["submit"]
    (choice,) = (parameter.type for parameter in submit.params if parameter.name == "command")
    assert list(choice.choices) == ["eval", "train-heads", "sweep", "tune"]


@pytest.mark.parametrize("out", ["s3://bucket/run", "gs://bucket/run"])
def test_an_out_in_a_bucket_stays_as_it_is(out):
    assert shlex.split(entrypoint("sweep", with_absolute_out([f"--out={out}"])))[-2:] == ["--out", out]


@pytest.mark.parametrize(
    ("status", "driver_exit_code", "expected"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.FAILED, 3, 3),
        (JobStatus.FAILED, None, 1),
        (JobStatus.STOPPED, None, 1),
    ],
)
def test_the_exit_code_is_the_drivers_own_and_1_where_there_is_none(status, driver_exit_code, expected):
    details: Any = JobDetails  # most of its fields have defaults that types do not show
    details = details(type=JobType.SUBMISSION, entrypoint="x", status=status, driver_exit_code=driver_exit_code)
    assert exit_code(details) == expected
