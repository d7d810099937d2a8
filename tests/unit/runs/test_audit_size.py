"""`adadecode verify` and `report` of a run of 100,000 rows: within 10 seconds of a core and 1 GiB."""

import os
import subprocess
import sys

import pytest

from tests.large_run import grow

NUM_SAMPLES = 33_334  # of three methods
MAX_CPU_S = 10
MAX_KIB = 2**20


@pytest.mark.slow
def test_a_run_of_100_000_rows_is_audited_in_10_seconds_and_1_gib(cli, tmp_path):
    small = tmp_path / "small"
    flags = ("--task", "demo-math", "--limit", 1, "--max-new-tokens", 64, "--local", "--threads", 1)
    assert cli("eval", *flags, "--out", small).exit_code == 0
    large = grow(small, tmp_path / "large", NUM_SAMPLES, shard_size=64)
    for command in ("verify", "report"):
        process = subprocess.Popen(
            [sys.executable, "-m", "adadecode", command, str(large)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        with process.stdout:
            told = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, told
        assert "parity 33334/33334, logits 33334/33334" in told
        assert used.ru_utime + used.ru_stime < MAX_CPU_S
        assert used.ru_maxrss < MAX_KIB
