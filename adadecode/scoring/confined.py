"""The process that a model's program is: without rights, environment, input or output, under limits."""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import types
from pathlib import Path
from typing import Any, NoReturn

from adadecode.scoring.kernel import (
    CAPABILITIES_V3,
    LIBC,
    PR_CAPBSET_DROP,
    PR_SET_DUMPABLE,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_PDEATHSIG,
    needs,
    prctl,
)

MAX_RESULT_LEN = 1000  # of what a program's error says, in characters


def run_confined(job: dict[str, Any], folder: str, user: tuple[int, int] | None, result: int) -> NoReturn:
    """Gives up all rights, runs the job's program and writes to `result` what came of it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.setsid()
    os.chdir(folder)
    library = reachable_library() if job["sandbox"] == "none" and user is not None else 3
    nothing = os.open("/dev/null", os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    result = os.dup2(result, library)
    os.closerange(result + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    set_limits(job["limits"])
    drop_rights(user)
    os.environ.clear()
    program = os.getpid()
    said = json.dumps(run(job["program"], job["nonce"]))
    if os.getpid() == program:  # not what the program forked, which comes by here too
        os.write(result, said.encode())
    os._exit(0)


def run(program: str, nonce: str) -> dict[str, str]:
    """Runs `program` as a module that is not `__main__`: the nonce when it comes to its end, else why it did not."""
    module = types.ModuleType("program")
    sys.modules["program"] = module
    try:
        exec(compile(program, "program.py", "exec"), module.__dict__)
    except BaseException as error:
        name = type(error).__name__
        with contextlib.suppress(BaseException):  # an error of the program's own may say anything
            name = f"{name}: {error}"[:MAX_RESULT_LEN] if str(error) else name
        return {"reason": name}
    return {"passed": nonce}


def set_limits(limits: dict[str, int]) -> None:
    """Sets what one process may take; a limit that is lower already stays."""
    for name, value in (
        (resource.RLIMIT_CPU, limits["cpu_s"]),
        (resource.RLIMIT_AS, limits["memory_mb"] << 20),
        (resource.RLIMIT_NPROC, limits["processes"]),
        (resource.RLIMIT_FSIZE, limits["file_mb"] << 20),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(name)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (value, value))


def drop_rights(user: tuple[int, int] | None) -> None:
    """Becomes `user`, if any, without a capability and without a way to get one."""
    for capability in range(64):
        LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)  # fails past the last one, and for who has none
    if user is not None:
        os.setgroups([])
        os.setresgid(*[user[1]] * 3)
        os.setresuid(*[user[0]] * 3)
        prctl(PR_SET_DUMPABLE, 1)  # else /proc/self/fd is root's
    needs("capset", (ctypes.c_uint32 * 2)(CAPABILITIES_V3, 0), (ctypes.c_uint32 * 6)())
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # another user's process had lost it


def reachable_library() -> int:
    """Has modules imported through open folders, which stay reachable where root's are not; returns the next free file."""
    places: dict[str, str] = {}
    for path in (path for path in sys.path if Path(path).is_dir()):
        opened = os.open(path, os.O_PATH)
        places[path] = f"/proc/self/fd/{os.dup2(opened, 10 + len(places))}"
    sys.path[:] = [places.get(path, path) for path in sys.path]
    sys.path_importer_cache.clear()
    for module in list(sys.modules.values()):
        if isinstance(found := getattr(module, "__path__", None), list):
            module.__path__ = [
                next((now + path[len(was) :] for was, now in places.items() if path.startswith(was + "/")), path)
                for path in found
            ]
    return 10 + len(places)
