"""How a fuzz tries: few cases with fixed seeds in `make test`, NUM_WHOLE new ones each in `make fuzz`, none for ever.

What fails of the new ones is printed with the line that repeats it.
"""

import contextlib
import functools
import os
import signal
from collections.abc import Callable, Generator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

NUM_FEW, NUM_WHOLE = 40, 2000
LONGEST_CASE_S = 30
IS_WHOLE = os.environ.get("ADADECODE_FUZZ") == "whole"

settings.register_profile(
    "fuzz",
    max_examples=NUM_WHOLE if IS_WHOLE else NUM_FEW,
    deadline=20_000,  # ms, told when the case is over: `stopped_after` ends one that hangs
    derandomize=not IS_WHOLE,
    print_blob=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
_PROFILE = settings.get_profile("fuzz")


class HungError(pytest.fail.Exception):
    """A case that took too long. It is no Exception, so that nothing under test takes it for an error of its own."""


@contextlib.contextmanager
def stopped_after(seconds: float) -> Generator[None]:
    """Raises HungError in what runs longer than `seconds`; only in the main thread."""

    def stop(*_: object) -> None:
        raise HungError(f"still running after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def guarded(check: Callable[..., None]) -> Callable[..., None]:
    """`check`, stopped where one case of it hangs."""

    @functools.wraps(check)
    def case(*arguments: Any, **named: Any) -> None:
        with stopped_after(LONGEST_CASE_S):
            check(*arguments, **named)

    return case


def fuzzed(test: Any) -> Any:
    """What every fuzz is decorated with, above `given`: the profile, and an end for each case that hangs."""
    test.hypothesis.inner_test = guarded(test.hypothesis.inner_test)
    return _PROFILE(test)
