"""A job's log over connections that break, its end, and the list of jobs; no cluster."""

import itertools
import threading
import time

import pytest
from ray.job_submission import JobStatus

from adadecode.errors import AdaDecodeError, UsageError
from ray_jobs import job_log
from ray_jobs.jobs import MOST_S, RETRY_S, ask_to_stop, exit_code, find_job, follow_job, list_jobs, show_log, stop_job
from tests.dashboard import PREFIX, Dashboard, record

NUM_LINES = 20_000
LINES = [f"line {i} of the log, with Z\u00fcrich in it\n".encode() for i in range(NUM_LINES)]
LOG = b"".join(LINES)
OF_LAST = len(b"".join(LINES[-job_log.LAST_LINES :]))


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(job_log, "INTERVAL_S", 0.01)
    monkeypatch.setattr(job_log, "UNPLACED_S", 1.0)  # less, and a busy machine is taken for the end of an answer


class Follower:
    """What is said of a job while it is followed, and the time that passes in pauses."""

    def __init__(self, dashboard: Dashboard) -> None:
        self.dashboard, self.said, self.pauses, self.now = dashboard, [], [], 0.0

    @property
    def text(self) -> str:
        return "".join(self.said)

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def follow(self):
        client = self.dashboard.client()
        clock = lambda: self.now  # noqa: E731
        return follow_job(client, "job-1", self.said.append, self.dashboard.address, None, clock, self.pause)


def test_a_log_is_shown_as_it_grows_and_sent_once():
    with Dashboard() as dashboard:
        follower = Follower(dashboard)

        def say(text: str) -> None:
            follower.said.append(text)
            written = len(dashboard.log)
            if written == len(LOG):
                dashboard.end_as(JobStatus.SUCCEEDED)
            dashboard.log += LOG[written : written + 100_000]  # the next only once this was shown

        dashboard.log += LOG[:1000]
        client = dashboard.client()
        follow_job(client, "job-1", say, dashboard.address, pause=follower.pause)
    assert follower.text == LOG.decode()
    assert dashboard.num_sent <= len(LOG) + OF_LAST, "and its last lines at the end, to see that nothing lacks"


def test_after_each_broken_connection_the_last_lines_are_sent_and_not_the_log():
    cuts = [200_000, *[75_001] * 10]

    def on_request(number: int) -> int | None:
        dashboard.log += LOG[len(dashboard.log) :][:12_000]  # what is missed meanwhile
        if number == len(cuts):
            dashboard.end_as(JobStatus.SUCCEEDED)
        return cuts[number] if number < len(cuts) else None

    with Dashboard(LOG[:200_000], on_request) as dashboard:
        follower = Follower(dashboard)
        follower.follow()
    assert len(dashboard.log) > 300_000
    assert follower.text == dashboard.log.decode(errors="replace"), "no byte is lost or there twice, no letter torn"
    assert dashboard.num_sent <= sum(cuts) + 3 * OF_LAST


def test_where_more_was_missed_than_the_last_lines_nothing_is_lost():
    def on_request(number: int) -> int | None:
        if number == 1:
            dashboard.log += LOG[len(dashboard.log) :]
            dashboard.end_as(JobStatus.SUCCEEDED)
        return 20_000 if number == 0 else None

    with Dashboard(LOG[:20_000], on_request) as dashboard:
        follower = Follower(dashboard)
        follower.follow()
    assert follower.text == LOG.decode()
    assert dashboard.num_sent <= 20_000 + 2 * OF_LAST + len(LOG)


def test_where_more_was_missed_a_log_that_is_never_quiet_is_shown_while_it_grows(monkeypatch):
    monkeypatch.setattr(job_log, "INTERVAL_S", 0.2)  # so that no moment is quiet
    monkeypatch.setattr(job_log, "UNPLACED_S", 0.2)
    num_shown_while_written = 0

    def write() -> None:
        nonlocal num_shown_while_written
        for _ in range(500):
            if len(follower.text) > 20_000:
                break
            dashboard.log += LOG[len(dashboard.log) :][:100]
            time.sleep(0.01)
        num_shown_while_written = len(follower.text)
        dashboard.end_as(JobStatus.SUCCEEDED)

    def on_request(number: int) -> int | None:
        if number == 1:
            dashboard.log += LOG[len(dashboard.log) :][:200_000]
            writer.start()
        return 20_000 if number == 0 else None

    writer = threading.Thread(target=write, daemon=True)
    with Dashboard(LOG[:20_000], on_request) as dashboard:
        follower = Follower(dashboard)
        follower.follow()
        writer.join()
    assert num_shown_while_written > 20_000
    assert follower.text == dashboard.log.decode(errors="replace")


def test_where_more_was_missed_and_the_connection_breaks_again_all_of_it_is_read():
    def on_request(number: int) -> int | None:
        if number == 1:
            dashboard.log += LOG[len(dashboard.log) :]
        if number == 2:
            dashboard.end_as(JobStatus.SUCCEEDED)
        return (20_000, 30_000)[number] if number < 2 else None

    with Dashboard(LOG[:20_000], on_request) as dashboard:
        follower = Follower(dashboard)
        follower.follow()
    assert follower.text == LOG.decode()
    assert dashboard.lines_asked[:3] == [job_log.ALL_LINES, job_log.LAST_LINES, job_log.ALL_LINES]


def test_of_a_log_that_repeats_itself_no_line_is_lost_or_there_twice():
    log = b"the same line\n" * NUM_LINES

    def on_request(number: int) -> int | None:
        if number == 2:
            dashboard.log += log[len(dashboard.log) :]
            dashboard.end_as(JobStatus.SUCCEEDED)
        return (30_000, 10_000)[number] if number < 2 else None

    with Dashboard(log[:30_000], on_request) as dashboard:
        follower = Follower(dashboard)
        follower.follow()
    assert len(follower.text) == len(log)


def test_a_quiet_log_is_asked_for_anew_without_a_word(monkeypatch):
    monkeypatch.setattr(job_log, "QUIET_S", 0.05)

    def on_request(number: int) -> None:
        if number == 3:
            dashboard.end_as(JobStatus.SUCCEEDED)

    with Dashboard(LOG[:500], on_request) as dashboard:
        follower = Follower(dashboard)
        follower.follow()
    assert follower.text == LOG[:500].decode()
    assert dashboard.num_asked > 3


def test_a_lost_connection_is_told_once_and_no_line_is_lost_or_there_twice():
    with Dashboard(LOG[:5000], lambda number: 3000 if number == 0 else None) as dashboard:
        follower = Follower(dashboard)

        def pause(seconds: float) -> None:
            follower.pauses.append(seconds)
            dashboard.is_down = len(follower.pauses) < 4
            if not dashboard.is_down:
                dashboard.end_as(JobStatus.SUCCEEDED)

        follower.pause = pause
        assert follower.follow().status == JobStatus.SUCCEEDED
    (told,) = [line for line in follower.said if line.startswith(f"the connection to {dashboard.address} is lost; ")]
    assert told.count("\n") == 1
    follower.said.remove(told)
    assert follower.text == LOG[:5000].decode()


def test_a_second_outage_after_the_log_went_on_has_its_own_five_minutes():
    with Dashboard(LOG[:500]) as dashboard:
        follower = Follower(dashboard)
        client = dashboard.client()

        def say(text: str) -> None:
            follower.said.append(text)
            if text.startswith("line 0"):
                follower.now, dashboard.is_down = RETRY_S + 50, True

        def pause(seconds: float) -> None:
            follower.pause(seconds)
            dashboard.is_down = False
            if follower.now > RETRY_S:
                dashboard.end_as(JobStatus.SUCCEEDED)

        dashboard.is_down = True
        details = follow_job(client, "job-1", say, dashboard.address, None, lambda: follower.now, pause)
    assert details.status == JobStatus.SUCCEEDED
    assert follower.text.count(" is lost; trying again") == 2


def test_a_head_that_takes_a_request_for_a_log_and_never_answers_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(job_log, "ANSWER_S", 0.1)
    monkeypatch.setattr(job_log, "QUIET_S", 0.1)
    with Dashboard(LOG[:500], lambda number: time.sleep(2.0)) as dashboard:
        client, node_id, log = dashboard.client(), "a" * 56, job_log.JobLog(print)
        with pytest.raises(OSError):  # noqa: PT011
            job_log.show_growth(client, "job-1", node_id, log, lambda: False)
        with pytest.raises(OSError):  # noqa: PT011
            job_log.show_rest(client, "job-1", node_id, log)


def test_where_nobody_reads_what_is_shown_no_connection_is_blamed():
    def say(text: str) -> None:
        raise BrokenPipeError

    with Dashboard(LOG[:500]) as dashboard:
        with pytest.raises(BrokenPipeError):
            follow_job(dashboard.client(), "job-1", say, dashboard.address)
        with pytest.raises(BrokenPipeError):
            show_log(dashboard.client(), "job-1", say, dashboard.address)


def test_a_dashboard_behind_a_path_has_logs_too():
    with Dashboard(LOG[:500]) as dashboard:
        said, address = [], dashboard.address + PREFIX
        client = job_log.PatientClient(address)
        show_log(client, "job-1", said.append, address)
    assert "".join(said) == LOG[:500].decode()


def test_a_connection_that_stays_lost_is_given_up_after_five_minutes_with_how_to_follow_the_job():
    with Dashboard() as dashboard:
        client, follower = dashboard.client(), Follower(dashboard)
        dashboard.is_down = True
        with pytest.raises(AdaDecodeError, match=r"for 300 s; .* adadecode jobs logs --address .* --follow job-1"):
            follow_job(
                client, "job-1", follower.said.append, dashboard.address, None, lambda: follower.now, follower.pause
            )
    assert RETRY_S < follower.now <= RETRY_S + MOST_S
    assert follower.pauses == sorted(follower.pauses), "the pauses grow"
    assert len(follower.said) == 1


def test_a_job_that_the_head_no_longer_knows_is_one_line_at_once():
    with Dashboard() as dashboard:
        dashboard.records.clear()
        follower = Follower(dashboard)
        with pytest.raises(AdaDecodeError, match=r"knows no job job-1 any more: .* the same command continues"):
            follower.follow()
    assert follower.pauses == []


def test_of_a_job_that_never_began_to_run_what_ray_says_is_shown():
    message = "\n".join(["a traceback"] * 50 + ["No matching distribution found for nothing==1"])
    with Dashboard() as dashboard:
        dashboard.records["job-1"] |= {"status": "FAILED", "driver_node_id": None, "message": message}
        follower = Follower(dashboard)
        assert exit_code(follower.follow()) == 1
    assert follower.text.endswith("No matching distribution found for nothing==1\n")
    assert follower.text.count("\n") < 30


def test_a_job_that_does_not_begin_is_told_once():
    with Dashboard() as dashboard:
        said = "Job has not started yet. It may be waiting for the runtime environment to be set up."
        dashboard.records["job-1"] |= {"status": "PENDING", "driver_node_id": None, "message": said}
        follower = Follower(dashboard)

        def pause(seconds: float) -> None:
            follower.now += 10
            if follower.now > 100:
                dashboard.records["job-1"] |= {"status": "STOPPED", "message": "stopped"}

        follower.pause = pause
        follower.follow()
    assert follower.text == f"job job-1 waits: {said}\nstopped\n"


@pytest.mark.parametrize(
    ("status", "driver_exit_code", "expected"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        *((JobStatus.FAILED, code, code) for code in (1, 2, 3, 4, 5)),
        (JobStatus.FAILED, None, 1),
        (JobStatus.FAILED, -9, 1),
        (JobStatus.STOPPED, None, 4),
    ],
)
def test_the_exit_code_is_the_drivers_own_and_4_for_a_job_that_was_stopped(status, driver_exit_code, expected):
    with Dashboard() as dashboard:
        dashboard.end_as(status, driver_exit_code)
        assert exit_code(dashboard.client().get_job_info("job-1")) == expected


def test_a_stopped_job_is_waited_for():
    with Dashboard() as dashboard:
        polls = itertools.count()
        details = stop_job(dashboard.client(), "job-1", dashboard.address, lambda seconds: next(polls))
        assert details.status == JobStatus.STOPPED


def test_a_stop_that_is_not_heard_is_one_line_with_the_command():
    with Dashboard() as dashboard:
        client, dashboard.is_down = dashboard.client(), True
        with pytest.raises(AdaDecodeError, match=r"may go on .*: adadecode jobs stop --address .* job-1"):
            ask_to_stop(client, "job-1", dashboard.address)


@pytest.mark.parametrize("job_id", ["job-2", "../version", ".", "..", "", "\x1b[2J"])
def test_a_job_that_is_none_is_one_line_that_names_the_list(job_id):
    with Dashboard() as dashboard, pytest.raises(UsageError, match="adadecode jobs ls --address") as caught:
        find_job(dashboard.client(), job_id, dashboard.address)
    assert str(caught.value).isprintable()


def test_jobs_of_this_program_are_listed_the_newest_first_with_what_they_run():
    with Dashboard() as dashboard:
        dashboard.records = {
            "old": record("old", start_time=1_790_000_000_000, end_time=1_790_000_090_000, status="SUCCEEDED"),
            "new": record(
                "new", start_time=1_790_000_100_000, entrypoint='PATH="x"; exec python -m adadecode sweep --out a'
            ),
            "kube": record("kube", start_time=1_790_000_050_000, entrypoint="adadecode eval --task demo"),
            "other": record("other", entrypoint="python train.py --to adadecode-data"),
            "driver": record("driver") | {"type": "DRIVER", "submission_id": None},
        }
        jobs = list_jobs(dashboard.client(), dashboard.address)
    assert [(job.job_id, job.command) for job in jobs] == [
        ("new", "sweep --out a"),
        ("kube", "eval --task demo"),
        ("old", "eval"),
    ]
    assert jobs[-1].for_s == 90.0
    assert jobs[0].for_s == pytest.approx(time.time() - 1_790_000_100, abs=5)


def test_a_log_is_shown_as_far_as_it_is_without_waiting():
    with Dashboard(LOG[:70_000]) as dashboard:
        follower = Follower(dashboard)
        show_log(dashboard.client(), "job-1", follower.said.append, dashboard.address)
    assert follower.text == LOG[:70_000].decode(errors="replace")
