"""Where programs that a model wrote run: what is allowed them, and what came of one. `launcher.py` does it."""

import contextlib
import json
import math
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from adadecode.errors import AdaDecodeError, UsageError
from adadecode.printable import on_one_line
from adadecode.scoring.scorer import Scored

SandboxKind = Literal["namespaces", "none"]
# Run by the bare interpreter, which finds this package for these imports alone.
LAUNCH = (
    "import sys; sys.path.insert(0, sys.argv[1]); from adadecode.scoring.launcher import main; del sys.path[0]; main()"
)
PACKAGES = Path(__file__).parents[2]
# Its own files alone and no packages; hash seeds are fixed, so that the order of a set is the same in every run.
PYTHON_FLAGS, ENVIRONMENT = ("-P", "-S", "-s", "-B"), {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}
PATIENCE_S = 30.0  # beyond the program's time, until the launcher is given up
# What a program may have beside its time and memory: processes and threads, a file's size and all files' (MB), open files.
PROCESSES, FILE_MB, FILES_MB, OPEN_FILES = 16, 16, 64, 64
MIN_MEMORY_MB, MAX_TIMEOUT_S = 64, 3600.0


class SandboxError(AdaDecodeError):
    """A program that could not be run, which says nothing of it."""


@dataclass(frozen=True)
class Sandbox:
    """What a program may take, and what keeps it apart.

    `namespaces` gives it a user, processes, a network and files of its own, `none` limits alone. `timeout_s` is by the
    clock, `memory_mb` the address space of each of its processes.
    """

    kind: SandboxKind = "namespaces"
    timeout_s: float = 10.0
    memory_mb: int = 512

    def __post_init__(self) -> None:
        if self.kind not in get_args(SandboxKind):
            raise UsageError(f"--sandbox {self.kind}: choose among {', '.join(get_args(SandboxKind))}")
        if not 0 < self.timeout_s <= MAX_TIMEOUT_S:
            raise UsageError(f"--timeout {self.timeout_s:g}: seconds above 0, {MAX_TIMEOUT_S:g} at most")
        if self.memory_mb < MIN_MEMORY_MB:
            raise UsageError(f"--memory-mb {self.memory_mb}: give at least {MIN_MEMORY_MB}, which Python itself takes")

    def check(self) -> None:
        """Raises UsageError where a program that does nothing cannot be run so, with what the system refuses."""
        if sys.platform != "linux":
            raise UsageError("--allow-code-execution: programs are run on Linux alone")
        try:
            outcome = self.run("")
        except SandboxError as error:
            remedy = "; --sandbox none runs programs without namespaces: only in a container of their own"
            raise UsageError(f"--sandbox {self.kind}: {error}{remedy if self.kind == 'namespaces' else ''}") from error
        if outcome.score != 1.0:
            raise UsageError(f"--sandbox {self.kind}: not even an empty program runs: {outcome.reason}")

    def run(self, program: str) -> Scored:
        """1.0 when `program` runs to its end, else 0.0 and why; nothing of it is left when this returns.

        Raises SandboxError where it could not be run.
        """
        nonce = secrets.token_hex(16)
        with _folder(self.kind) as folder:
            outcome = self._outcome({**self._job(), "program": program, "nonce": nonce, "folder": folder})
        if "refused" in outcome:
            raise SandboxError(f"this system refuses it ({on_one_line(outcome['refused'])})")
        return Scored(1.0) if outcome["passed"] else Scored(0.0, on_one_line(outcome["reason"]))

    def _job(self) -> dict[str, Any]:
        limits = {
            "cpu_s": math.ceil(self.timeout_s) + 1,
            "memory_mb": self.memory_mb,
            "processes": PROCESSES,
            "file_mb": FILE_MB,
            "files_mb": FILES_MB,
            "open_files": OPEN_FILES,
        }
        return {"sandbox": self.kind, "timeout_s": self.timeout_s, "limits": limits}

    def _outcome(self, job: dict[str, Any]) -> dict[str, Any]:
        """What the launcher says of a job; it is ended, with all below it, when this is left early."""
        launcher = subprocess.Popen(
            [sys.executable, *PYTHON_FLAGS, "-c", LAUNCH, str(PACKAGES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            cwd="/",
            start_new_session=True,
        )
        try:
            said, complained = launcher.communicate(json.dumps(job).encode(), self.timeout_s + PATIENCE_S)
        except subprocess.TimeoutExpired as error:
            raise SandboxError("the process that runs programs does not answer") from error
        finally:
            _end(launcher)
        try:
            return json.loads(said)
        except ValueError as error:
            last = on_one_line(complained.decode(errors="replace").strip().rpartition("\n")[2] or "no word")
            ending = "it was ended" if launcher.returncode < 0 else "it failed"
            raise SandboxError(f"the process that runs programs: {ending} ({last})") from error


@contextlib.contextmanager
def _folder(kind: SandboxKind) -> Generator[str]:
    """A folder for one program, removed with whatever is in it; within namespaces it is in memory and needs none here."""
    if kind == "namespaces":
        yield "/"
        return
    with tempfile.TemporaryDirectory(prefix="adadecode-", ignore_cleanup_errors=True) as folder:
        yield folder


def _end(launcher: "subprocess.Popen[bytes]") -> None:
    """Ends a launcher that is still there: asked first, as it ends what runs below it."""
    if launcher.poll() is None:
        launcher.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            launcher.wait(PATIENCE_S)
        launcher.kill()
    with launcher:
        launcher.wait()
