"""What a submitted job runs, how it is named, what is never stored with it; no cluster."""

import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from adadecode.cli.main import main
from adadecode.cli.submit import SUBMITTED, with_absolute_out
from adadecode.errors import UsageError
from ray_jobs import dashboard, packing
from ray_jobs import submit as submitting
from ray_jobs.dashboard import ADDRESS_VARIABLES, open_dashboard
from ray_jobs.submit import (
    RAY_LIBRARY,
    RUN_KEY,
    Submission,
    active_job,
    check_no_secret,
    free_id,
    read_requirements,
    refusal,
    run_name,
    runtime_env,
    submit_job,
)
from tests.command_lines import parse, program_commands
from tests.dashboard import Dashboard, record
from tests.planted_secrets import VARIABLES, found_in

REPOSITORY = Path(__file__).parents[3]


def submission(command: str, arguments: list[str], **given: object) -> Submission:
    with_out = with_absolute_out(arguments)
    return Submission(command, with_out, with_out[with_out.index("--out") + 1], **{"most_mib": 100} | given)


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("eval", "--task demo --workers 4"),
        ("train-heads", "--task gsm8k --workers 4 --exits 4,8"),
        ("sweep", "--task demo --gammas 0.6,0.75 --workers 4"),
        ("tune", "--task demo-math --limit 8"),
        ("certify", "--baseline http://a:8000 --candidate http://b:8000 --task demo"),
    ],
)
def test_a_job_runs_the_module_with_the_same_command_and_out_made_absolute(command, flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = submission(command, [*flags.split(), "--out", "an out"]).entrypoint
    (words,) = program_commands(job)
    assert words[0] == command
    assert str(parse(words)["out"]) == str(tmp_path / "an out")


def test_submit_takes_the_commands_that_make_results():
    (choice,) = (parameter.type for parameter in main.commands["submit"].params if parameter.name == "command")
    assert tuple(choice.choices) == SUBMITTED == ("eval", "sweep", "train-heads", "tune", "certify")


@pytest.mark.parametrize("out", ["s3://bucket/run", "gs://bucket/run"])
def test_an_out_in_a_bucket_stays_as_it_is(out):
    assert shlex.split(submission("sweep", [f"--out={out}"]).entrypoint)[-2:] == ["--out", out]


def test_a_job_runs_on_the_interpreter_whose_ray_its_parent_has_loaded(tmp_path):
    """Its shell asks the process above it, here one that has Ray's library and no python on its PATH."""
    code = """
import os, subprocess, sys, ray_jobs.submit, adadecode.cli.jobs
shell = sys.argv[1].replace("exec python -m adadecode", "command -v python; printf '%s\\n'")
subprocess.run(shell, shell=True, env={"PATH": "/usr/bin:/bin"}, check=True)
print(*{name.split(".")[0] for name in sys.modules} & {"torch", "transformers", "datasets"})
"""
    entrypoint = submission("eval", ["--out", str(tmp_path / "a b")]).entrypoint
    command = [sys.executable, "-c", code, entrypoint]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    python, *words, heavy = done.stdout.splitlines()
    assert Path(python).parent.resolve() == Path(sys.executable).parent.resolve()
    assert words == ["eval", "--out", str(tmp_path / "a b")]
    assert heavy == "", "and submit loads no engine"


@pytest.mark.parametrize(
    ("library", "found"),
    [
        ("/opt/a b/.venv/lib/python3.11/site-packages/ray/_raylet.so", "/opt/a b/.venv/bin:"),
        ("/opt/v/lib64/python3.12/site-packages/ray/_raylet.so", "/opt/v/bin:"),
        ("/usr/local/lib/python3.11/dist-packages/ray/_raylet.so", "/usr/local/bin:"),
        ("/usr/lib/python3.11/lib-dynload/_json.so", ""),
    ],
)
def test_the_interpreter_is_found_wherever_a_system_puts_its_packages(library, found):
    line = f"7f00-7f01 r-xp 00000000 08:01 42    {library}\n"
    assert (
        subprocess.run(["sed", "-n", RAY_LIBRARY], input=line, capture_output=True, text=True).stdout.strip() == found
    )


@pytest.mark.parametrize(
    ("out", "name"),
    [
        ("/shared/results/qwen3-gsm8k", "qwen3-gsm8k"),
        ("/shared/results/demo.1_x/", "demo.1_x"),
        ("s3://bucket/folder/run 7", "run-7"),
        ("/r/..h\u00fctte \x1b[2J", "h-tte-2J"),
        ("/r/\u00fc", "run"),
        (f"/r/{'x' * 300}", "x" * 80),
    ],
)
def test_a_job_has_the_name_of_its_run(out, name):
    assert run_name(out) == name


def test_an_id_that_was_used_gets_a_number():
    assert free_id("demo", {"other", None}) == "demo"
    assert free_id("demo", {"demo", "demo-2", "demo-4"}) == "demo-3"


def test_a_run_that_runs_is_followed_and_one_that_ended_or_another_of_the_name_is_not():
    mine, other = submission("eval", ["--out", "/a/demo"]), submission("eval", ["--out", "/b/demo"])
    assert mine.run_key != other.run_key
    assert submission("eval", ["--out", "s3://b/x/"]).run_key == submission("eval", ["--out", "s3://b/x"]).run_key
    with Dashboard() as there:
        there.records = {
            "demo": record("demo", status="STOPPED", metadata={RUN_KEY: mine.run_key}),
            "demo-2": record("demo-2", metadata={RUN_KEY: other.run_key}),
            "demo-3": record("demo-3", status="PENDING", metadata={RUN_KEY: mine.run_key}),
        }
        jobs = there.client().list_jobs()
    assert active_job(jobs, mine.run_key) == "demo-3"
    assert active_job(jobs, other.run_key) == "demo-2"
    assert active_job(jobs[:2], mine.run_key) is None


def test_a_folder_that_is_too_large_is_refused_before_anything_is_sent(tmp_path):
    (tmp_path / "model.bin").write_bytes(bytes(2 * packing.MIB))
    job = submission("eval", ["--out", "/a/b"], working_dir=tmp_path, most_mib=1)
    with Dashboard() as there, pytest.raises(UsageError, match=r"model.bin \(2.0 MiB\).* or give --max-mib 2"):
        submit_job(there.client(), job, there.address, print)


def test_a_job_that_was_taken_while_the_connection_broke_is_found_and_not_made_twice(monkeypatch):
    monkeypatch.setattr(submitting, "POLL_S", 0.01)
    said = []
    with Dashboard() as there:
        there.on_submit = lambda number: None
        submitted = submit_job(there.client(), submission("eval", ["--out", "/a/b"]), there.address, said.append)
    assert (submitted.job_id, len(there.submitted)) == ("b", 1)
    assert "".join(said).startswith("the connection broke; trying again for 60 s")


@pytest.mark.parametrize(
    ("refusals", "said"),
    [
        ([b"No available agent to submit job"] * 2, None),
        ([b"ValueError: Job with submission_id b already exists."], None),
        ([b"ValueError: the folder already exists."], "the folder already exists"),
        ([b"ValueError: Job with submission_id b already exists."] * 1000, "b already exists"),
    ],
)
def test_what_may_pass_is_tried_again_for_a_while(refusals, said, monkeypatch):
    monkeypatch.setattr(submitting, "POLL_S", 0.01)
    monkeypatch.setattr(submitting, "RETRY_S", 0.2)
    with Dashboard() as there:
        there.on_submit = lambda number: refusals[number] if number < len(refusals) else b""
        job = submission("eval", ["--out", "/a/b"])
        if said is None:
            monkeypatch.setattr(submitting, "RETRY_S", 60.0)
            assert submit_job(there.client(), job, there.address, print).is_new
            assert len(there.submitted) == len(refusals) + 1
        else:
            with pytest.raises(UsageError, match=said):
                submit_job(there.client(), job, there.address, print)
            assert 1 <= len(there.submitted) < 1000


def test_a_connection_that_stays_broken_says_that_the_job_may_have_been_taken(monkeypatch):
    monkeypatch.setattr(submitting, "POLL_S", 0.01)
    monkeypatch.setattr(submitting, "RETRY_S", 0.1)
    with Dashboard() as there:
        client, there.is_down = there.client(), True
        with pytest.raises(
            UsageError, match="broke, and the cluster may have taken the job: the same command follows it"
        ):
            submit_job(client, submission("eval", ["--out", "/a/b"]), there.address, print)


def test_the_packages_of_a_job_are_those_of_the_file(tmp_path):
    file = tmp_path / "constraints.txt"
    file.write_text("# pinned\n\nregex==2026.11.15  # fast\n--extra-index-url https://example.org/simple\n")
    job = submission("eval", ["--out", "/a/b"], requirements=file)
    assert runtime_env(job, tmp_path, print)["pip"] == {
        "packages": ["regex==2026.11.15", "--extra-index-url https://example.org/simple"]
    }
    assert job.entrypoint == "exec python -m adadecode eval --out /a/b", "the python of the environment made for it"
    assert len(read_requirements(REPOSITORY / "constraints.txt")) > 50


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("-r other.txt", "names a file of this machine"),
        ("-e .", "names a file of this machine"),
        ("./wheels/x.whl", "names a file of this machine"),
        ("pkg @ file:///home/x.whl", "names a file of this machine"),
        ("--index-url https://user:planted@example.org/simple", "has a user name or a password"),
        ("# nothing", "names no package"),
    ],
)
def test_requirements_that_a_cluster_cannot_install_or_may_not_know_are_one_line(tmp_path, line, said):
    file = tmp_path / "requirements.txt"
    file.write_text(f"{line}\n")
    with pytest.raises(UsageError, match=said) as caught:
        read_requirements(file)
    assert "planted" not in str(caught.value)
    with pytest.raises(UsageError, match="cannot be read"):
        read_requirements(tmp_path / "none.txt")


def test_no_secret_becomes_part_of_a_jobs_command():
    for name, value in VARIABLES.items():
        with pytest.raises(UsageError, match=name) as caught:
            check_no_secret(["--system-prompt", f"key {value}"], VARIABLES)
        assert found_in(str(caught.value).encode()) == []
    with pytest.raises(UsageError, match="has a user name or a password in it") as caught:
        check_no_secret(["--baseline=http://user:pa@ss@host/v1"], {})
    assert "pa@ss" not in str(caught.value)
    check_no_secret(["--out", "s3://bucket/run", "--task", "demo"], {**VARIABLES, "MY_TOKEN": "demo"})


def test_a_head_whose_agent_does_not_come_names_the_port_that_another_ray_has():
    said = refusal(RuntimeError("Request failed with status code 500: No available agent to submit job, please try."))
    assert "another Ray on that host has the agent's port (52365)" in said
    assert "--dashboard-agent-listen-port" in said
    assert refusal(RuntimeError("Traceback:\n  a line\nValueError: too large\n")).endswith("(ValueError: too large)")


@pytest.mark.parametrize(
    "address",
    [
        *("foo", "", "auto", "127.0.0.1:6379", "head.example:8265", "ray://head.example:10001", "ftp://head.example"),
        *("http://", "http://:8265", "http://127.0.0.1:x", "http://127.0.0.1:99999", "http://127.0.0.1:-1"),
        *("http://127.0.0.1:0", "https://[::1", "http:\x1b[2J\n"),
    ],
)
def test_an_address_of_another_form_is_refused_in_one_line_that_names_the_right_one(address):
    with pytest.raises(UsageError, match="such as http://HOST:8265") as caught:
        open_dashboard(address)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:1", "http://a..b:8265", f"http://{'x' * 70}:8265", "https://[::1]:1"]
)
def test_an_address_where_no_dashboard_can_answer_is_one_line(address):
    with pytest.raises(UsageError, match="no Ray dashboard answers there"):
        open_dashboard(address)


def test_an_address_that_is_given_wins_over_rays_variables_and_these_over_the_usual_one(monkeypatch):
    for name in ADDRESS_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with Dashboard() as one, Dashboard() as two:
        monkeypatch.setattr(dashboard, "DEFAULT_ADDRESS", one.address)
        assert open_dashboard(None)[1] == one.address
        monkeypatch.setenv("RAY_ADDRESS", two.address)
        assert open_dashboard(None)[1] == two.address
        client, address = open_dashboard(one.address)
        assert client.get_address() == address == one.address, "Ray's own client would heed the variable alone"
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", one.address)
        assert open_dashboard(None)[1] == one.address
    with pytest.raises(UsageError, match="RAY_API_SERVER_ADDRESS 'http"):
        open_dashboard(None)


@pytest.fixture
def mute():
    """The address of a server that takes a connection and every byte, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_dashboard_that_takes_a_request_and_never_answers_is_not_waited_for_for_ever(mute, monkeypatch):
    monkeypatch.setattr(dashboard, "ANSWER_S", 0.1)
    with pytest.raises(UsageError, match="no Ray dashboard answers there"):
        open_dashboard(mute)
