"""What passes between `adadecode submit` and the first decoded token, stage by stage, on a head of this machine.

Starts a head with a token, submits the demo's evaluation several times, each into a folder of its own, and prints one JSON
object: the least and the median seconds of each stage. The first job, which fills caches, is not counted. Of the driver
its own imports and files tell, by an audit hook that this script puts into it; of the worker its `start_up` in run.json.

    python tests/efficiency/job_overhead.py --repeats 5
"""

import contextlib
import json
import os
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from datetime import datetime
from pathlib import Path

import click
import requests

from adadecode.runs.folder import read_run, read_samples

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
RUN = ("--task", "demo", "--limit", "2", "--workers", "1", "--threads", "1")
# Notes when the driver first imports a module or writes a file, as "seconds since the epoch, what".
HOOK = """
import sys, time
if "eval" in sys.orig_argv and "adadecode" in sys.orig_argv:
    import os, builtins
    _file = os.open(os.environ["OVERHEAD_MARKS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    _seen = set()
    def _mark(what):
        if what not in _seen:
            _seen.add(what)
            os.write(_file, f"{time.time():.4f} {what}\\n".encode())
    _mark("python")
    def _hook(event, arguments):
        if event == "import" and arguments[0] in WATCHED:
            _mark(arguments[0])
        elif event == "open" and str(arguments[0]).endswith(".part") or event == "os.rename":
            _mark(f"{event} {os.path.basename(str(arguments[-1] if event == 'os.rename' else arguments[0]))}")
    WATCHED = frozenset(("click", "adadecode.api", "adadecode.runs.run", "pyarrow", "ray", "torch", "transformers", "scipy",
        "ray_jobs.cluster", "ray_jobs.doctor", "ray_jobs.evaluation", "ray_jobs.metrics", "ray._private.node"))
    sys.addaudithook(_hook)
"""


@contextlib.contextmanager
def head(environment: Mapping[str, str]) -> Generator[str]:
    """A head of two CPUs on loopback; the address of its dashboard."""
    port, dashboard, agent = free_ports(3)
    command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", f"--port={port}"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    command += [f"--dashboard-agent-listen-port={agent}", "--disable-usage-stats"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        for _ in range(450):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", dashboard)) == 0:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody has."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def submit(address: str, environment: Mapping[str, str], out: Path) -> float:
    """Submits the evaluation and waits for it; when it was submitted."""
    command = [str(BIN / "adadecode"), "submit", "--address", address, "eval", *RUN, "--out", str(out)]
    at = time.time()
    done = subprocess.run(command, env=environment, cwd=out.parent, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(done.stdout + done.stderr)
    return at


def taken_at(address: str, token: str, after: float) -> float:
    """When the head took the newest job, submitted `after`."""
    asked = requests.get(f"{address}/api/jobs/", headers={"Authorization": f"Bearer {token}"}, timeout=60)
    return min(job["start_time"] / 1000 for job in asked.json() if (job["start_time"] or 0) / 1000 >= after)


def stages(at: float, taken: float, marks: Path, out: Path) -> dict[str, float]:
    """Seconds of each stage of a run that was submitted `at` and `taken` by the head."""
    lines = (line.split(" ", 1) for line in marks.read_text().splitlines())
    mark = {what: float(time) for time, what in lines}
    (worker,) = read_run(out)["workers"]
    start_up = worker["start_up"]
    ready_at = datetime.fromisoformat(worker["ready_at"]).timestamp()
    warm_up = sum(start_up.pop("warm_up_s").values())
    laps = {name: s for name, s in start_up.items() if s is not None} | {"warm_up_s": warm_up}
    asked_at = ready_at - sum(laps.values())
    first = min(read_samples(out).select(["started_at", "ttft_s"]).to_pylist(), key=lambda row: row["started_at"])
    first_at = first["started_at"].timestamp()
    found = {"client": taken - at, "head takes the job": mark["python"] - taken, "driver": asked_at - mark["python"]}
    found |= {f"worker {name.removesuffix('_s')}": s for name, s in laps.items()}
    found |= {"first sample": first_at - ready_at, "first token": first["ttft_s"]}
    in_driver = {f"driver at {what}": at - mark["python"] for what, at in mark.items()}
    return found | {"all": first_at + first["ttft_s"] - at} | in_driver


@click.command()
@click.option("--repeats", default=5, show_default=True)
def main(repeats: int) -> None:
    """Measures `repeats` jobs after one that is not counted."""
    with tempfile.TemporaryDirectory(prefix="overhead-") as name:
        folder, token = Path(name), secrets.token_hex(32)
        (folder / "sitecustomize.py").write_text(HOOK)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token,
            "RAY_TMPDIR": tempfile.mkdtemp(prefix="ray-"),
        }
        environment |= {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OVERHEAD_MARKS": str(folder / "marks")}
        environment["PYTHONPATH"] = os.pathsep.join((name, str(REPOSITORY)))
        found = []
        with head(environment) as address:
            for repeat in range(-1, repeats):
                (folder / "marks").unlink(missing_ok=True)
                out = folder / f"run{repeat}"
                at = submit(address, environment, out)
                if repeat >= 0:
                    found.append(stages(at, taken_at(address, token, at), folder / "marks", out))
                    click.echo(json.dumps({what: round(s, 2) for what, s in found[-1].items()}), err=True)
        shared = [what for what in found[0] if all(what in one for one in found)]
        figures = {what: [one[what] for one in found] for what in shared}
        least = {what: (round(min(s), 2), round(statistics.median(s), 2)) for what, s in figures.items()}
        click.echo(json.dumps({"jobs": repeats, "least and median s": least}, indent=2))


if __name__ == "__main__":
    main()
