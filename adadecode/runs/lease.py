"""One driver per run folder: a numbered file that exactly one process can create, and a heartbeat in it.

The highest number is the lease. Clocks of two hosts are never compared: a heartbeat is stale when it was watched and
did not change.
"""

import contextlib
import getpass
import json
import os
import socket
import threading
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from adadecode.errors import AdaDecodeError, LeaseError, RunFolderError
from adadecode.files import from_json
from adadecode.runs.patience import PassingError
from adadecode.runs.storage import Storage

HEARTBEAT_S = 5.0
STALE_S = 30.0
FOLDER = "lease"
POLLS_PER_HEARTBEAT = 5
OWNER = {"user", "host", "boot_id", "pid", "started", "id"}  # what a lease of any version says of its owner
TAKING_PAUSES_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
DEAD = "interrupted: no driver is alive; the same command continues"


class Lease:
    """A context in which this process is the run's only driver; `lost` becomes true when another took it over."""

    def __init__(self, storage: Storage, *, heartbeat_s: float = HEARTBEAT_S, stale_s: float = STALE_S) -> None:
        self.lost = False
        self._storage, self._heartbeat_s, self._stale_s = storage, heartbeat_s, stale_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> Self:
        """Takes the lease; raises LeaseError while another's heartbeat goes on, and waits until it is stale."""
        self._content: dict[str, Any] = {"owner": this_owner(), "since": _now(), "beat": 0, "released": False}
        self._number = self._take()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Gives the lease back, so that the next driver needs not wait."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(AdaDecodeError, OSError):  # not released it becomes stale; the run itself is done
            if not self.lost and self._is_ours():
                self._content["released"] = True
                try:
                    self._write()
                except (AdaDecodeError, OSError):
                    self._storage.delete(_name(self._number))  # a full disk still takes that

    def check(self) -> None:
        """Raises LeaseError when the lease is known to be lost."""
        if self.lost:
            raise LeaseError(
                f"{self._storage.location!r}: another driver took the run over while this one stood still or its disk did "
                "not answer; what is committed stays, and the same command continues"
            )

    def confirm(self) -> None:
        """Raises LeaseError when the lease is lost by now, and RunFolderError when the disk does not tell."""
        self.lost = self.lost or not self._is_ours()
        self.check()

    def _take(self) -> int:
        for pause_s in TAKING_PAUSES_S:
            last = max(self._numbers(), default=0)
            if last:
                self._wait_for(last)
            number = last + 1
            if self._storage.create(_name(number), _bytes(self._content)):
                others = self._numbers()
                if max(others, default=number) == number:
                    for other in others:
                        if other < number:
                            self._storage.delete(_name(other))
                    return number
                self._storage.delete(_name(number))  # others came and went since we looked
            self._ended.wait(pause_s)
        raise LeaseError(
            f"{self._storage.location!r}: the lease cannot be taken, at {len(TAKING_PAUSES_S)} tries: other drivers come "
            f"and go, or {FOLDER}/ does not list what is in it; run the same command again when they have ended"
        )

    def _wait_for(self, number: int) -> None:
        """Returns when the lease `number` may be taken; raises LeaseError when its owner lives."""
        seen = self._read(number)
        if seen is None or seen["released"] or is_gone(seen["owner"]):
            return
        watched_since = time.monotonic()
        while not is_here(seen["owner"]) and time.monotonic() - watched_since < self._stale_s:
            self._ended.wait(self._heartbeat_s / POLLS_PER_HEARTBEAT)
            now = self._read(number)
            if now is None or now["released"]:
                return
            if now["beat"] != seen["beat"]:
                raise self._refusal(seen)
        if is_here(seen["owner"]):
            raise self._refusal(seen)

    def _refusal(self, seen: dict[str, Any]) -> LeaseError:
        owner = seen["owner"]
        return LeaseError(
            f"{self._storage.location!r} is in use by {owner['user']}@{owner['host']}, process {owner['pid']}, since "
            f"{seen['since']}: wait until it has ended, end it, or choose another --out"
        )

    def _keep(self) -> None:
        """Beats until the context ends or another driver has the lease.

        A disk that does not answer makes nobody lose it: whoever wants it watches the heartbeat, and when the disk answers
        again it says whose it is.
        """
        while not self._ended.wait(self._heartbeat_s):
            with contextlib.suppress(AdaDecodeError, OSError):
                if not self._is_ours():
                    self.lost = True
                    return
                self._content |= {"beat": self._content["beat"] + 1, "beat_at": _now()}
                self._write()

    def _is_ours(self) -> bool:
        """Whether no other driver has taken the lease; raises RunFolderError when the folder does not tell."""
        numbers = self._numbers()
        if self._number in numbers and max(numbers) == self._number:
            content = self._read(self._number)
            if content is not None:
                return content["owner"]["id"] == self._content["owner"]["id"]
        elif numbers:
            return False
        raise RunFolderError(
            f"{self._storage.location!r}: this driver's file {_name(self._number)} is not there any more, nor another's: "
            "what is committed stays, and the same command continues"
        )

    def _write(self) -> None:
        self._storage.replace(_name(self._number), _bytes(self._content))

    def _numbers(self) -> list[int]:
        stems = [name.removeprefix(f"{FOLDER}/").removesuffix(".json") for name in self._storage.list(FOLDER)]
        return [int(stem) for stem in stems if stem.isdigit()]

    def _read(self, number: int) -> dict[str, Any] | None:
        try:
            content = from_json(self._storage.read(_name(number)))
            if (OWNER - content["owner"].keys()) or ({"beat", "released"} - content.keys()):
                return None
            _seconds_since(content.get("beat_at", content["since"]))
        except PassingError:
            raise  # a disk that does not answer does not say that nobody holds the lease
        except (FileNotFoundError, ValueError, AttributeError, KeyError, TypeError):
            return None  # deleted by its successor, or damaged: no driver writes such a file
        return content


def driver_status(storage: Storage) -> str:
    """What a run that says it is running does: whether the driver that said so lives, and its last sign of life.

    On another host that is judged by the age of the last heartbeat; clocks may differ by half a minute.
    """
    lease = Lease(storage)
    seen = lease._read(max(lease._numbers(), default=0))
    if seen is None or seen["released"]:
        return DEAD
    owner, last = seen["owner"], seen.get("beat_at", seen["since"])
    age_s = _seconds_since(last)
    if is_gone(owner) or (not is_here(owner) and age_s > 2 * STALE_S):
        return f"{DEAD} (last sign of life {age_s:.0f} s ago)"
    return f"running (process {owner['pid']} on {owner['host']}, last sign of life {age_s:.0f} s ago)"


def is_driven(storage: Storage) -> bool:
    """Whether the driver of a run that says it is running lives, as `driver_status` judges."""
    return not driver_status(storage).startswith(DEAD)


def this_owner() -> dict[str, Any]:
    """What tells this process from every other one, on any host and at any time."""
    return {
        "user": _user(),
        "host": socket.gethostname(),
        "boot_id": _boot_id(),
        "pid_space": _pid_space(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "id": uuid.uuid4().hex,
    }


def is_here(owner: dict[str, Any]) -> bool:
    """Whether `owner` is or was a process of this host, since it was last started."""
    here = (socket.gethostname(), _boot_id(), _pid_space())
    return None not in here and (owner["host"], owner["boot_id"], owner.get("pid_space")) == here


def is_gone(owner: dict[str, Any]) -> bool:
    """Whether `owner` was a process of this host that has ended; False when it cannot be known."""
    return is_here(owner) and _started(owner["pid"]) != owner["started"]


def _boot_id() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


def _pid_space() -> str | None:
    """Which processes have numbers here: containers on one host count their own."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None


def _started(pid: int) -> int | None:
    """When process `pid` started, in clock ticks since the boot; None when there is none, or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (OSError, ValueError):  # ValueError: no number at all
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may run under a number without a name
        return str(os.getuid())


def _name(number: int) -> str:
    return f"{FOLDER}/{number:05d}.json"


def _seconds_since(moment: str) -> float:
    """How long ago `moment` was by this host's clock, 0 for one to come; raises TypeError or ValueError for no moment."""
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _bytes(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
