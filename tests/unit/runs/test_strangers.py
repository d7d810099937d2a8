"""A stranger's Parquet in the place of a run's: one clear line, nothing executed, memory bounded."""

import functools
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adadecode.runs.parquet import MAX_UNPACKED
from tests.planting import edit_json
from tests.strangers import BOMBS, SLOW_BOMBS, SMALL

MAX_ADDRESS_SPACE = 8 * 2**30  # bytes, most of which are never touched
MAX_KIB = (MAX_UNPACKED + 2**29) // 2**10  # of memory that was: a table, and the program

LIMITED = f"""
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({MAX_ADDRESS_SPACE}, {MAX_ADDRESS_SPACE}))
from click.testing import CliRunner
from adadecode.cli.main import main
for run in sys.argv[1:]:
    done = CliRunner().invoke(main, ["verify", run])
    failed = None if isinstance(done.exception, (SystemExit, type(None))) else repr(done.exception)
    told = [done.exit_code, done.stdout, done.stderr, failed]
    (peak,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:"))
    print(json.dumps([*told, int(peak)]))
"""


def as_shard(run: Path, stranger) -> None:
    """The file in the place of a committed one, its commit made to fit."""
    commit = run / "commits" / "00000.json"
    file = run / json.loads(commit.read_text())["file"]
    stranger(file)
    edit_json(commit, lambda content: content.update(sha256=hashlib.sha256(file.read_bytes()).hexdigest()))


@pytest.mark.parametrize("stranger", SMALL, ids=lambda stranger: stranger.__name__)
def test_a_strangers_file_is_one_line_wherever_it_stands(run, cli, stranger):
    was_plan = (run / "plan.parquet").read_bytes()
    for name in ("summary.parquet", "verify.parquet"):
        stranger(run / name)
        result = cli("verify", run)
        assert (result.exit_code, len(result.stderr.splitlines())) == (3, 1), result.stderr
        (line,) = (line for line in result.stdout.splitlines() if line.startswith(f"tables: {name}: "))
        assert "\x1b" not in line
    stranger(run / "plan.parquet")
    result = cli("verify", run)
    (line,) = result.stderr.splitlines()
    assert (result.exit_code, result.stdout) == (2, "")
    assert "plan.parquet cannot be read (" in line
    (run / "plan.parquet").write_bytes(was_plan)
    as_shard(run, stranger)
    result = cli("verify", run)
    (line,) = result.stderr.splitlines()
    assert (result.exit_code, result.stdout) == (2, "")
    assert "it holds no rows of a shard (" in line
    assert "\x1b" not in line
    assert not list(run.rglob("executed"))


@pytest.mark.parametrize("bombs", [BOMBS, pytest.param(SLOW_BOMBS, marks=pytest.mark.slow)], ids=["few", "more"])
def test_bombs_take_bounded_memory_and_are_one_line(run, tmp_path, bombs):
    runs = []
    for bomb in bombs:
        bomb(tmp_path / f"{bomb.__name__}.parquet")
        content = (tmp_path / f"{bomb.__name__}.parquet").read_bytes()
        for place in ("plan", "shard"):
            copy = Path(shutil.copytree(run, tmp_path / f"{bomb.__name__}-{place}"))
            if place == "plan":
                (copy / "plan.parquet").write_bytes(content)
            else:
                as_shard(copy, functools.partial(_write, content))
            runs.append(copy)
    done = subprocess.run([sys.executable, "-c", LIMITED, *map(str, runs)], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(runs), done.stderr
    for folder, line in zip(runs, lines, strict=True):
        code, stdout, stderr, failed, max_kib = json.loads(line)
        assert (code, stdout, failed, len(stderr.splitlines())) == (2, "", None, 1), (folder, line)
        assert max_kib < MAX_KIB, folder
        if folder.name.startswith("bomb"):
            assert "GiB in memory, and a table of a run takes at most 1 GiB" in stderr, folder


def test_columns_of_a_strangers_own_are_left_aside_in_whichever_shards_they_are(run, cli):
    """Of one name and two types, so that no table holds them together."""
    for idx, note in enumerate((pa.array([7]), pa.array(["seven"]))):
        commit = run / "commits" / f"{idx:05d}.json"
        file = run / json.loads(commit.read_text())["file"]
        table = pq.ParquetFile(file).read()
        pq.write_table(table.append_column("note", note.take(pa.array([0] * table.num_rows))), file)
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        edit_json(commit, functools.partial(dict.update, sha256=sha256))
    result = cli("verify", run)
    assert (result.exit_code, result.stderr) == (0, "")


def _write(content: bytes, file: Path) -> None:
    file.write_bytes(content)
