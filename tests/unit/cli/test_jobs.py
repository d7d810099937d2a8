"""`jobs` and what `submit` does with a job it follows, with a dashboard that answers as Ray's; no cluster."""

import io

import pytest
from ray.job_submission import JobStatus

from adadecode.cli import submit
from adadecode.errors import AdaDecodeError
from tests.dashboard import Dashboard

LOG = b"a line\nand \x1b[31mthe last\n"


@pytest.fixture
def interrupted(monkeypatch):
    """Ctrl-C comes with the first line of the log."""
    shown = []

    def show(text: str) -> None:
        shown.append(text)
        if len(shown) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(submit, "show_text", show)
    return shown


def test_a_job_that_is_stopped_at_ctrl_c_exits_with_4(interrupted, monkeypatch, capsys):
    monkeypatch.setattr(submit, "is_stop_wanted", lambda job_id: True)
    with Dashboard(LOG) as dashboard:
        assert submit.follow_or_leave(dashboard.client(), "job-1", dashboard.address) == 4
        assert dashboard.records["job-1"]["status"] == "STOPPED"
    assert "job job-1: STOPPED, exit code 4" in capsys.readouterr().out


def test_a_job_that_is_left_running_at_ctrl_c_exits_with_4_and_says_how_to_go_on(interrupted, monkeypatch, capsys):
    monkeypatch.setattr(submit, "is_stop_wanted", lambda job_id: False)
    with Dashboard(LOG) as dashboard:
        assert submit.follow_or_leave(dashboard.client(), "job-1", dashboard.address) == 4
        assert dashboard.records["job-1"]["status"] == "RUNNING"
    said = capsys.readouterr().out
    assert "job job-1 is left running" in said
    assert f"adadecode jobs logs --address {dashboard.address} --follow job-1" in said
    assert f"adadecode jobs stop --address {dashboard.address} job-1" in said


def test_a_stop_at_ctrl_c_that_the_dashboard_does_not_hear_is_one_line(interrupted, monkeypatch):
    def lose_dashboard(job_id: str) -> bool:
        dashboard.is_down = True
        return True

    monkeypatch.setattr(submit, "is_stop_wanted", lose_dashboard)
    with Dashboard(LOG) as dashboard, pytest.raises(AdaDecodeError, match="adadecode jobs stop --address"):
        submit.follow_or_leave(dashboard.client(), "job-1", dashboard.address)


@pytest.mark.parametrize(
    ("typed", "is_terminal", "expected"),
    [("y\n", True, True), ("YES\n", True, True), ("\n", True, False), ("", True, False), ("y\n", False, False)],
)
def test_only_a_yes_on_a_terminal_stops_a_job(typed, is_terminal, expected, monkeypatch):
    keyboard = io.StringIO(typed)
    keyboard.isatty = lambda: is_terminal
    monkeypatch.setattr("sys.stdin", keyboard)
    assert submit.is_stop_wanted("job-1") is expected


def test_jobs_are_listed_shown_followed_and_stopped(cli):
    with Dashboard(LOG) as dashboard:
        listed = cli("jobs", "ls", "--address", dashboard.address)
        shown = cli("jobs", "logs", "--address", dashboard.address, "job-1")
        stopped = cli("jobs", "stop", "--address", dashboard.address, "job-1")
        again = cli("jobs", "stop", "--address", dashboard.address, "job-1")
        dashboard.end_as(JobStatus.FAILED, 3)
        followed = cli("jobs", "logs", "--address", dashboard.address, "--follow", "job-1")
        unknown = cli("jobs", "logs", "--address", dashboard.address, ".")
    assert "job-1" in listed.stdout
    assert shown.stdout == "a line\nand the last\n"
    assert stopped.stdout.endswith("job job-1: STOPPED\n")
    assert "had ended before" in again.stdout
    assert [done.exit_code for done in (listed, shown, stopped, again, followed, unknown)] == [0, 0, 0, 0, 3, 2]
