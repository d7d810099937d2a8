"""Ctrl-C and SIGTERM: what is in flight ends, what is committed stays, and the last line says how to go on."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adadecode.evaluation.stop import StopRequest
from adadecode.runs.folder import RunFolder, read_commits, read_run
from adadecode.runs.run import close_run, open_run
from adadecode.settings import EvalConfig
from tests.folders import write_prompts

ROOT = Path(__file__).parents[3]
PROGRAM = [sys.executable, "-c", "from adadecode.cli.main import main; main()"]
REPEATS, NUM_PROMPTS = 40, 8


@pytest.fixture
def command(tiny, tmp_path) -> list[str]:
    """A local run of eight shards, each long enough to be stopped in."""
    prompts = write_prompts(tmp_path / "p.jsonl", [f"w{10 + i} w20 w30" for i in range(NUM_PROMPTS)])
    flags = tiny.flags(data_file=prompts, shard_size=1, repeats=REPEATS, methods="vanilla,adadecode")
    return [*PROGRAM, "eval", "--local", *flags, "--out", str(tmp_path / "run")]


@contextmanager
def running(command: list[str], out: Path) -> Generator[subprocess.Popen[str]]:
    """The command in a process of its own, with a first shard committed."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        while not list((out / "commits").glob("*.json")):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_local_run_that_is_interrupted_exits_4_and_its_last_line_goes_on(command, tmp_path):
    out = tmp_path / "run"
    with running(command, out) as process:
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate()
    assert process.returncode == 4, output
    num_missing = (NUM_PROMPTS - len(read_commits(out))) * REPEATS * 2
    assert num_missing > 0
    last = output.splitlines()[-1]
    assert last == f"{num_missing} planned rows are missing; go on with: adadecode {shlex.join(command[3:])}"
    assert "SIGINT: no more shards are begun; those in flight have 20 s (--grace)" in output
    assert read_run(out)["status"] == "incomplete"
    before = {idx: commit["attempt"] for idx, commit in read_commits(out).items()}
    again = subprocess.run([*PROGRAM, *shlex.split(last.partition("go on with: adadecode ")[2])], capture_output=True)
    assert again.returncode == 0, again.stderr
    after = {idx: commit["attempt"] for idx, commit in read_commits(out).items()}
    assert before.items() <= after.items()
    assert len(after) == NUM_PROMPTS


def test_without_grace_the_shard_in_flight_is_given_up(command, tmp_path):
    command = [sys.executable, "-m", "adadecode", *command[3:], "--grace", "0"]
    with running(command, tmp_path / "run") as process:
        num_before = len(read_commits(tmp_path / "run"))
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate()
    assert process.returncode == 4, output
    assert "planned rows are missing; go on with: python -m adadecode eval" in output.splitlines()[-1]
    assert len(read_commits(tmp_path / "run")) <= num_before + 1  # one may have been committed just then


def test_a_complete_run_is_not_called_complete_while_what_was_withdrawn_is_missing(cli, tiny, tmp_path):
    out = tmp_path / "run"
    flags = [*tiny.flags(methods="vanilla"), "--out", out]
    assert cli("eval", "--local", *flags).exit_code == 0
    commit = read_commits(out)[1]
    (out / commit["file"]).unlink()
    with open_run(EvalConfig.model_validate(read_run(out)["config"]), out) as prepared:
        assert [shard.shard_idx for shard in prepared.todo] == [1]
        assert read_run(out)["status"] == "running"
        assert close_run(prepared).num_missing == 2
    assert read_run(out)["status"] == "incomplete"


def test_a_run_is_not_called_complete_before_what_others_left_behind_is_gone(cli, tiny, tmp_path, monkeypatch):
    out = tmp_path / "run"
    assert cli("eval", "--local", *tiny.flags(methods="vanilla"), "--out", out).exit_code == 0
    stray = out / "samples" / "part-of-a-loser.parquet"
    stray.write_bytes((out / read_commits(out)[0]["file"]).read_bytes())

    def killed(self: RunFolder, named: object) -> None:
        raise KeyboardInterrupt

    config = EvalConfig.model_validate(read_run(out)["config"])
    with monkeypatch.context() as patch, open_run(config, out) as prepared:
        patch.setattr(RunFolder, "sweep", killed)
        with pytest.raises(KeyboardInterrupt):
            close_run(prepared)
    assert read_run(out)["status"] == "running"
    with open_run(config, out) as prepared:
        close_run(prepared)
    assert (read_run(out)["status"], stray.exists()) == ("complete", False)


def test_the_first_signal_asks_the_second_ends_and_while_the_run_is_closed_one_more_is_noted():
    lines: list[str] = []
    before = signal.getsignal(signal.SIGINT), signal.pthread_sigmask(signal.SIG_BLOCK, [])
    noted = threading.Event()

    def say(line: str) -> None:
        lines.append(line)
        if "being closed" in line:
            noted.set()

    with StopRequest(60, say) as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # while the run is being closed
        assert noted.wait(60)
    assert lines == [
        "SIGTERM: no more shards are begun; those in flight have 60 s (--grace); again: stop at once",
        "SIGINT: the run is being closed; again, or in 60 s: end without its tables",
    ]
    assert (signal.getsignal(signal.SIGINT), signal.pthread_sigmask(signal.SIG_BLOCK, [])) == before


def test_once_the_run_is_being_closed_the_end_of_the_grace_period_is_not_heeded_and_the_next_run_heeds_all():
    with StopRequest(0.05, lambda line: None) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        stop.end()
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
        os.kill(os.getpid(), signal.SIGINT)
        stop.install()  # the next cell of a sweep
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_while_a_run_is_closed_is_a_stop_of_what_would_follow_it():
    noted = threading.Event()
    with StopRequest(60, lambda line: noted.set()) as stop:
        stop.end()
        os.kill(os.getpid(), signal.SIGINT)
        assert noted.wait(60)
        stop.install()  # the next cell of a sweep
        assert stop.is_made


HANGS = """
import ctypes, os, sys
from adadecode.evaluation import stop
stop.CLOSING_S = float(sys.argv[1])
with stop.StopRequest(60, lambda line: print(line, flush=True)) as request:
    request.end()
    print("closing", flush=True)
    read_fd, write_fd = os.pipe()
    while True:  # as in a request to a disk that is gone: no line of Python runs in this thread
        ctypes.CDLL(None).read(read_fd, ctypes.create_string_buffer(1), 1)
"""


@pytest.mark.parametrize(("closing_s", "signals"), [(60, [signal.SIGTERM, signal.SIGINT]), (0.01, [signal.SIGINT])])
def test_a_close_that_hangs_is_ended_by_a_second_signal_or_after_a_while(closing_s, signals):
    command = [sys.executable, "-c", HANGS, str(closing_s)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in (str(ROOT), *sys.path) if path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "closing\n"
        for number in signals:
            process.send_signal(number)
            if number == signals[0]:
                line = process.stdout.readline()
                assert (
                    line
                    == f"{number.name}: the run is being closed; again, or in {closing_s} s: end without its tables\n"
                )
        last = process.stdout.read()
        assert process.wait() == 4
    assert last == "ended before the run was closed; what is committed stays, and the same command continues\n"


def test_the_end_of_the_grace_period_ends_the_run():
    with StopRequest(0.01, lambda line: None):
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.pause()


def test_too_many_errors_stop_a_run_and_keep_what_is_committed(cli, tiny, tmp_path):
    too_long = " ".join(["w7"] * 2000)
    prompts = write_prompts(tmp_path / "p.jsonl", ["w3 w4", *[too_long] * 6])
    flags = [*tiny.flags(data_file=prompts, shard_size=1, methods="vanilla"), "--out", tmp_path / "run"]
    result = cli("eval", "--local", *flags, "--max-errors", "1")
    assert result.exit_code == 1
    why, missing = result.stderr.splitlines()
    assert why.startswith("adadecode: 2 of 7 planned samples failed, and --max-errors 1 allows 1: ")
    assert "first: jsonl/00001: the prompt has 2000 tokens" in why
    assert missing.startswith("4 planned rows are missing; go on with: adadecode ")
    assert len(read_commits(tmp_path / "run")) == 3
    assert read_run(tmp_path / "run")["status"] == "incomplete"
    again = cli("eval", "--local", *flags, "--max-errors", "1")
    assert (again.exit_code, len(read_commits(tmp_path / "run"))) == (1, 3), "it does not go on a little each time"
    assert cli("eval", "--local", *flags, "--max-errors", "100%").exit_code == 0
    assert len(read_commits(tmp_path / "run")) == 7
