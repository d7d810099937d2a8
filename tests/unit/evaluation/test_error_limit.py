import pickle

import pytest

from adadecode.errors import TooManyErrorsError
from adadecode.evaluation.progress import ErrorLimit


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
    assert "`adadecode report` names the commonest errors; what is committed stays" in line
    assert line.endswith("run the same command with --retry-errors, or go on with a higher --max-errors")
    assert "\n" not in line
    assert caught.value.exit_code == 1
    assert str(pickle.loads(pickle.dumps(caught.value))) == line
