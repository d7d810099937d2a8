"""Runs one program that a model wrote, in a process of its own that `sandbox.py` starts, with the standard library alone.

It reads a job as JSON on stdin and prints what came of it as one JSON object: `{"passed": true}`, or false with a
`reason`, or `{"refused": why}` where the sandbox cannot be had.

Three processes: the launcher, which holds the time; with namespaces their first process, whose end is the end of all in
them; and the program, which has no rights, no environment, no input and no output but a pipe for its own result. Without
namespaces the launcher adopts whatever the program leaves behind and ends it.
"""

import contextlib
import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from adadecode.scoring.confined import MAX_RESULT_LEN, run_confined
from adadecode.scoring.descendants import end_descendants, tasks_of_user
from adadecode.scoring.kernel import PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, RefusedError, prctl
from adadecode.scoring.namespaces import FOLDER, NOBODY, build_root, enter_namespaces

REFUSED = 99  # the exit code of the first process where it could not build what the program needs


def main() -> None:
    """Runs the job on stdin and prints what came of it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, leave)
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    job = json.load(sys.stdin)
    with contextlib.suppress(OSError):  # where memory runs out, this goes first
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        outcome = in_namespaces(job) if job["sandbox"] == "namespaces" else without_namespaces(job)
    except RefusedError as error:
        outcome = {"refused": str(error)}
    print(json.dumps(outcome))


def leave(*_: object) -> NoReturn:
    """Ends this process, which ends the program: it was asked to, or who started it is gone."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(1)


def in_namespaces(job: dict[str, Any]) -> dict[str, Any]:
    """Runs the job's program as the second process of namespaces of its own."""
    user = enter_namespaces()
    results, result = os.pipe()
    first = os.fork()
    if first == 0:
        os.close(results)
        first_process(job, user, result)
    os.close(result)
    try:
        in_time = wait(first, job["timeout_s"])
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.kill(first, signal.SIGKILL)
        status = os.waitpid(first, 0)[1]  # which returns when no process is left in the namespaces
    return outcome_of(job, results, os.waitstatus_to_exitcode(status), in_time)


def without_namespaces(job: dict[str, Any]) -> dict[str, Any]:
    """Runs the job's program as a child that is adopted with all of its own."""
    user = (NOBODY, NOBODY) if os.getuid() == 0 else None
    if user is not None:
        os.chown(job["folder"], *user)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    results, result = os.pipe()
    others = sum(1 for _ in tasks_of_user(os.getuid() if user is None else NOBODY))
    program = os.fork()
    if program == 0:
        os.close(results)
        limits = job["limits"] | {"processes": job["limits"]["processes"] + others}
        run_confined(job | {"limits": limits}, job["folder"], user, result)
    os.close(result)
    try:
        in_time = wait(program, job["timeout_s"])
    finally:
        code = end_descendants(program)
    return outcome_of(job, results, code, in_time)


def first_process(job: dict[str, Any], user: tuple[int, int] | None, result: int) -> NoReturn:
    """Builds the file system, starts the program, takes in what is orphaned, and ends with the program."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a first process without handlers gets no signal from within
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        build_root(job["limits"]["files_mb"])
    except (OSError, RefusedError) as error:
        os.write(result, str(error)[:MAX_RESULT_LEN].encode())
        os._exit(REFUSED)
    program = os.fork()
    if program == 0:
        run_confined(job, FOLDER, user, result)
    os.close(result)
    ended = status = 0
    while ended != program:
        ended, status = os.wait()
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def wait(pid: int, timeout_s: float) -> bool:
    """Waits until the child `pid` has ended, `timeout_s` at most; whether it has."""
    descriptor = os.pidfd_open(pid)
    try:
        return bool(select.select([descriptor], [], [], timeout_s)[0])
    finally:
        os.close(descriptor)


def outcome_of(job: dict[str, Any], results: int, code: int | None, in_time: bool) -> dict[str, Any]:
    """What came of the job, from what the program wrote and the exit code of the process that was waited for."""
    os.set_blocking(results, False)
    said = b""
    with contextlib.suppress(BlockingIOError):
        said = os.read(results, 1 << 16)
    if code == REFUSED and job["sandbox"] == "namespaces" and not said.startswith(b"{"):
        raise RefusedError(said.decode(errors="replace"))
    if not in_time:
        return {"passed": False, "reason": f"it ran longer than {job['timeout_s']:g} s"}
    try:
        found = json.loads(said)
        if found == {"passed": job["nonce"]}:
            return {"passed": True}
        return {"passed": False, "reason": str(found["reason"])}
    except (ValueError, KeyError, TypeError):
        return {"passed": False, "reason": ending(code)}


def ending(code: int | None) -> str:
    """How a program ended that did not come to the end of its tests."""
    number = 0 if code is None else -code if code < 0 else code - 128
    if number <= 0:
        return f"it ended itself with exit code {code} before its tests were through"
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = str(number)
    return "it used up its CPU time" if name == "SIGXCPU" else f"it was ended by {name}"
