"""What of a folder is sent with a job; no cluster."""

import os
import zipfile
from pathlib import Path

import pytest

from adadecode.errors import UsageError
from ray_jobs.packing import FIRST_DAY, MARKS, MIB, NEVER_SENT, package_of
from tests.planted_secrets import FILES, plant_files

SECURITY = Path(__file__).parents[3] / "SECURITY.md"
TOLD_IN_WORDS = {".venv/", "venv/", "__pycache__/", ".cache/", ".tox/", ".nox/", ".ipynb_checkpoints/"}


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def sent(folder: Path) -> set[str]:
    return set(package_of(folder).sizes)


def test_no_file_that_often_holds_a_secret_is_sent_at_any_depth(tmp_path):
    write(tmp_path, "prompts.jsonl", "deep/prompts.jsonl", "my.env", "key.py", "environment.yaml")
    plant_files(tmp_path)
    plant_files(tmp_path / "deep" / "er")
    write(tmp_path, ".ENV", "Server.KEY", "a/.docker/config.json", ".envs/x")
    assert len(FILES) > 10
    assert sent(tmp_path) == {"prompts.jsonl", "deep/prompts.jsonl", "my.env", "key.py", "environment.yaml"}


def test_run_folders_environments_and_caches_are_left_out_wherever_they_lie(tmp_path):
    write(
        tmp_path,
        "task.yaml",
        "data/results/notes.txt",
        "__pycache__/a.pyc",
        "pkg/__pycache__/a.pyc",
        "m/node_modules/x",
    )
    for mark in MARKS:
        write(tmp_path, f"any name {mark}/{mark}", f"any name {mark}/samples/part-0.parquet", f"a/b/{mark}x/x")
        write(tmp_path, f"a/b/of {mark}/{mark}", f"a/b/of {mark}/bin/python")
    assert sent(tmp_path) == {"task.yaml", "data/results/notes.txt", *(f"a/b/{mark}x/x" for mark in MARKS)}


def test_what_ignore_files_name_is_left_out_also_by_those_of_its_repository_above(tmp_path):
    write(tmp_path, ".git/config", "work/.git-blame-ignore-revs", "work/kept/a.bin", "work/data/a.bin", "work/top.log")
    write(tmp_path, "work/kept/keep.log", "work/kept/private/x", "work/big/x")
    (tmp_path / ".gitignore").write_text("*.log\n!keep.log\n")
    (tmp_path / "work" / ".rayignore").write_text("/data/\n")
    (tmp_path / "work" / "kept" / ".gitignore").write_text("private\n")
    expected = {".git-blame-ignore-revs", ".rayignore", "kept/.gitignore", "kept/a.bin", "kept/keep.log", "big/x"}
    assert sent(tmp_path / "work") == expected


def test_a_link_shows_no_other_folder(tmp_path):
    work, outside = tmp_path / "work", tmp_path / "outside"
    write(work, "a.txt", ".env")
    write(outside, "b.txt")
    for name, target in {
        "in": work / "a.txt",
        "out": outside / "b.txt",
        "folder": outside,
        "secret": work / ".env",
    }.items():
        (work / name).symlink_to(target)
    (work / "broken").symlink_to("nowhere")
    os.mkfifo(work / "pipe")
    package = package_of(work)
    assert set(package.sizes) == {"a.txt", "in"}
    assert package.line() == f"working directory {work}: 2 files, 0.0 MiB, without 4 links that lead out of it"


def test_the_size_is_told_and_above_the_limit_refused_with_what_is_largest(tmp_path):
    for name, mib in {"data/a": 2, "data/b": 1, "model.bin": 2.5, "small": 0.1, "x\x1b[2J": 0.2}.items():
        write(tmp_path, name)
        os.truncate(tmp_path / name, int(mib * MIB))
    package = package_of(tmp_path)
    assert package.line() == f"working directory {tmp_path}: 5 files, 5.8 MiB"
    package.check(6)
    with pytest.raises(UsageError) as caught:
        package.check(5)
    said = str(caught.value)
    assert (
        "5.8 MiB to send, and at most 5 are (--max-mib): the largest are data (3.0 MiB), model.bin (2.5 MiB), x" in said
    )
    assert said.endswith(".gitignore what the job does not need, or give --max-mib 6")
    assert said.isprintable()


@pytest.mark.parametrize(
    ("name", "said"), [("nowhere", "is no folder"), ("run", "is a run folder"), ("file", "is no folder")]
)
def test_a_folder_that_is_never_sent_is_one_line(tmp_path, name, said):
    write(tmp_path, "run/run.json", "file")
    with pytest.raises(UsageError, match=said):
        package_of(tmp_path / name)


def test_the_same_files_are_the_same_archive_for_its_user_alone(tmp_path):
    write(tmp_path, "work/a.py", "work/b/c.py")
    (tmp_path / "work" / "a.py").chmod(0o755)
    archives = [tmp_path / "one.zip", tmp_path / "two.zip"]
    for archive, time in zip(archives, (1e9, 1.5e9), strict=True):
        os.utime(tmp_path / "work" / "a.py", (time, time))
        package_of(tmp_path / "work").write(archive)
    assert archives[0].read_bytes() == archives[1].read_bytes()
    assert archives[0].stat().st_mode & 0o777 == 0o600
    with zipfile.ZipFile(archives[0]) as opened:
        assert opened.namelist() == ["a.py", "b/c.py"]
        assert opened.read("b/c.py") == b"work/b/c.py"
        assert {entry.date_time for entry in opened.infolist()} == {FIRST_DAY}
        assert opened.getinfo("a.py").external_attr >> 16 & 0o777 == 0o755


def test_the_security_page_lists_what_is_never_sent():
    text = SECURITY.read_text(encoding="utf-8")
    told = {pattern for pattern in NEVER_SENT if f"`{pattern.removeprefix('**/')}`" in text}
    keys = {name for name in NEVER_SENT if name.startswith("id_")}
    assert set(NEVER_SENT) - told == TOLD_IN_WORDS | keys | {"node_modules/"}
