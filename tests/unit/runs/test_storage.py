"""Storage: whole files or none, the first creator wins, on a local folder and on a real S3-compatible server."""

import os
import pickle
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from adadecode.errors import RunFolderError, UsageError
from adadecode.runs.folder import read_commits, read_samples
from adadecode.runs.storage import absolute, join, open_storage

ROOT = Path(__file__).parents[3]
CREATE = "import sys; from adadecode.runs.storage import open_storage; "
CREATE += "s = open_storage(sys.argv[1]); sys.stdin.readline(); print(s.create('a/b', sys.argv[2].encode()))"


def test_what_is_written_is_read_listed_and_deleted(location):
    storage = open_storage(location)
    assert storage.list("a") == []
    with pytest.raises(FileNotFoundError):
        storage.read("a/one")
    storage.replace("a/one", b"1")
    storage.replace("a/deep/two", b"2" * 100_000)
    storage.replace("ab/three", b"")
    assert (storage.read("a/one"), storage.read("a/deep/two"), storage.read("ab/three")) == (b"1", b"2" * 100_000, b"")
    assert storage.list("a") == ["a/deep/two", "a/one"]
    storage.replace("a/one", b"11")
    assert storage.read("a/one") == b"11"
    storage.delete("a/one")
    storage.delete("a/one")
    assert storage.list("a") == ["a/deep/two"]


def test_a_name_is_created_once_and_keeps_its_first_content(location):
    storage = open_storage(location)
    assert storage.create("a", b"first") is True
    assert storage.create("a", b"second") is False
    assert storage.read("a") == b"first"
    assert pickle.loads(pickle.dumps(storage)).read("a") == b"first"


def test_each_use_of_a_bucket_is_one_request(s3_bucket, monkeypatch):
    """A run has thousands of files, and a store takes time and money for each request."""
    storage = open_storage(f"{s3_bucket}/requests")
    asked: list[str] = []
    call = storage._files._call_s3

    async def counting(method: str, *arguments: object, **named: object) -> object:
        asked.append(method)
        return await call(method, *arguments, **named)

    monkeypatch.setattr(storage._files, "_call_s3", counting)
    storage.replace("a", b"1")
    assert storage.create("b", b"2" * 100_000)
    assert storage.read("b") == b"2" * 100_000
    assert asked == ["put_object", "put_object", "get_object"]


def test_of_eight_processes_that_create_one_name_exactly_one_wins(location):
    command = [sys.executable, "-c", CREATE, location]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in (str(ROOT), *sys.path) if path)}
    racers = [
        subprocess.Popen([*command, str(i)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for i in range(8)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    answers = [racer.communicate()[0].strip() for racer in racers]
    assert sorted(answers) == ["False"] * 7 + ["True"]
    assert open_storage(location).read("a/b") == str(answers.index("True")).encode()
    assert open_storage(location).list("a") == ["a/b"], "no temporary file is left"


@pytest.mark.parametrize("url", ["http://host/x", "s3://", "hdfs://a/b"])
def test_another_protocol_is_refused_naming_the_extras(url):
    with pytest.raises(UsageError, match=r"pip install 'adadecode\[s3\]'.*adadecode\[gcs\]"):
        open_storage(url)


@pytest.mark.parametrize(
    ("text", "right"),
    [("s3:/b/y", "s3://b/y"), ("gs:/b", "gs://b"), ("s3:b/y", "s3://b/y"), ("file:/x/y", "file://x/y")],
)
def test_a_url_that_lacks_a_slash_is_refused_with_the_right_one(text, right):
    for use in (open_storage, absolute):
        with pytest.raises(UsageError) as caught:
            use(text)
        assert str(caught.value) == (
            f"{text!r} is neither a folder nor a URL: give {right}, or a folder of another name"
        )
    for folder in ("at 12:30", "/s3:/b", "a/s3:", "a/-b"):
        assert open_storage(folder).location == folder


LOCATIONS = [
    (["eval", "--local", "--out"], "s3:/b/y", "give s3://b/y"),
    (["eval", "--local", "--out"], "--task", "looks like a flag: give a folder of another name"),
    (["sweep", "--local", "--out"], "s3:/b/y", "'s3:/b/y' is neither a folder nor a URL: give s3://b/y, or"),
    (["sweep", "--local", "--out"], "-x", "looks like a flag"),
    (["submit", "eval", "--out"], "s3:/b/y", "give s3://b/y"),
    (["submit", "eval", "--out"], "--task", "looks like a flag"),
    (["report"], "s3:/b/y", "give s3://b/y"),
    (["verify"], "gs:/b/y", "give gs://b/y"),
    (["plan", "--rates"], "s3:/b/y", "give s3://b/y"),
    (["train-heads", "--task", "jsonl", "--out"], "s3://b/y", "--out 's3:/b/y': give a folder of this machine"),
    (["train-heads", "--task", "jsonl", "--out"], "--exits", "--out '--exits' looks like a flag"),
    (["tune", "--out"], "s3:/b/y", "--out 's3:/b/y': give a folder of this machine"),
    (["bench", "--out"], "gs://b/y", "--out 'gs:/b/y': give a folder of this machine"),
]


@pytest.mark.parametrize(("command", "location", "says"), LOCATIONS)
def test_every_flag_that_takes_a_location_refuses_what_is_none(
    usage_error, tmp_path, monkeypatch, command, location, says
):
    monkeypatch.chdir(tmp_path)
    assert says in usage_error(*command, location)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_refused_naming_its_extra():
    """In a process of its own: one that has used the package keeps it."""
    code = "import sys; sys.modules['s3fs'] = None; from adadecode.runs.storage import open_storage; "
    done = subprocess.run(
        [sys.executable, "-c", code + "open_storage('s3://bucket/run')"], cwd=ROOT, capture_output=True, text=True
    )
    assert "UsageError: 's3://bucket/run': pip install 'adadecode[s3]' to use s3:// locations" in done.stderr


def test_a_bucket_that_is_not_there_is_one_line(s3_bucket):
    storage = open_storage("s3://no-such-bucket/run")
    for write in (storage.replace, storage.create):
        with pytest.raises(RunFolderError, match=r"^'s3://no-such-bucket/run/a' cannot be written \(.*\)") as caught:
            write("a", b"1")
        assert "\n" not in str(caught.value)


def test_locations_are_joined_and_urls_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert join("s3://b/run/", "x") == "s3://b/run/x"
    assert join("results", "x") == str(Path("results") / "x")
    assert absolute("s3://b/run") == "s3://b/run"
    assert absolute("run") == str(tmp_path / "run")


def test_a_disk_that_is_full_leaves_the_old_content_and_no_temporary_file(tmp_path):
    """A limit on the size of files, in a process of its own, where the write stops in the middle as on a full disk."""
    storage = open_storage(tmp_path / "run")
    storage.replace("a", b"old")
    code = (
        "import sys; from adadecode.runs.storage import open_storage; from adadecode.errors import RunFolderError\n"
        "try: open_storage(sys.argv[1]).replace('a', bytes(100_000))\n"
        "except RunFolderError as error: print(error)"
    )

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=limit)
    assert "cannot be written (File too large): make room or choose another --out" in done.stdout, done.stderr
    assert storage.read("a") == b"old"
    assert storage.list("") == ["a"]


def test_a_run_on_an_object_store_is_a_local_one(s3_bucket, tiny, cli, tmp_path):
    url = f"{s3_bucket}/run"
    flags = tiny.flags(max_new_tokens=4)
    local, remote = (cli("eval", "--local", *flags, "--out", out) for out in (tmp_path / "run", url))
    assert (local.exit_code, remote.exit_code) == (0, 0), remote.stderr
    for command in ("verify", "report"):
        result = cli(command, url)
        assert result.exit_code == 0, result.stderr
        assert "parity 5/5, logits 5/5" in result.stdout
    columns = ["sample_id", "method", "shard", "output_token_ids", "logits_digest", "parity", "output_text"]
    assert read_samples(url).select(columns).equals(read_samples(tmp_path / "run").select(columns))
    assert [commit["outcome"]["num_exact"] for commit in read_commits(url).values()] == [2, 2, 1]
    names = [name for name in open_storage(url).list("") if name.startswith(("samples", "commits"))]
    assert len(names) == 6
    again = cli("eval", "--local", *flags, "--out", url)
    assert "3 done before, 0 to do" in again.stdout
    planned = cli("plan", *flags, "--rates", url, "--gpus", "1")
    assert planned.exit_code == 0, planned.stderr
    assert "times of 5 samples: 5 as that run measured them" in planned.stdout
