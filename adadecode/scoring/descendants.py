"""The processes below this one, those whose parents have ended too, and their end."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path


def end_descendants(program: int) -> int | None:
    """Ends every process below this one, orphans included; returns the exit code of `program`.

    They are stopped before they are killed: what is stopped counts against the limit and forks no more.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    code: int | None = None
    while below := descendants():
        stopped: set[int] = set()
        while new := below - stopped:
            stopped |= new
            for pid in new:
                send(pid, signal.SIGSTOP)
            below = descendants()
        for pid in stopped:
            send(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                ended, status = os.waitpid(-1, 0)
                code = os.waitstatus_to_exitcode(status) if ended == program else code
    return code


def descendants() -> set[int]:
    """The processes below this one, those that have ended and are not taken in yet left out."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]
                parents[int(entry.name)] = int(parent)
    found: set[int] = set()
    above = {os.getpid()}
    while above:
        above = {pid for pid, parent in parents.items() if parent in above} - found
        found |= above
    return found


def tasks_of_user(uid: int) -> Iterator[str]:
    """The threads of all processes of a user, which its limit on processes counts."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if entry.stat().st_uid == uid:
                    yield from (task.name for task in (entry / "task").iterdir())


def send(pid: int, number: signal.Signals) -> None:
    """Sends a signal to a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
