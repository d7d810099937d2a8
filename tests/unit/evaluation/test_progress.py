"""What is known of a run while it goes, and how many of its samples may fail."""

import pickle
from dataclasses import replace

import pytest

from adadecode.errors import TooManyErrorsError
from adadecode.evaluation.progress import NOTHING, ErrorLimit, RunProgress, total_outcome
from adadecode.records import ShardOutcome
from adadecode.runs.folder import RunFolder, read_commits, read_samples

BEFORE = ShardOutcome(num_samples=8, num_error_samples=1, num_output_tokens=900, busy_s=9.0, num_exact=7, num_owed=7)
SHARD = ShardOutcome(num_samples=4, num_error_samples=1, num_output_tokens=300, busy_s=3.0, num_exact=2, num_owed=3)


@pytest.fixture
def progress() -> tuple[RunProgress, list[float]]:
    """A run of 20 samples, 8 of them committed before, and the seconds its clock shows."""
    now_s = [50.0]
    return RunProgress(20, BEFORE, clock=lambda: now_s[0]), now_s


def test_counts_are_of_all_that_is_committed(progress):
    run, _ = progress
    assert (run.num_done, run.num_errors, run.parity) == (8, 1, "parity 7/7")
    run.add(SHARD)
    assert (run.num_done, run.num_errors, run.parity) == (12, 2, "parity 9/10")


def test_rates_are_of_this_session_and_unknown_until_it_has_done_something(progress):
    run, now_s = progress
    now_s[0] += 5
    assert run.tokens_per_s is None
    assert run.eta_s is None
    run.add(SHARD)
    assert run.tokens_per_s == 300 / 5
    assert run.eta_s == 5 / 4 * 8
    now_s[0] += 5
    run.add(SHARD)
    run.add(SHARD)
    assert run.tokens_per_s == 900 / 10
    assert run.eta_s == 0


def test_outcomes_add_up_field_by_field():
    assert total_outcome([]) == NOTHING
    assert total_outcome([BEFORE, SHARD]) == ShardOutcome(12, 2, 1200, 12.0, 9, 10)


def test_the_outcome_of_committed_shards_is_that_of_their_rows(tiny, cli, tmp_path):
    out = tmp_path / "run"
    assert cli("eval", "--local", *tiny.flags(repeats=2), "--out", out).exit_code == 0
    rows = read_samples(out).to_pylist()
    folder = RunFolder(out)
    total = total_outcome(ShardOutcome(**commit["outcome"]) for commit in read_commits(out).values())
    assert (total.num_samples, total.num_error_samples, total.num_exact, total.num_owed) == (5, 0, 10, 10)
    assert total.num_output_tokens == sum(row["output_len"] for row in rows) == 5 * 2 * 3 * 10
    assert total.busy_s == pytest.approx(sum(row["e2e_s"] for row in rows))
    last = folder.committed_outcome(2)
    assert last is not None
    assert (last.num_samples, last.num_owed) == (1, 2)
    total_of_each = total_outcome(folder.committed_outcome(idx) for idx in range(3))
    assert replace(total_of_each, busy_s=total.busy_s) == total


@pytest.mark.parametrize(
    ("max_errors", "num_planned", "allowed"),
    [
        ("0", 200, 0),
        ("7", 200, 7),
        ("500", 200, 500),
        ("0%", 200, 0),
        ("5%", 200, 10),
        ("5%", 201, 11),
        ("5%", 1, 1),
        ("5%", 0, 0),
        ("0.1%", 1000, 1),
        ("0.1%", 1001, 2),
        ("2.3%", 1000, 23),
        ("100%", 48, 48),
    ],
)
def test_a_share_is_rounded_up_and_a_number_is_itself(max_errors, num_planned, allowed):
    limit = ErrorLimit.of(max_errors, num_planned)
    assert limit.allowed == allowed
    limit.check(0)
    limit.check(allowed)
    with pytest.raises(TooManyErrorsError):
        limit.check(allowed + 1)


def test_the_line_says_how_many_failed_what_is_allowed_and_what_to_do():
    with pytest.raises(TooManyErrorsError) as caught:
        ErrorLimit.of("5%", 200).check(12)
    line = str(caught.value)
    assert line.startswith("12 of 200 planned samples failed, and --max-errors 5% allows 10: ")
    assert "what is committed stays, so remove the cause" in line
    assert line.endswith("run the same command with --retry-errors, or go on with a higher --max-errors")
    assert "\n" not in line
    assert caught.value.exit_code == 1
    assert str(pickle.loads(pickle.dumps(caught.value))) == line
