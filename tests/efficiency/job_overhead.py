"""What passes between `adadecode submit` and the first decoded token, stage by stage, on a head of this machine.

Starts a head with a token, submits the demo's evaluation several times, each into a folder of its own, and prints one JSON
object: the least and the median seconds of each stage. The first job, which fills caches, is not counted. The driver's
stages are told by the modules it imports, through an audit hook that this script puts into it; the worker's by its
`start_up` in run.json.

    python -m tests.efficiency.job_overhead --repeats 5
"""

import json
import os
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import click
import requests

from adadecode.provenance import cpu_name
from adadecode.runs.folder import read_run, read_samples
from tests.heads import BIN, free_ports, started_head

REPOSITORY = Path(__file__).parents[2]
RUN = ("--task", "demo", "--limit", "2", "--workers", "1", "--threads", "1")
MARKED = ("adadecode.api", "ray")  # modules at whose first import the driver's next stage begins
DRIVER = (
    "driver: imports and settings",
    "driver: data set, plan, run folder",
    "driver: Ray imported and joined, actor asked for",
)
# Notes when the driver begins and when it first imports a module, as "seconds since the epoch, what".
HOOK = f"""
import os, sys, time
if sys.orig_argv[1:4] == ["-m", "adadecode", "eval"]:
    marks = os.open(os.environ["OVERHEAD_MARKS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    left = set({MARKED!r})
    def mark(what):
        os.write(marks, f"{{time.time():.4f}} {{what}}\\n".encode())
    def hook(event, arguments):
        if event == "import" and arguments[0] in left:
            left.remove(arguments[0])
            mark(arguments[0])
    mark("python")
    sys.addaudithook(hook)
"""


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


def stages(at: float, taken: float, marks: Mapping[str, float], out: Path) -> dict[str, float]:
    """Seconds of each stage of a run that was submitted `at` and `taken` by the head; `marks` are its driver's."""
    (worker,) = read_run(out)["workers"]
    start_up = dict(worker["start_up"])
    laps = {"warm-up": sum(start_up.pop("warm_up_s").values())}
    laps |= {name.removesuffix("_s"): s for name, s in start_up.items() if s is not None}
    ready_at = datetime.fromisoformat(worker["ready_at"]).timestamp()
    asked_at = ready_at - sum(laps.values())
    first = min(read_samples(out).select(["started_at", "ttft_s"]).to_pylist(), key=lambda row: row["started_at"])
    token_at = first["started_at"].timestamp() + first["ttft_s"]
    found = {"client, until the head has the job": taken - at, "head, until the driver runs": marks["python"] - taken}
    times = [marks["python"], *(marks[module] for module in MARKED), asked_at]
    found |= {stage: until - since for stage, (since, until) in zip(DRIVER, pairwise(times), strict=True)}
    found |= {
        f"worker: {lap}": laps[lap] for lap in ("process", "imports", "model", "kernels", "rows", "warm-up", "other")
    }
    return found | {"first token of the first sample": token_at - ready_at, "all": token_at - at}


@click.command()
@click.option("--repeats", default=5, show_default=True)
def main(repeats: int) -> None:
    """Measures `repeats` jobs after one that is not counted."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the head is ended too
    with tempfile.TemporaryDirectory(prefix="job-") as name:
        folder, token = Path(name), secrets.token_hex(32)
        (folder / "sitecustomize.py").write_text(HOOK)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token,
            "RAY_TMPDIR": str(folder / "ray"),
        }
        environment |= {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OVERHEAD_MARKS": str(folder / "marks")}
        environment["PYTHONPATH"] = os.pathsep.join((name, str(REPOSITORY)))
        found = []
        port, dashboard, agent = free_ports(3)
        address = f"http://127.0.0.1:{dashboard}"
        with started_head(environment, port, dashboard, agent):
            for repeat in range(-1, repeats):
                (folder / "marks").unlink(missing_ok=True)
                out = folder / f"run{repeat}"
                at = submit(address, environment, out)
                if repeat >= 0:
                    lines = (line.split(" ", 1) for line in (folder / "marks").read_text().splitlines())
                    marks = {what: float(seconds) for seconds, what in lines}
                    found.append(stages(at, taken_at(address, token, at), marks, out))
                    click.echo(f"{found[-1]['all']:.1f} s, load {os.getloadavg()[0]:.1f}", err=True)
        figures = {what: [one[what] for one in found] for what in found[0]}
        least = {
            what: {"least_s": round(min(s), 2), "median_s": round(statistics.median(s), 2)}
            for what, s in figures.items()
        }
        click.echo(json.dumps({"cpu": cpu_name(), "num_jobs": repeats, **least}, indent=2))


if __name__ == "__main__":
    main()
