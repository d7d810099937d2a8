"""What a person sees of a run while it goes: on a real pseudo-terminal, and as lines of a log."""

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from adadecode.cli.live import LiveProgress, drawing, plain_line
from adadecode.evaluation.progress import RunProgress
from adadecode.records import ShardOutcome, WorkerState
from adadecode.report.cells import duration_text

ROOT = Path(__file__).parents[3]
FOUR = ShardOutcome(num_samples=4, num_error_samples=0, num_output_tokens=700, busy_s=2.0, num_exact=4, num_owed=4)
WORKERS = (
    WorkerState("worker-0", "10.0.0.1", "working", "shard 7", 3.2),
    WorkerState("worker-1", "10.0.0.2", "loading", "", 2.0),
)


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def progress(clock) -> RunProgress:
    """Of a run of 48 samples."""
    return RunProgress(48, clock=clock)


@pytest.fixture
def live(progress, clock, log) -> LiveProgress:
    """Of that run, into a log 40 columns wide."""
    return LiveProgress(progress, Console(file=log, width=40), clock)


def test_a_log_has_one_line_each_ten_seconds_and_one_at_the_end(live, progress, clock, log):
    with live:
        for _ in range(3):
            clock.now_s += 4
            progress.add(FOUR)
            live.refresh()
        assert log.getvalue().splitlines() == ["12/48 samples, 175 tokens/s, ETA 36 s, parity 12/12, 0 errors"]
        clock.now_s += 9.9
        live.update(WORKERS)
        assert log.getvalue().count("\n") == 1, "not due for another tenth of a second"
        clock.now_s += 0.2
        live.update(WORKERS)
        assert log.getvalue().splitlines()[1:] == [
            "12/48 samples, 95 tokens/s, ETA 1m06s, parity 12/12, 0 errors; "
            "2 workers: worker-0 shard 7 (3 s), worker-1 loading (2 s)"
        ]
    assert log.getvalue().splitlines()[2:] == ["12/48 samples, 95 tokens/s, ETA 1m06s, parity 12/12, 0 errors"]


def test_many_workers_are_counted_in_a_log_and_not_named(clock):
    many = [*[WORKERS[0]] * 60, *[WORKERS[1]] * 4]
    line = plain_line(RunProgress(48, clock=clock), many)
    assert line == "0/48 samples, parity not checked, 0 errors; 64 workers: 60 working, 4 loading"


def test_a_line_that_stays_is_printed_at_once_and_its_brackets_are_no_markup(live, log):
    with live:
        live.say("[bold]sample[/bold] [7] killed 2 workers in a row: it becomes an error row")
        assert log.getvalue() == "[bold]sample[/bold] [7] killed 2 workers in a row: it becomes an error row\n"


def test_a_run_that_fails_says_how_far_it_came(live, progress, clock, log):
    def fail_after_one_shard() -> None:
        with live:
            clock.now_s += 2
            progress.add(FOUR)
            live.refresh()
            raise RuntimeError("no more room")

    with pytest.raises(RuntimeError, match="no more room"):
        fail_after_one_shard()
    assert log.getvalue() == "4/48 samples, 350 tokens/s, ETA 22 s, parity 4/4, 0 errors\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1m00s"),
        (100, "1m40s"),
        (3599.6, "1h00m"),
        (7500, "2h05m"),
        (90000, "25h00m"),
    ],
)
def test_durations_have_two_units(seconds, text):
    assert duration_text(seconds) == text


def test_a_terminal_shows_figures_and_as_many_workers_as_it_has_room_for(clock, progress):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, height=10, color_system=None)
    workers = [WorkerState(f"worker-{i}", "[node]", "working", f"shard [{i}]", 61.0) for i in range(20)]
    with LiveProgress(progress, console, clock) as live:
        clock.now_s += 2
        progress.add(FOUR)
        live.refresh()
        live.update(workers)
        screen.truncate(0)
        live.update(workers)
        assert screen.getvalue() == "", "drawn less than a quarter of a second ago"
        clock.now_s += 0.3
        live.update(workers)
        shown = screen.getvalue()
    assert "4/48" in shown
    assert "304 tokens/s, ETA 25 s, parity 4/4, 0 errors" in shown
    assert re.search(r"worker-4 +\[node\] +shard \[4\] +1m01s", shown)
    assert "worker-5" not in shown
    assert "and 15 workers: 15 working" in shown


def on_a_terminal(command: list[str], folder: Path) -> tuple[int, str]:
    """The exit code of `command` and what it wrote to a pseudo-terminal of 120 columns."""
    parent, child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdin=child, stdout=child, stderr=child, cwd=folder, env=environment)
    os.close(child)
    written = b""
    while True:
        try:
            part = os.read(parent, 65536)
        except OSError:  # Linux: the last process has closed the terminal
            break
        if not part:
            break
        written += part
    os.close(parent)
    return process.wait(), written.decode()


def test_an_evaluation_on_a_real_terminal_redraws_a_bar_and_leaves_its_last_state(tiny, tmp_path):
    code = "from adadecode.cli.main import main; main()"
    command = [sys.executable, "-c", code, "eval", "--local", *tiny.flags(), "--out", str(tmp_path / "run")]
    exit_code, written = on_a_terminal(command, tmp_path)
    assert exit_code == 0, written
    assert "\x1b[?25l" in written, "the cursor is hidden while the bar is redrawn"
    assert "\x1b[?25h" in written, "and shown again"
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    assert re.search(r"samples +━+ *0/5", text)
    assert re.search(r"samples +━+ *5/5\s+\d+ tokens/s, parity 5/5, 0 errors\s+tokens accept", text)
    assert "parity 5/5, logits 5/5" in text


def test_what_a_worker_is_called_sends_nothing_to_the_terminal(progress, clock, log):
    forged = [WorkerState("w\x1b[2J\nparity 9/9", "host\x9b[1A", "working", "shard 7\r", 3.0)]
    with LiveProgress(progress, Console(file=log, width=200), clock) as live:
        clock.now_s += 11
        live.update(forged)
    Console(file=log, width=200).print(drawing(progress, forged, height=20))
    assert log.getvalue().count("w\\x1b[2J\\nparity 9/9") == 2
    assert not {"\x1b", "\x9b", "\r"} & set(log.getvalue())
    assert not any(line.startswith("parity 9/9") for line in log.getvalue().splitlines())
