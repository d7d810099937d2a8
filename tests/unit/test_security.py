"""What a run leaves: no secrets, nothing that others may write to, and nothing outside its own folder."""

import base64
import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adadecode.cli.submit import show_text
from adadecode.files import PRIVATE, keep_others_from_writing, make_folder
from adadecode.settings import EvalConfig
from tests.planted_secrets import FILES, IN_FILES, VARIABLES, found_in, places_of_secrets, plant_files

OTHERS_WRITE = 0o022


@pytest.fixture
def loose_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}


def test_a_run_its_page_and_its_exports_hold_no_secret(cli, tiny, tmp_path, monkeypatch):
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    here = tmp_path / "here"
    here.mkdir()
    plant_files(here)
    monkeypatch.chdir(here)
    (here / "settings.yaml").write_text(f"# HF_TOKEN={IN_FILES}\nlimit: 2\n")
    out = tmp_path / "left" / "run"
    said = cli("eval", "--local", "--config", "settings.yaml", *tiny.flags(max_new_tokens=2), "--out", out)
    assert said.exit_code == 0, said.stderr
    for command in (
        ("report", out, "--html", "--out", tmp_path / "left" / "page.html"),
        *(("export", out, f"--{form}", "--out", tmp_path / "left" / form) for form in ("csv", "json", "aiperf")),
        ("verify", out),
    ):
        done = cli(*command)
        assert done.exit_code == 0, done.stderr
        assert found_in((done.stdout + done.stderr).encode()) == []
    assert found_in((said.stdout + said.stderr).encode()) == []
    assert list(places_of_secrets(tmp_path / "left")) == []


def test_a_setting_that_is_none_is_refused_without_its_value(cli, tiny, tmp_path):
    """A secret in the wrong file is no reason to show it to whoever reads the log."""
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"hf_token: {IN_FILES}\n")
    refused = cli("eval", "--local", "--config", settings, *tiny.flags(), "--out", tmp_path / "run")
    assert refused.exit_code == 2
    assert "hf_token" in refused.stderr
    assert found_in((refused.stdout + refused.stderr).encode()) == []


@pytest.mark.parametrize(
    "flags",
    [
        ("--model", "https://u:{}@hub.example/m"),
        ("--address", "ray://u:{}@head:10001"),
        ("--data-file", "s3://u:{}@bucket/rows.jsonl"),
        ("--heads", "https://u:{}@hub.example/heads"),
        ("--out", "s3://u:{}@bucket/run"),
        ("--config", "s3://u:{}@bucket/settings.yaml"),
        ("--policy", "s3://u:{}@bucket/policy.yaml"),
        ("--no-such-flag=https://u:{}@host"),
    ],
    ids=lambda flags: flags[0] if isinstance(flags, tuple) else flags,
)
@pytest.mark.parametrize("command", ["eval", "doctor"])
def test_a_password_in_a_url_is_refused_and_not_shown(cli, tiny, tmp_path, monkeypatch, flags, command):
    """What a run is told is stored with it, and what is refused is in a log."""
    monkeypatch.chdir(tmp_path)
    given = [flag.format(IN_FILES) for flag in ((flags,) if isinstance(flags, str) else flags)]
    refused = cli(command, *tiny.flags(max_new_tokens=2), *given)
    assert refused.exit_code == 2, refused.stdout
    assert found_in((refused.stdout + refused.stderr).encode()) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [("jobs", "ls"), ("submit", "--no-wait")], ids=lambda command: command[0])
@pytest.mark.parametrize("is_in_variable", [False, True])
def test_a_password_in_a_dashboards_address_is_refused_and_not_shown(cli, monkeypatch, command, is_in_variable):
    address = f"http://me:{IN_FILES}@127.0.0.1:1"
    if is_in_variable:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
    given = () if is_in_variable else ("--address", address)
    refused = cli(*command, *given, *(("eval", "--out", "/a/b") if command[0] == "submit" else ()))
    assert refused.exit_code == 2
    assert "leave its user name and password out" in refused.stderr
    assert found_in((refused.stdout + refused.stderr).encode()) == []


def test_a_text_may_have_what_looks_like_a_password():
    assert EvalConfig(system_prompt="Write to https://me@example.org").system_prompt is not None


def test_a_planted_secret_is_found_in_whatever_form(tmp_path):
    """The search of these tests can fail."""
    token = VARIABLES["HF_TOKEN"]
    (tmp_path / "plain").write_text(f"a {token} b")
    (tmp_path / "packed.html").write_bytes(b'"' + base64.b64encode(gzip.compress(token.encode() * 3)) + b'"')
    pq.write_table(pa.table({"x": ["y" * 100, f"{token}!"]}), tmp_path / "rows.parquet", compression="zstd")
    (tmp_path / token).write_text("")
    assert len(list(places_of_secrets(tmp_path))) == 4
    plant_files(tmp_path / "files")
    assert len(list(places_of_secrets(tmp_path / "files"))) == len(FILES)


def test_under_a_loose_umask_only_its_user_reads_a_run_and_nobody_else_writes(cli, tiny, tmp_path, loose_umask):
    left = tmp_path / "left"
    left.mkdir(mode=0o755)
    run = left / "run"
    assert cli("eval", "--local", *tiny.flags(max_new_tokens=2, data_file=tiny.prompts), "--out", run).exit_code == 0
    assert cli("report", run, "--html", "--out", left / "page.html").exit_code == 0
    assert cli("export", run, "--csv", "--out", left / "rows.csv").exit_code == 0
    found = modes(left)
    assert found["run"] == PRIVATE, "prompts and outputs are its user's own"
    assert len(found) > 10
    assert {name: oct(mode) for name, mode in found.items() if mode & OTHERS_WRITE} == {}


def test_a_library_program_makes_folders_with_outputs_for_its_user_alone(tmp_path, loose_umask):
    make_folder(tmp_path / "above" / "outputs", mode=PRIVATE)
    assert (tmp_path / "above" / "outputs").stat().st_mode & 0o777 == PRIVATE
    keep_others_from_writing()
    (tmp_path / "file").write_text("")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644
    os.umask(0o077)
    keep_others_from_writing()
    assert os.umask(0) == 0o077, "a stricter umask stays"


def test_ids_of_data_that_name_paths_make_none(cli, tiny, tmp_path):
    ids = ["../../../outside", "/outside", "a/b", "..", ".", "x" * 300, "\x1b]0;forged\x07"]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"id": one, "prompt": "w5 w6"}) + "\n" for one in ids))
    left = tmp_path / "deep" / "er"
    left.mkdir(parents=True)
    run = left / "run"
    said = cli("eval", "--local", *tiny.flags(data_file=data, max_new_tokens=2), "--out", run)
    assert said.exit_code == 0, said.stderr
    assert cli("report", run, "--html", "--out", left / "page.html").exit_code == 0
    assert sorted(path.name for path in left.iterdir()) == ["page.html", "run"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["er"]
    assert not Path("/outside").exists()
    names = {path.name for path in run.rglob("*")}
    assert not any("outside" in name or "forged" in name for name in names)


@pytest.mark.parametrize("task", ["../../etc", "/etc/passwd", "demo/../../x", ""])
def test_a_task_that_names_a_path_is_none(cli, tiny, tmp_path, monkeypatch, task):
    monkeypatch.chdir(tmp_path)
    refused = cli("eval", "--local", *tiny.flags(task=task))
    assert refused.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_not_written_through_a_link_that_leads_out_of_it(cli, tiny, tmp_path):
    """A run folder that somebody else has prepared could else have a resume write where only its user may."""
    run, outside, moved = tmp_path / "run", tmp_path / "outside", tmp_path / "moved"
    outside.mkdir()
    flags = tiny.flags(limit=1, max_new_tokens=2)
    assert cli("eval", "--local", *flags, "--out", run).exit_code == 0
    for folder in ("commits", "samples", "lease"):
        (run / folder).rename(moved)
        (run / folder).symlink_to(outside, target_is_directory=True)
        refused = cli("eval", "--local", *flags, "--out", run)
        assert refused.exit_code == 2
        (line,) = [line for line in refused.stderr.splitlines() if "link" in line]
        assert str(run / folder) in line
        assert list(outside.iterdir()) == []
        (run / folder).unlink()
        moved.rename(run / folder)


def test_a_run_folder_may_itself_be_a_link_and_keeps_what_its_user_gave_it(cli, tiny, tmp_path):
    disk = tmp_path / "large-disk"
    disk.mkdir()
    disk.chmod(0o750)
    (tmp_path / "run").symlink_to(disk, target_is_directory=True)
    assert cli("eval", "--local", *tiny.flags(limit=1, max_new_tokens=2), "--out", tmp_path / "run").exit_code == 0
    assert (disk / "run.json").exists()
    assert disk.stat().st_mode & 0o777 == 0o750


def test_a_jobs_log_sends_a_terminal_no_command_and_overwrites_no_line(capsys):
    """It comes from the cluster, with whatever models and libraries wrote there."""
    hostile = "\x1b]52;c;ZXZpbA==\x07\x1b]0;title\x1b\\\x1b[2J\x1b[1A\x9b2Jparity 1/2\rparity 2/2\x08\u202e\x00"
    show_text(f"\x1b[36m(raylet)\x1b[0m started\n{hostile}\n\tlast")
    first, middle, last = capsys.readouterr().out.split("\n")
    assert (first, last) == ("(raylet) started", "\tlast")
    assert middle.isprintable()
    assert r"parity 1/2\rparity 2/2\x08\u202e\x00" in middle
    assert r"\x1b]52;c;" in middle
