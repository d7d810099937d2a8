"""Heads of Ray clusters that are started by hand on this machine, on loopback."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from pathlib import Path

BIN = Path(sys.executable).parent


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody has."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def started_head(
    environment: Mapping[str, str], port: int, dashboard: int, agent: int, *options: str, num_cpus: int = 2
) -> Generator[None]:
    """`ray start --head` with `options` on these ports, in a process group of its own, until the end of the context."""
    command = [str(BIN / "ray"), "start", "--head", "--block", f"--num-cpus={num_cpus}", f"--port={port}"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    command += [f"--dashboard-agent-listen-port={agent}", "--disable-usage-stats", *options]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        _wait_for(process, dashboard)
        yield
    finally:
        process.terminate()  # `--block` ends the processes it started
        try:
            process.wait(timeout=20)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _wait_for(process: subprocess.Popen, dashboard: int) -> None:
    """Returns once the dashboard accepts connections; raises RuntimeError when it does not."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError("the head ended")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", dashboard)) == 0:
                return
        time.sleep(0.2)
    raise RuntimeError("no dashboard after 90 s")
