"""A request to storage that failed for now is made again, a few times, with longer and longer pauses between."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from adadecode.errors import RunFolderError

T = TypeVar("T")

PAUSES_S = (0.2, 1.0, 4.0)
NUM_TRIES = len(PAUSES_S) + 1
REMEDY = "what is committed stays, and the same command continues"


class PassingError(RunFolderError):
    """A request that failed, and that may do when it is made again: a server that restarts, a disk that blinks."""


def patiently(request: Callable[[], T]) -> T:
    """What `request` returns, which must do no harm when it is made twice; raises its last PassingError.

    The pauses differ between callers, so that those who failed together do not come again together.
    """
    for pause_s in PAUSES_S:
        try:
            return request()
        except PassingError:
            time.sleep(pause_s * random.uniform(0.5, 1.5))
    return request()
