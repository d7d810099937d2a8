"""Programs that loop, fork, eat memory, write, signal and call out: each ends with a score, and nothing of it is left."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pytest

from adadecode.errors import UsageError
from adadecode.scoring.sandbox import Sandbox, SandboxKind

ROOT = Path(__file__).parents[3]
TIMEOUT_S = 1.5


def refusal(kind: SandboxKind) -> str | None:
    try:
        Sandbox(kind).check()
    except UsageError as error:
        return str(error)
    return None


REFUSED = {kind: refusal(kind) for kind in ("namespaces", "none")}
KINDS = [
    pytest.param(kind, marks=pytest.mark.skipif(REFUSED[kind] is not None, reason=str(REFUSED[kind])))
    for kind in ("namespaces", "none")
]
NAMESPACES = pytest.mark.skipif(REFUSED["namespaces"] is not None, reason=str(REFUSED["namespaces"]))


@pytest.fixture(params=KINDS)
def sandbox(request, monkeypatch, tmp_path) -> Sandbox:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return Sandbox(request.param, timeout_s=TIMEOUT_S, memory_mb=256)


@pytest.fixture
def apart(monkeypatch, tmp_path) -> Sandbox:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return Sandbox("namespaces", timeout_s=TIMEOUT_S, memory_mb=256)


@pytest.fixture
def name() -> str:
    """A name that a program gives itself, and so every process that it forks."""
    return f"ada-{uuid.uuid4().hex[:8]}"


def named(name: str, program: str) -> str:
    return f"import ctypes, os, signal, time\nctypes.CDLL(None).prctl(15, {name.encode()!r}, 0, 0, 0)\n{program}"


def processes(name: str) -> list[str]:
    """The processes of the machine, those in other namespaces too, that have the name."""
    found = []
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            found += [comm.parent.name] if comm.read_text().strip() == name else []
        except OSError:
            continue
    return found


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert sum([1, 2]) == 3", None),
        ("from typing import List\nimport math, re, collections, itertools, hashlib, decimal, dataclasses, json", None),
        ("import dataclasses\n@dataclasses.dataclass\nclass P:\n    x: 'int'\nassert P(1).x == 1", None),
        ("if __name__ == '__main__': raise ValueError", None),
        ("print('x' * 10**6)", None),
        ("open('kept', 'w').write('x'); assert open('kept').read() == 'x'", None),
        ("assert [*{'a', 'b', 'c', 'd'}] == [*{'d', 'c', 'b', 'a'}]", None),
        ("assert sum([1, 2]) == 4", "AssertionError"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
        ("def f(:", "SyntaxError: invalid syntax (program.py, line 1)"),
        ("class E(Exception):\n    def __str__(self): raise KeyError\nraise E", "E"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("import os; os._exit(0)", "it ended itself with exit code 0 before its tests were through"),
        ("import os\nif os.fork(): os._exit(3)", "it ended itself with exit code 3 before its tests were through"),
        ("input()", "EOFError: EOF when reading a line"),
        ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
        ("import ctypes; ctypes.string_at(0)", "it was ended by SIGSEGV"),
        ("import numpy", "ModuleNotFoundError: No module named 'numpy'"),
    ],
)
def test_a_program_passes_when_it_comes_to_its_end(sandbox, tmp_path, program, reason):
    assert sandbox.run(program) == (float(reason is None), reason)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "time.sleep(600)",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass",
        "os.kill(os.getpid(), signal.SIGSTOP)",
        "while True: print('x' * 1000)",
        "import threading\nthreading.Thread(target=time.sleep, args=(600,)).start()\ntime.sleep(600)",
    ],
    ids=["loops", "sleeps", "ignores signals", "stops itself", "prints", "has a thread"],
)
def test_a_program_that_does_not_end_is_ended(sandbox, name, program):
    assert sandbox.run(named(name, program)) == (0.0, "it ran longer than 1.5 s")
    assert processes(name) == []


@pytest.mark.parametrize(
    "program",
    [
        "while True:\n    try: os.fork()\n    except OSError: pass",
        "while True:\n    try:\n        if os.fork() == 0: os.setsid()\n    except OSError: time.sleep(0.01)",
    ],
    ids=["in one group", "each in a session of its own"],
)
def test_a_fork_bomb_is_bounded_and_ended(sandbox, name, program):
    assert sandbox.run(named(name, program)).score == 0.0
    assert processes(name) == []


def test_processes_that_left_the_group_and_their_parents_do_not_outlive_the_program(sandbox, name):
    program = """
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
time.sleep(0.2)
"""
    assert sandbox.run(named(name, program)) == (1.0, None)
    assert processes(name) == []


def test_memory_threads_files_and_their_sizes_are_bounded(sandbox, tmp_path):
    assert sandbox.run("x = []\nwhile True: x.append(bytearray(10**6))").reason == "MemoryError"
    assert sandbox.run("with open('big', 'wb') as f:\n    while True: f.write(bytes(10**6))").reason == (
        "OSError: [Errno 27] File too large"
    )
    assert "Too many open files" in sandbox.run("x = [open('/dev/null') for _ in range(1000)]").reason
    threads = "import threading, time\nfor _ in range(100): threading.Thread(target=time.sleep, args=(9,)).start()"
    assert sandbox.run(threads).reason == "RuntimeError: can't start new thread"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_entered_is_removed_too(sandbox, tmp_path):
    assert sandbox.run("import os\nos.makedirs('a/b')\nopen('a/b/c', 'w')\nos.chmod('a/b', 0)").score == 1.0
    assert list(tmp_path.iterdir()) == []


@NAMESPACES
def test_all_files_together_are_bounded(apart):
    program = "import itertools\nfor i in itertools.count(): open(str(i), 'wb').write(bytes(10**6))"
    assert apart.run(program).reason == "OSError: [Errno 28] No space left on device"


@NAMESPACES
def test_nothing_outside_can_be_written_or_read(apart, tmp_path):
    places = [
        tmp_path,
        Path("/tmp"),
        Path("/var/tmp"),
        Path("/dev/shm"),
        Path("/"),
        Path.home(),
        ROOT,
        Path(sys.prefix),
    ]
    marker = f"ada-{uuid.uuid4().hex}"
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    program = f"""
import os
for place in {[str(place) for place in places]!r}:
    try:
        os.makedirs(place, exist_ok=True)
        open(os.path.join(place, {marker!r}), 'w').write('x')
    except OSError:
        pass
for path in ({str(secret)!r}, '/etc/passwd', '/proc/1/environ', {str(ROOT / "pyproject.toml")!r}):
    assert not os.path.exists(path), path
for library in (os.__file__, '/usr/bin'):
    try:
        os.chmod(library, 0o777)
    except OSError:
        continue
    raise AssertionError(library)
"""
    assert apart.run(program) == (1.0, None)
    assert [place for place in places if (place / marker).exists()] == []
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


@NAMESPACES
def test_signals_reach_nothing_outside(apart, name):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as victim:
        program = f"""
assert os.getpid() < 10, 'not in namespaces: nothing is sent'
for pid in (os.getppid(), 1, {os.getpid()}, {victim.pid}, 0, -1):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        if pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if (pid, number) != (0, signal.SIGKILL):
            try:
                os.kill(pid, number)
            except (ProcessLookupError, PermissionError):
                pass
"""
        assert apart.run(named(name, program)) == (1.0, None)
        assert victim.poll() is None
        victim.communicate(b"\n")
    assert processes(name) == []


@NAMESPACES
def test_no_network_can_be_reached(apart):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        scored = apart.run(f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)")
        assert scored.score == 0.0
        assert scored.reason is not None
        assert scored.reason.startswith("OSError") or "refused" in scored.reason
        with pytest.raises(BlockingIOError):
            server.accept()
    assert "OSError" in apart.run("import socket; socket.socket().connect(('192.0.2.1', 80))").reason


def test_nothing_of_the_environment_is_there(sandbox, monkeypatch):
    monkeypatch.setenv("ADADECODE_SECRET", "s3cret")
    program = """
import ctypes, os
assert dict(os.environ) == {}, os.environ
assert ctypes.CDLL(None).getenv(b'ADADECODE_SECRET') == 0
assert os.stat(0) == os.stat(1) == os.stat(2) == os.stat('/dev/null')
"""
    assert sandbox.run(program) == (1.0, None)


@NAMESPACES
def test_a_program_has_no_rights_and_can_get_none(apart):
    program = """
import ctypes, os
assert os.getuid() != 0 and os.geteuid() != 0
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x10000000) == -1, 'a user namespace'
assert libc.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None) == -1
assert libc.prctl(39, 0, 0, 0, 0) == 1, 'no new privileges'
try:
    os.setuid(0)
except PermissionError:
    pass
else:
    raise AssertionError
"""
    assert apart.run(program) == (1.0, None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_program_ends_when_the_command_is_killed(kind, name):
    code = f"from adadecode.scoring.sandbox import Sandbox; Sandbox({kind!r}, 60.0).run({named(name, 'time.sleep(600)')!r})"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as command:
        until(lambda: processes(name) != [])
        command.send_signal(signal.SIGKILL)
    until(lambda: processes(name) == [])


def until(holds, within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "jail"}, "--sandbox jail: choose among namespaces, none"),
        ({"timeout_s": 0.0}, "--timeout 0: seconds above 0, 3600 at most"),
        ({"timeout_s": float("nan")}, "--timeout nan: seconds above 0, 3600 at most"),
        ({"memory_mb": 8}, "--memory-mb 8: give at least 64, which Python itself takes"),
    ],
)
def test_limits_that_cannot_be_are_refused(settings, said):
    with pytest.raises(UsageError, match=said):
        Sandbox(**settings)


def has_user_namespaces() -> bool:
    """Whether a process may be put where no more namespaces are allowed, as on a system that allows none."""
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", "echo 0 > /proc/sys/user/max_user_namespaces"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not has_user_namespaces(), reason="no user namespace can be had to forbid them in")
def test_where_the_system_allows_no_namespaces_one_line_says_so(tmp_path):
    code = "from adadecode.scoring.sandbox import Sandbox; Sandbox().check()"
    shell = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$0" -c "$1"'
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", shell, sys.executable, code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    said = done.stderr.strip().splitlines()[-1]
    assert "UsageError: --sandbox namespaces: this system refuses it (unshare: " in said
    assert said.endswith("; --sandbox none runs programs without namespaces: only in a container of their own")
