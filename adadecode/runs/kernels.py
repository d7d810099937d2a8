"""The kernels of a run: the worker that has loaded first settles what `auto` comes to, for all that load after it."""

import contextlib
import json
import socket
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from adadecode.errors import RunFolderError
from adadecode.files import from_json
from adadecode.records import ChosenKernels
from adadecode.runs.storage import Storage, join

KERNELS_FILE = "kernels.json"


def settled_kernels(storage: Storage) -> ChosenKernels | None:
    """The kernels of the run; None before a worker has loaded. Raises RunFolderError when they cannot be read."""
    try:
        content = storage.read(KERNELS_FILE)
    except FileNotFoundError:
        return None
    try:
        found = from_json(content)
        return ChosenKernels(found["kernels"], found["because"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{join(storage.location, KERNELS_FILE)}: damaged; delete it and run the same command again"
        ) from error


def kernels_lines(storage: Storage) -> list[str]:
    """A line for a person when the run's kernels are slower than they could be; none otherwise or when it is not known."""
    with contextlib.suppress(RunFolderError):
        settled = settled_kernels(storage)
        return [] if settled is None else settled.lines()
    return []


def settle_kernels(storage: Storage, chosen: ChosenKernels, worker_id: str) -> ChosenKernels:
    """Makes `chosen` the run's kernels, unless another worker was first; returns the run's."""
    host = socket.gethostname()
    because = None if chosen.because is None else f"{chosen.because} (on {host}, the first to load)"
    by = {"worker_id": worker_id, "host": host, "at": datetime.now(UTC).isoformat()}
    storage.create(KERNELS_FILE, _json_bytes({"kernels": chosen.kernels, "because": because, "by": by}))
    settled = settled_kernels(storage)
    assert settled is not None, storage.location
    return settled


def resume_kernels(storage: Storage, commits: Mapping[int, dict[str, Any]]) -> None:
    """Readies a run that is opened: one without rows may come to other kernels, one with rows keeps theirs.

    Only for the driver that holds the lease, before a worker loads.
    """
    used = Counter(kernels for commit in commits.values() if (kernels := commit["worker"].get("kernels")) is not None)
    if not used:
        storage.delete(KERNELS_FILE)
        return
    kernels = used.most_common(1)[0][0]
    because = "committed shards were computed with them" if kernels == "eager" else None
    storage.create(KERNELS_FILE, _json_bytes({"kernels": kernels, "because": because, "by": None}))


def _json_bytes(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
