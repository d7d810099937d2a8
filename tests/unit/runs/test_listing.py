"""`report` of a folder of runs, and of a run that was published without its rows."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from adadecode.errors import RunFolderError
from adadecode.runs.lease import Lease
from adadecode.runs.listing import read_published, runs_below
from adadecode.runs.result import read_result
from adadecode.runs.storage import open_storage
from tests.planting import edit_json, edit_table

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden" / "run-0.1.0"
REFERENCE = ROOT / "results" / "reference"
PUBLISHED = sorted(file.parent for file in REFERENCE.glob("*/run.json"))


def upload(folder: Path, location: str) -> None:
    """Copies a folder's files to a location of any kind."""
    storage = open_storage(location)
    for file in folder.rglob("*"):
        if file.is_file():
            storage.replace(file.relative_to(folder).as_posix(), file.read_bytes())


def test_a_folder_of_runs_is_listed_wherever_it_lies(location, cli):
    upload(GOLDEN / "complete", f"{location}/one")
    upload(GOLDEN / "interrupted", f"{location}/sweep/cell")
    result = cli("report", location)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [line.split() for line in result.stdout.splitlines()]
    heading = next(line for line in lines if line[:1] == ["run"])
    assert heading == ["run", "task", "status", "samples", "method", "(95", "%", "CI)", "parity"]
    one = next(line for line in lines if line[:1] == ["one"])
    assert one[1:5] == ["demo-math", "complete", "6", "adadecode"]
    assert one[5].startswith("1.40x")
    assert one[-3:] == ["12/12,", "logits", "12/12"]
    cell = next(line for line in lines if line[:1] == ["sweep/cell"])
    assert cell[1:5] == ["demo-math", "incomplete", "3", "adadecode"]


def test_what_is_lossy_stands_for_a_run_only_where_nothing_else_does_and_says_so(cli, tiny, tmp_path):
    for run, methods in (("one", "vanilla,layer-skipping,transformers,ngram"), ("two", "vanilla,layer-skipping")):
        flags = tiny.flags(methods=methods, heads=None, limit=1, skip_layers="2,3", warmup=0)
        assert cli("eval", "--local", *flags, "--out", tmp_path / run).exit_code == 0
    lines = [line.split() for line in cli("report", tmp_path).stdout.splitlines()]
    assert next(line for line in lines if line[:1] == ["one"])[1:5] == ["jsonl", "complete", "1", "ngram"]
    assert next(line for line in lines if line[:1] == ["two"])[4:6] == ["layer-skipping", "(lossy)"]


def test_a_run_is_listed_as_running_while_its_driver_lives(tmp_path, cli):
    run = Path(shutil.copytree(GOLDEN / "complete", tmp_path / "one"))
    edit_json(run / "run.json", lambda content: content.update(status="running"))
    with Lease(open_storage(run)):
        assert "one demo-math running" in " ".join(cli("report", tmp_path).stdout.split())
    assert "one demo-math interrupted" in " ".join(cli("report", tmp_path).stdout.split())


def test_a_folder_or_a_run_forges_no_line_of_the_listing(tmp_path, cli):
    run = Path(shutil.copytree(GOLDEN / "complete", tmp_path / "x\x1b[2J\nparity 9"))
    (run / "summary.parquet").unlink()
    edit_json(run / "run.json", lambda content: content.update(status="\x1b[1Afine\nmore", config={"task": "a\nb"}))
    result = cli("report", tmp_path)
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert not [line for line in result.stdout.splitlines() if line.startswith(("more", "b ", "parity 9"))]


def test_a_run_without_tables_or_with_odd_ones_is_listed_too(tmp_path, cli):
    for name in ("running", "odd"):
        shutil.copytree(GOLDEN / "complete", tmp_path / name)
    (tmp_path / "running" / "summary.parquet").unlink()
    edit_json(tmp_path / "running" / "run.json", lambda run: run.update(status="running", config=None))
    (tmp_path / "odd" / "summary.parquet").write_bytes(b"PAR1")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text("[1]")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "run.json").write_text("[" * 100_000)
    result = cli("report", tmp_path)
    assert result.exit_code == 0
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()}
    assert rows["running"] == ["-", "interrupted", "-", "-", "-", "-"], "it says it is running, and has no driver"
    assert rows["odd"] == ["demo-math", "complete", "-", "-", "-", "-"]
    assert not rows.keys() & {"other", "deep"}


def test_a_run_that_cannot_be_read_or_is_gone_by_now_leaves_the_others_their_lines(tmp_path, cli):
    for name in ("good", "closed", "without", "gone"):
        shutil.copytree(GOLDEN / "complete", tmp_path / name)
    for file in (tmp_path / "closed" / "run.json", tmp_path / "without" / "summary.parquet"):
        file.unlink()
        file.symlink_to(file)  # who reads it is told of a circle, as root is of no permissions
    (tmp_path / "gone" / "run.json").unlink()
    (tmp_path / "gone" / "run.json").symlink_to(tmp_path / "nowhere.json")
    result = cli("report", tmp_path)
    assert (result.exit_code, result.stderr) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()}
    assert rows["good"][:3] == ["demo-math", "complete", "6"]
    assert rows["closed"] == ["-"] * 6
    assert rows["without"] == ["demo-math", "complete", "-", "-", "-", "-"]
    assert "gone" not in rows


def test_a_folder_without_runs_is_one_line(tmp_path, usage_error):
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign" / "below").mkdir(parents=True)
    (tmp_path / "foreign" / "below" / "run.json").write_text("{")
    for name in ("empty", "foreign", "none"):
        line = usage_error("report", tmp_path / name)
        assert (
            f"{str(tmp_path / name)!r} is not a run folder: it has no readable run.json, nor has any below it" in line
        )


def test_a_run_itself_is_not_listed():
    assert runs_below(GOLDEN / "complete") is None


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_a_published_run_is_reported_as_it_stands_and_contradicts_nothing(folder, cli):
    result = cli("report", folder)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "adadecode" in result.stdout or "transformers" in result.stdout
    assert result.stdout.endswith("its rows are not here: the table is as it was published, nothing was recomputed\n")
    with pytest.raises(RunFolderError, match="its rows are not here; run its command to have them"):
        read_result(folder)


def test_the_published_runs_are_listed(cli):
    assert len(PUBLISHED) == 14
    result = cli("report", REFERENCE)
    assert result.exit_code == 0
    assert {folder.name for folder in PUBLISHED} <= {line.split(" ")[0] for line in result.stdout.splitlines()}


@pytest.mark.parametrize(
    ("file", "columns", "said"),
    [
        (
            "summary",
            {"num_parity_exact": lambda n: n and 199},
            "num_parity_exact of gsm8k vanilla-w1 is 199, by verify",
        ),
        (
            "summary",
            {"num_logits_checked": lambda n: n and 9},
            "num_logits_checked of gsm8k vanilla-w1 is 9, by verify",
        ),
        ("summary", {"method": lambda name: f"{name}?"}, "verify.parquet: gsm8k adadecode is not in summary.parquet"),
        (
            "verify",
            {"parity": lambda parity: "mismatch"},
            "num_parity_exact of gsm8k adadecode is 200, by verify.parquet 0",
        ),
    ],
)
def test_published_tables_that_contradict_each_other_are_told(tmp_path, cli, file, columns, said):
    folder = Path(shutil.copytree(REFERENCE / "gsm8k-bf16", tmp_path / "run"))
    edit_table(folder / f"{file}.parquet", **columns)
    result = cli("report", folder)
    assert result.exit_code == 3
    assert said in result.stdout


def test_a_published_summary_of_another_version_is_readable(tmp_path):
    folder = Path(shutil.copytree(REFERENCE / "gsm8k-bf16", tmp_path / "run"))
    table = pq.read_table(folder / "summary.parquet").drop_columns(["lossy", "consistency"])
    pq.write_table(table, folder / "summary.parquet")
    published = read_published(folder)
    assert published is not None
    summary, contradictions = published
    assert (summary["lossy"].null_count, contradictions) == (3, [])


@pytest.mark.parametrize("end", ["low", "high"])
def test_a_published_speedup_with_half_an_interval_has_none(tmp_path, cli, end):
    run = Path(shutil.copytree(REFERENCE / "gsm8k-bf16", tmp_path / "run"))
    edit_table(run / "summary.parquet", **{f"speedup_geomean_{end}": lambda x: None})
    result = cli("report", run)
    assert result.exit_code == 0
    assert "no interval" in result.stdout
