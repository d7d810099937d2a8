"""A run of 100,000 rows is audited, told, drawn as a page, compared and exported within 1 GiB."""

import subprocess
import sys

import pytest

from tests.large_run import grow

NUM_SAMPLES = 33_334  # of three methods
MAX_KIB = 2**20
# Runs a command and prints the most memory that it took. A process that this one started would begin with all that the
# tests before took: Linux counts what a process was before it became another program.
LAUNCHER = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


@pytest.mark.slow
def test_a_run_of_100_000_rows_takes_at_most_1_gib(cli, tmp_path):
    small = tmp_path / "small"
    flags = ("--task", "demo-math", "--limit", 8, "--max-new-tokens", 250, "--local", "--threads", 1)
    assert cli("eval", *flags, "--out", small).exit_code == 0
    large = str(grow(small, tmp_path / "large", NUM_SAMPLES, shard_size=64))
    page = ("report", large, "--html", "--out", str(tmp_path / "page.html"))
    export = ("export", large, "--csv", "--out", str(tmp_path / "rows.csv"))
    for command, told in {
        ("verify", large): "parity 33334/33334, logits 33334/33334",
        ("report", large): "parity 33334/33334, logits 33334/33334",
        ("compare", large, large): "outputs: all 100002 are equal, token for token",
        page: "page: ",
        export: "",
    }.items():
        done = subprocess.run(
            [sys.executable, "-c", LAUNCHER, sys.executable, "-m", "adadecode", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        assert told in done.stdout
        most_kib = int(done.stdout.splitlines()[-1])
        assert 100_000 < most_kib < MAX_KIB, command
