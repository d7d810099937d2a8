"""A run that really was slower: its engine slept after each round, which `compare` finds beside the run that did not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SLEEP = 0.08  # of what a generation took
NUM_TRIES = 3  # on a machine that others use too an interval may be too wide
# What every Python process of the slowed run does first: rounds of methods that draft wait before their clock is read.
SITECUSTOMIZE = f"""
import time
from adadecode.engine.tally import Tally


def waits(name):
    plain = getattr(Tally, name)

    def note(self, *values):
        if self._draft_exits:
            now = time.perf_counter()
            until = now + {SLEEP} * (now - getattr(self, "_noted", self._clocks[0] / 1e9))
            while time.perf_counter() < until:
                time.sleep(0)
        plain(self, *values)
        self._noted = time.perf_counter()

    setattr(Tally, name, note)


waits("add_token")
waits("add_round")
"""


def adadecode(*arguments: object, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT) if path is None else f"{path}{os.pathsep}{ROOT}"]
    return subprocess.run(
        [sys.executable, "-m", "adadecode", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths[0]},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_an_engine_that_sleeps_eight_percent_of_each_round_is_found(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE)
    flags = ("--local", "--threads", 1, "--task", "demo-math", "--limit", 24, "--repeats", 3, "--max-new-tokens", 48)
    flags += ("--methods", "vanilla,adadecode")
    idx, found = 0, None
    plain, slowed = tmp_path, tmp_path
    while idx < NUM_TRIES and (found is None or found.returncode != 5):
        plain, slowed = (tmp_path / f"{name}-{idx}" for name in ("plain", "slowed"))
        for out, path in ((plain, None), (slowed, tmp_path)):
            done = adadecode("eval", *flags, "--out", out, path=path)
            assert done.returncode == 0, done.stderr
        found = adadecode("compare", plain, slowed, "--fail-if-slower", "5%", "--over-vanilla")
        assert "outputs: all 144 are equal, token for token" in found.stdout
        idx += 1
    assert found is not None
    assert found.returncode == 5, found.stdout + found.stderr
    (line,) = found.stderr.splitlines()
    assert line.startswith("adadecode on demo-math: its speedup over vanilla by A's is 0.")
    assert adadecode("compare", slowed, plain, "--fail-if-slower", "5%", "--over-vanilla").returncode == 0
