"""Whether the cluster of a run is still there: a head that is gone answers never, so a thread of its own asks it."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

import ray
from ray.exceptions import RayError

from adadecode.errors import ClusterLostError
from adadecode.printable import on_one_line
from ray_jobs.cluster import RECONNECT, disconnect, is_ours

LOOK_EVERY_S = 1.0
PATIENCE_S = 30.0
LEAST_LOOKS = 5  # without an answer before a head is lost
STRIDE_S = 2.0  # of silence between two checks no more counts: a driver that stood still has heard nobody either

Node = dict[str, Any]  # as `ray.nodes` has it


class ClusterWatch:
    """The nodes that are alive, as the head told last, and how long it has been silent."""

    def __init__(
        self,
        *,
        can_grow: bool,
        list_nodes: Callable[[], list[Node]] = ray.nodes,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`can_grow`: nodes can join, so that one without any is worth waiting for."""
        self._can_grow, self._list_nodes, self._patience_s, self._clock = can_grow, list_nodes, patience_s, clock
        self._nodes: list[Node] | None = None
        self._has_answered, self._is_over = threading.Event(), threading.Event()
        self._silent_s, self._checked_at = 0.0, clock()

    def look(self) -> None:
        """Asks the head; returns never when it is gone."""
        self._nodes = [node for node in self._list_nodes() if node["Alive"]]
        self._has_answered.set()

    def check(self) -> None:
        """Raises ClusterLostError when the head has been silent for too long, or no node is left and none can join.

        Call it often.
        """
        now = self._clock()
        self._silent_s += min(now - self._checked_at, STRIDE_S)
        self._checked_at = now
        if self._has_answered.is_set():
            self._has_answered.clear()
            self._silent_s = 0.0
        if self._silent_s > self._patience_s:
            raise ClusterLostError(f"its head has not answered for {self._silent_s:.0f} s")
        if self._nodes == [] and not self._can_grow:
            raise ClusterLostError("the node it had is dead, and no other can join it")

    def nodes(self) -> list[Node]:
        """The nodes that are alive; waits for the first answer of the head. Raises ClusterLostError."""
        while self._nodes is None:
            self.check()
            self._has_answered.wait(LOOK_EVERY_S)
        return self._nodes

    def keep_looking(self) -> None:
        """Looks until `end`; what Ray raises meanwhile is no answer."""
        while not self._is_over.is_set():
            with contextlib.suppress(Exception):
                self.look()
            self._is_over.wait(LOOK_EVERY_S)

    def end(self) -> None:
        """Has `keep_looking` return, unless it waits for a head that is gone."""
        self._is_over.set()


@contextlib.contextmanager
def watched_cluster(address: str | None) -> Generator[ClusterWatch]:
    """The cluster that was joined at `address` or started, watched while the context lasts.

    When it is lost this process leaves it, before the run is closed, and ClusterLostError says so in one line.
    """
    watch = ClusterWatch(can_grow=not is_ours(address), patience_s=patience_s())
    threading.Thread(target=watch.keep_looking, name="cluster-watch", daemon=True).start()
    try:
        yield watch
    except (ClusterLostError, RayError) as error:
        watch.end()
        disconnect()
        reason = on_one_line(error)
        raise ClusterLostError(
            f"the Ray cluster is gone ({reason}); what is committed stays, and the same command continues"
        ) from error
    finally:
        watch.end()


def patience_s() -> float:
    """How long a head may be silent: half of what Ray was told to wait for one that is started again, where it was.

    Several looks at least, however short that is.
    """
    given = os.environ.get(RECONNECT, "")
    return max(float(given) / 2, LEAST_LOOKS * LOOK_EVERY_S) if given.isdigit() else PATIENCE_S
