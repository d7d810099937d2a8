"""What a fuzz is given: a case that hangs is ended, whatever the code under test catches."""

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import cases
from tests.fuzz.cases import HungError, fuzzed, stopped_after


def loop_for_ever() -> None:
    while True:
        try:
            pass
        except Exception:  # as code under test may
            continue


def test_a_case_that_hangs_is_ended():
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(HungError, match=r"still running after 0\.05 s"), stopped_after(0.05):
        loop_for_ever()
    assert signal.getsignal(signal.SIGALRM) is before


def test_every_case_of_a_fuzz_is_guarded(monkeypatch):
    monkeypatch.setattr(cases, "LONGEST_CASE_S", 0.05)

    @fuzzed
    @given(st.just(1))
    def hang(number):
        loop_for_ever()

    with pytest.raises(HungError, match="still running"):
        hang()
