"""The run folder: data, then a commit that names it; readers follow commits and nothing else."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adadecode.errors import RunFolderError
from adadecode.report.schema import SAMPLES, SCHEMA_VERSION
from adadecode.report.summary import summarise
from adadecode.runs.editions import Edition, commit_of
from adadecode.runs.folder import (
    RunFolder,
    new_attempt,
    read_commits,
    read_run,
    read_samples,
)

ROOT = Path(__file__).parents[3]
FACTS = {"config": {"gamma": 0.75, "task": "jsonl"}, "provenance": {"git_sha": "abc123"}}


def shard_rows(shard_idx: int = 0, methods: tuple[str, ...] = ("vanilla", "adadecode")) -> list[dict]:
    """Two samples of shard `shard_idx`, a row per method."""
    return [
        {
            "task": "jsonl",
            "sample_id": f"{shard_idx}-{i}",
            "method": method,
            "repeat": 0,
            "turn": 0,
            "shard": shard_idx,
            "status": "ok",
            "output_token_ids": [1, 2, 3],
            "worker_id": "w",
            "started_at": datetime(2026, 1, 1, tzinfo=UTC),
        }
        for i in (1, 0)
        for method in methods
    ]


def open_run(path: Path, fingerprint: str = "f00d", facts: dict[str, Any] = FACTS) -> RunFolder:
    return RunFolder.open(path, fingerprint, facts)


def commit(run: RunFolder, attempt: str = "one", shard_idx: int = 0) -> bool:
    return run.commit_shard(shard_idx, shard_rows(shard_idx), {"worker_id": "w"}, attempt)


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return open_run(tmp_path / "run")


def data_files(path: Path) -> list[Path]:
    return sorted((path / "samples").rglob("*.parquet"))


def refusal(path: Path) -> str:
    with pytest.raises(RunFolderError) as caught:
        read_samples(path)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_shard_is_committed_once_and_the_first_attempts_rows_stay(run):
    assert commit(run, "first") is True
    assert commit(run, "second") is False
    assert [file.name for file in data_files(Path(run.location))] == ["part-00000.parquet"], "the second leaves nothing"
    samples = read_samples(Path(run.location))
    assert samples["attempt"].to_pylist() == ["first"] * 4
    assert read_commits(Path(run.location))[0]["attempt"] == "first"


def test_of_many_attempts_at_once_exactly_one_is_committed(run):
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: commit(run, f"attempt{i}"), range(16)))
    assert sum(won) == 1
    assert set(read_samples(Path(run.location))["attempt"].to_pylist()) == {f"attempt{won.index(True)}"}
    assert not list((Path(run.location) / "commits").glob(".*")), "no temporary file is left"


def test_attempts_have_names_of_their_own():
    assert len({new_attempt() for _ in range(100)}) == 100


def test_a_commit_names_its_file_rows_fingerprint_and_worker(run):
    commit(run, "one", shard_idx=7)
    stored = read_commits(Path(run.location))[7]
    assert stored["file"] == "samples/part-00007.parquet"
    assert (stored["shard"], stored["task"], stored["num_rows"]) == (7, "jsonl", 4)
    assert (stored["fingerprint"], stored["attempt"], stored["worker"]) == ("f00d", "one", {"worker_id": "w"})


def test_a_data_file_has_the_samples_schema_its_metadata_and_rows_in_key_order(run):
    commit(run)
    (file,) = data_files(Path(run.location))
    schema = pq.read_schema(file)
    assert schema.equals(SAMPLES, check_metadata=False)
    metadata = {key.decode(): value.decode() for key, value in schema.metadata.items()}
    assert metadata == {
        "schema_version": str(SCHEMA_VERSION),
        "run_id": "run",
        "fingerprint": "f00d",
        "git_sha": "abc123",
        "attempt": "one",
        "worker": '{"worker_id": "w"}',
    }
    assert (
        pq.ParquetFile(file).metadata.row_group(0).column(0).compression == "SNAPPY"
    )  # small files, for quick reading
    keys = pq.ParquetFile(file).read(["sample_id", "method"]).to_pylist()
    assert [tuple(key.values()) for key in keys] == [
        ("0-0", "adadecode"),
        ("0-0", "vanilla"),
        ("0-1", "adadecode"),
        ("0-1", "vanilla"),
    ]


def test_readers_ignore_data_without_a_commit_and_temporary_files(run):
    commit(run, "one")
    (committed,) = data_files(Path(run.location))
    committed.with_name("part-00001-lost.parquet").write_bytes(committed.read_bytes())
    committed.with_name(".part-00002-x.parquet.ab.tmp").write_bytes(b"half")
    (Path(run.location) / "commits" / ".00001.json.abcd.tmp").write_text('{"shard": 1')
    assert read_samples(Path(run.location)).num_rows == 4
    assert list(read_commits(Path(run.location))) == [0]


def test_a_run_without_commits_has_no_samples_but_their_schema(run):
    samples = read_samples(Path(run.location))
    assert samples.num_rows == 0
    assert samples.schema.equals(SAMPLES)


def test_an_altered_committed_file_is_refused_and_says_to_run_again(run):
    commit(run, "one")
    (file,) = data_files(Path(run.location))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    message = refusal(Path(run.location))
    assert str(file) in message
    assert "altered after its commit; run the same command again: it computes the shard again" in message


def test_a_missing_committed_file_is_refused_and_says_to_run_again(run):
    commit(run, "one")
    commit(run, "one", shard_idx=3)
    data_files(Path(run.location))[1].unlink()
    assert "part-00003.parquet: a committed file is missing; run the same command again" in refusal(Path(run.location))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"task": "jsonl"}', "\x00", "[" * 100_000])
def test_a_damaged_commit_is_refused_by_name(run, content):
    (Path(run.location) / "commits").mkdir()
    (Path(run.location) / "commits" / "00004.json").write_text(content)
    message = refusal(Path(run.location))
    assert message.startswith(str(Path(run.location) / "commits" / "00004.json"))
    assert "run the same command again" in message


def test_a_commit_of_another_run_is_refused(run, tmp_path):
    commit(run)
    commit(open_run(tmp_path / "other", "beef"), shard_idx=2)
    stray = tmp_path / "other" / "commits" / "00002.json"
    (Path(run.location) / "commits" / "00002.json").write_bytes(stray.read_bytes())
    assert "the commits of shards [2] are of another run; run the same command again" in refusal(Path(run.location))
    commit(run, shard_idx=1)
    (line,) = run.check_commits()
    assert line == f"withdrawn, to be computed again: {run.location}/commits/00002.json: the commit is another run's"
    assert commit(run, "again", shard_idx=2) is True
    assert read_samples(run.location).num_rows == 12


def test_a_run_opened_by_its_path_is_the_one_that_was_made(run, tmp_path):
    opened = RunFolder(Path(run.location))
    assert (Path(opened.location), opened.run_id, opened.fingerprint) == (Path(run.location), "run", "f00d")
    with pytest.raises(RunFolderError, match="is not a run folder"):
        RunFolder(tmp_path / "none")


def test_the_same_run_opens_again_with_its_first_id_and_facts(tmp_path):
    first = open_run(tmp_path / "run", facts=FACTS | {"created_at": "then"})
    again = open_run(tmp_path / "run", facts=FACTS | {"created_at": "now"})
    assert (again.run_id, again.fingerprint) == (first.run_id, first.fingerprint) == ("run", "f00d")
    assert read_run(tmp_path / "run")["created_at"] == "then"


def test_the_folder_of_a_run_that_committed_nothing_is_taken_over(run):
    """A run may be refused after its folder was made: the corrected command must work in the same folder."""
    taken = open_run(Path(run.location), "beef")
    assert taken.fingerprint == read_run(Path(run.location))["fingerprint"] == "beef"


def test_another_runs_folder_is_refused_naming_what_differs(run):
    commit(run)
    with pytest.raises(RunFolderError) as caught:
        open_run(Path(run.location), "beef", {"config": {"gamma": 0.5, "task": "jsonl", "seed": 1}})
    message = str(caught.value)
    assert message.startswith(f"--out {str(Path(run.location))!r} belongs to another run")
    assert "(fingerprint f00d, this one is beef; different: gamma, seed)" in message
    assert "choose another --out" in message
    assert read_run(Path(run.location))["fingerprint"] == "f00d"


def test_the_same_settings_over_other_files_are_refused(run):
    commit(run)
    with pytest.raises(RunFolderError, match="the model, heads or data behind the same settings changed"):
        open_run(Path(run.location), "beef")


def test_commits_of_another_run_that_lost_its_run_json_are_refused_and_stay(run):
    commit(run)
    commit(run, shard_idx=1)
    path = Path(run.location)
    (path / "run.json").unlink()
    (path / "commits" / "00000.json").write_text("damaged")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(RunFolderError, match=r"has commits of another run \(fingerprint f00d, this one is beef\)"):
        open_run(path, "beef")
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    assert open_run(path).fingerprint == "f00d", "the run itself goes on"


def test_a_run_json_of_odd_parts_belongs_to_its_run_all_the_same(run):
    commit(run)
    path = Path(run.location)
    for odd in ({"config": []}, {"config": None}, {"provenance": None}, {"provenance": {"git_sha": [1]}}):
        run.update_run(**FACTS | odd)
        with pytest.raises(RunFolderError, match="belongs to another run"):
            open_run(path, "beef")
        open_run(path).write_table("plan.parquet", SAMPLES.empty_table())


@pytest.mark.parametrize("in_the_way", ["run", ""])
def test_a_folder_that_cannot_be_written_is_one_line(in_the_way, tmp_path):
    """A file in the way, since root may write anywhere."""
    obstacle = tmp_path / (in_the_way or "file")
    obstacle.parent.mkdir(exist_ok=True)
    obstacle.write_text("")
    path = tmp_path / "run" if in_the_way else obstacle / "run"
    with pytest.raises(RunFolderError) as caught:
        open_run(path)
    message = str(caught.value)
    assert message.startswith(f"'{path}/commits' cannot be listed (")
    assert "choose another --out" in message


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b"\xff",
        b"[" * 100_000,
        b'{"run_id": "run"}',
        b'{"fingerprint": "f00d"}',
        b'{"run_id": "run", "fingerprint": [1]}',
    ],
)
def test_a_damaged_run_file_is_refused(run, content):
    (Path(run.location) / "run.json").write_bytes(content)
    for use in (read_run, open_run):
        with pytest.raises(RunFolderError, match=r"is not a run folder: .*run\.json"):
            use(Path(run.location))


def test_update_run_replaces_the_entries_given_and_leaves_no_temporary_file(run):
    run.update_run(status="complete", workers=[{"worker_id": "w"}])
    stored = read_run(Path(run.location))
    assert (stored["status"], stored["workers"]) == ("complete", [{"worker_id": "w"}])
    assert (stored["fingerprint"], stored["config"]) == ("f00d", FACTS["config"])
    assert sorted(path.name for path in Path(run.location).iterdir()) == ["run.json"]


KILLED_BEFORE_THE_COMMIT = """
import os, signal, sys
from adadecode.runs.storage import LocalStorage

create = LocalStorage.create

def create_unless_killed(storage, name, content):
    if name == "commits/00001.json":
        os.kill(os.getpid(), signal.SIGKILL)
    return create(storage, name, content)

LocalStorage.create = create_unless_killed
from adadecode.cli.main import main
main(sys.argv[1:])
"""


def test_a_run_killed_between_data_and_commit_is_finished_exactly_once_by_its_rerun(tiny, cli, tmp_path):
    out = tmp_path / "run"
    command = ["eval", "--local", *tiny.flags(max_new_tokens=4), "--out", str(out)]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_BEFORE_THE_COMMIT, *command], cwd=ROOT, env=os.environ, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    written = out / "samples" / "part-00001.parquet"
    content = written.read_bytes()
    assert list(read_commits(out)) == [0], "the data was written, and its commit was not"
    assert json.loads((out / "run.json").read_text())["status"] == "running"
    first_commit = (out / "commits" / "00000.json").read_bytes()

    result = cli(*command)
    assert result.exit_code == 0, result.stderr
    assert f"{written}: found whole, and committed now" in result.stdout
    assert "5 samples in 3 shards, 2 done before, 1 to do" in result.stdout
    assert (out / "commits" / "00000.json").read_bytes() == first_commit
    assert written.read_bytes() == content
    commits = read_commits(out)
    assert list(commits) == [0, 1, 2]
    assert commits[1]["worker"] == commits[0]["worker"] | {"pid": commits[1]["worker"]["pid"]}, "of who wrote the data"
    assert [Path(commit["file"]) for commit in commits.values()] == [file.relative_to(out) for file in data_files(out)]
    keys = [tuple(row.values()) for row in read_samples(out).select(["sample_id", "method"]).to_pylist()]
    assert len(keys) == len(set(keys)) == 5 * 3
    assert read_run(out)["status"] == "complete"


def test_shards_of_schema_version_1_are_read_beside_new_ones(run, monkeypatch):
    with monkeypatch.context() as patch:
        old = pa.schema([field for field in SAMPLES if field.name not in ("lossy", "turn", "category")])
        patch.setattr("adadecode.runs.folder.SAMPLES", old)
        assert commit(run, "old")
    lossless = [row | {"lossy": False} for row in shard_rows(1)]
    assert run.commit_shard(1, lossless, {"worker_id": "w"}, "new")
    samples = read_samples(Path(run.location))
    assert samples.schema == SAMPLES
    assert samples["lossy"].to_pylist() == [None] * 4 + [False] * 4
    assert samples["turn"].to_pylist() == [0] * 8
    assert not any(row["lossy"] for row in summarise(samples).to_pylist())


def test_a_check_withdraws_what_is_damaged_and_leaves_the_rest(run):
    for shard_idx in range(5):
        commit(run, shard_idx=shard_idx)
    truncated, flipped, missing, _, good = data_files(Path(run.location))
    truncated.write_bytes(truncated.read_bytes()[:-9])
    content = bytearray(flipped.read_bytes())
    content[len(content) // 3] ^= 4
    flipped.write_bytes(content)
    missing.unlink()
    (Path(run.location) / "commits" / "00003.json").write_text("{")
    lines = run.check_commits()
    assert [shard_idx for shard_idx in range(5) if run.committed_outcome(shard_idx) is not None] == [4]
    assert [("altered" in line, "is missing" in line, "is damaged" in line) for line in lines] == [
        (True, False, False),
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]
    assert run.check_commits() == []
    assert set(read_samples(run.location)["shard"].to_pylist()) == {4}
    assert good.exists()


def test_what_cannot_be_read_for_now_is_withdrawn_by_nobody(run):
    """A folder in the file's place cannot be read, as a disk that fails or a store that refuses."""
    commit(run)
    (file,) = data_files(Path(run.location))
    content = file.read_bytes()
    file.unlink()
    file.mkdir()
    with pytest.raises(RunFolderError, match="cannot be read"):
        run.check_commits()
    file.rmdir()
    file.write_bytes(content)
    assert run.check_commits() == []
    assert read_samples(run.location).num_rows == 4


def test_a_sweep_deletes_what_older_versions_left_and_temporary_files_and_nothing_else(run):
    commit(run, "first")
    commit(run, "second")
    (committed,) = data_files(Path(run.location))
    loser = Path(run.location) / "samples" / "task=jsonl" / "part-00000-0123456789ab.parquet"
    loser.parent.mkdir()
    left = [
        loser,
        Path(run.location) / ".part-00002.parquet.ab.tmp",
        Path(run.location) / "commits" / ".00001.json.ab.tmp",
    ]
    for file in left:
        file.write_bytes(b"half")
    before = committed.read_bytes()
    run.sweep({commit["file"] for commit in read_commits(run.location).values()})
    assert committed.read_bytes() == before
    assert not any(file.exists() for file in left)
    assert list(read_commits(run.location)) == [0]


def test_a_withdrawn_edition_stays_empty_whoever_comes_late_and_the_next_has_names_of_its_own(run):
    rows = [row | {"status": "error"} for row in shard_rows()]
    assert run.commit_shard(0, rows, {"worker_id": "w"}, "failed")
    assert run.withdraw_errors() == 1
    late = json.dumps(commit_of(Edition(0), (Path(run.location) / "samples/part-00000.parquet").read_bytes(), "f00d"))
    assert run.storage.create("samples/part-00000.parquet", b"of a late writer") is False
    assert run.storage.create("commits/00000.json", late.encode()) is False
    assert commit(run, "again") is True
    assert commit(run, "late") is False
    assert [file.name for file in data_files(Path(run.location))] == ["part-00000-1.parquet", "part-00000.parquet"]
    (stored,) = read_commits(run.location).values()
    assert (stored["file"], stored["attempt"]) == ("samples/part-00000-1.parquet", "again")
    assert pq.read_table(Path(run.location) / "samples")["attempt"].to_pylist() == ["again"] * 4


@pytest.mark.parametrize("found", ["truncated", "another shard's", "another run's", "not Parquet", "deleted"])
def test_a_data_file_that_no_commit_can_be_made_of_is_withdrawn_and_the_shard_is_done_again(run, tmp_path, found):
    other = open_run(tmp_path / "other", "beef")
    for shard_idx, of in ((0, run), (1, run), (0, other)):
        commit(of, shard_idx=shard_idx)
    first, second = data_files(Path(run.location))
    content = {
        "truncated": first.read_bytes()[:-20],
        "another shard's": second.read_bytes(),
        "another run's": data_files(Path(other.location))[0].read_bytes(),
        "not Parquet": b"",
        "deleted": None,
    }[found]
    (Path(run.location) / "commits" / "00000.json").unlink()
    first.unlink()
    if content is not None:
        first.write_bytes(content)
    assert commit(run, "again") is True
    assert read_commits(run.location)[0]["file"] == f"samples/part-00000{'-1' if content is not None else ''}.parquet"
    assert pq.read_table(Path(run.location) / "samples").num_rows == 8
    assert run.check_commits() == []


def test_a_copy_of_what_a_writer_of_version_0_1_committed_leaves_no_rows(run):
    commit(run, "old")
    old = "samples/task=jsonl/part-00000-old.parquet"
    stored = json.loads(run.storage.read("commits/00000.json")) | {"file": old}
    run.storage.replace(old, run.storage.read("samples/part-00000.parquet"))
    run.storage.replace("commits/00000.json", json.dumps(stored).encode())
    run.storage.delete("samples/part-00000.parquet")
    assert commit(run, "late") is False
    copy = Path(run.location) / "samples" / "part-00000.parquet"
    assert pq.read_table(copy).num_rows == 0
    copy.write_bytes(run.storage.read(old))  # of a writer that was late and died
    run.sweep({old})
    assert pq.read_table(copy).num_rows == 0
    assert read_samples(run.location)["attempt"].to_pylist() == ["old"] * 4
    assert run.check_commits() == []


def committed_twice(run: RunFolder) -> Path:
    """The folder of a run whose shard 0 was withdrawn and done again, when a backup of the first edition is put back."""
    path = Path(run.location)
    commit(run, "first")
    backup = {name: run.storage.read(name) for name in (Edition(0).data, Edition(0).commit)}
    data_files(path)[0].write_bytes(b"damaged")
    run.check_commits()
    commit(run, "second")
    for name, content in backup.items():
        (path / name).write_bytes(content)
    return path


def test_of_two_editions_of_a_shard_the_next_start_keeps_the_first(run):
    path = committed_twice(run)
    said = refusal(path)
    assert "shard 0 has two commits, of samples/part-00000-1.parquet and samples/part-00000.parquet" in said
    assert "run the same command again, which keeps the earlier edition" in said
    (line,) = run.check_commits()
    kept = "samples/part-00000.parquet counts, which is of an earlier edition"
    assert line == f"withdrawn: {path}/samples/part-00000-1.parquet: {kept}"
    assert read_samples(path)["attempt"].to_pylist() == ["first"] * 4
    assert pq.read_table(path / "samples").num_rows == 4
    assert run.check_commits() == []


@pytest.mark.parametrize("number", [0, 1])
def test_of_two_editions_of_a_shard_that_one_counts_whose_data_file_is_left(run, number):
    path = committed_twice(run)
    (path / Edition(0, 1 - number).data).unlink()
    assert len(run.check_commits()) == 1
    assert read_commits(path)[0]["file"] == Edition(0, number).data
    assert run.committed_outcome(0) is not None


def test_a_later_edition_counts_when_the_withdrawn_one_was_deleted(run):
    path = committed_twice(run)
    for name in (Edition(0).data, Edition(0).commit):
        (path / name).unlink()
    run.check_commits()
    assert run.committed_outcome(0) is not None
    assert commit(run, "late") is False
    assert read_samples(path)["attempt"].to_pylist() == ["second"] * 4


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("00000-1", {}),
        ("copy", {}),
        ("00001", {}),
        ("00001", {"shard": 1}),
        ("00000", {"shard": 1}),
        ("00000", {"file": "../../x"}),
        ("00000", {"file": "/etc/passwd"}),
        ("00000", {"file": "samples/task=a/../part-00000-0123456789ab.parquet"}),
        ("00000", {"file": "samples/task=a/part-00001-0123456789ab.parquet"}),
    ],
)
def test_a_commit_that_names_another_file_or_shard_than_its_own_is_damaged_and_the_next_start_mends_it(
    run, name, changed
):
    commit(run)
    file = Path(run.location) / "commits" / f"{name}.json"
    file.write_text(json.dumps(json.loads(run.storage.read("commits/00000.json")) | changed))
    assert f"commits/{name}.json: the commit is damaged; run the same command again" in refusal(Path(run.location))
    assert len(run.check_commits()) == 1
    assert commit(run, "again") is (name == "00000")
    assert read_samples(run.location).num_rows == pq.read_table(Path(run.location) / "samples").num_rows == 4


def test_a_commit_tells_its_outcome_and_one_without_is_computed_from_its_file(run):
    rows = [row | {"output_len": 3, "e2e_s": 0.5} for row in shard_rows()]
    rows = [row | ({"parity": "exact"} if row["method"] == "adadecode" else {}) for row in rows]
    failed = [row | {"sample_id": "0-2", "status": "error", "output_len": None, "e2e_s": None} for row in rows[2:]]
    run.commit_shard(0, rows + [row | {"parity": None} for row in failed], {"worker_id": "w"}, "one")
    expected = {
        "num_samples": 3,
        "num_error_samples": 1,
        "num_output_tokens": 12,
        "busy_s": 2.0,
        "num_exact": 2,
        "num_owed": 2,
    }
    assert read_commits(run.location)[0]["outcome"] == expected
    file = Path(run.location) / "commits" / "00000.json"
    stored = json.loads(file.read_text())
    del stored["outcome"]
    file.write_text(json.dumps(stored))
    assert read_commits(run.location)[0]["outcome"] == expected
    assert run.withdraw_errors() == 1
    assert run.committed_outcome(0) is None
