"""Storage that fails for a moment or for good: what is asked again, what is not, and what is on disk in which order."""

import errno
import http.server
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adadecode.errors import RunFolderError
from adadecode.runs import patience
from adadecode.runs.disk import LocalStorage
from adadecode.runs.folder import RunFolder, read_commits
from adadecode.runs.lease import Lease
from adadecode.runs.listing import runs_below
from adadecode.runs.run_file import refuse_others_results, shard_size_at
from adadecode.runs.storage import open_storage
from tests.unit.runs.test_folder import FACTS, commit


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch) -> None:
    monkeypatch.setattr(patience, "PAUSES_S", (0.0,) * len(patience.PAUSES_S))


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder.open(tmp_path / "run", "f00d", FACTS)


def failing(monkeypatch, function: str, error: int, num_times: int, *, after: bool = False) -> list[int]:
    """Lets `os.function` fail a number of times, before or after it has done its work; counts its calls."""
    real, calls = getattr(os, function), []

    def fail(*arguments, **named):
        calls.append(len(calls))
        if len(calls) > num_times:
            return real(*arguments, **named)
        if after:
            real(*arguments, **named)
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, function, fail)
    return calls


@pytest.mark.parametrize("error", [errno.ESTALE, errno.EIO, errno.ETIMEDOUT])
@pytest.mark.parametrize("function", ["fsync", "link", "replace"])
@pytest.mark.parametrize("after", [False, True])
def test_one_bad_moment_of_a_disk_is_not_the_end_of_a_commit(run, monkeypatch, function, error, after):
    failing(monkeypatch, function, error, 1, after=after)
    assert commit(run) is True
    monkeypatch.undo()
    assert list(read_commits(run.location)) == [0]
    assert commit(run, "two") is False
    assert run.storage.list("samples") == ["samples/part-00000.parquet"]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_at_once(run, monkeypatch, error):
    calls = failing(monkeypatch, "fsync", error, 1000)
    with pytest.raises(RunFolderError, match=r"cannot be written \(.*\): make room or choose another --out") as caught:
        commit(run)
    assert (len(calls), type(caught.value)) == (1, RunFolderError)


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_disk_that_may_not_be_written_is_told_at_once_and_is_not_full(run, monkeypatch, error):
    calls = failing(monkeypatch, "fsync", error, 1000)
    with pytest.raises(
        RunFolderError, match=r"cannot be written \(.*\): check its permissions, or choose another --out$"
    ):
        commit(run)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("in_the_way", "remedy"),
    [
        ("a file", "): a file is in the way: give a run's folder, or choose another --out"),
        ("a file above", "): a file is in the way: give a run's folder, or choose another --out"),
        ("a long name", " (File name too long): give a shorter name"),
        ("a circle", " (Too many levels of symbolic links): its links lead in a circle: give another folder"),
    ],
)
def test_a_place_that_holds_no_run_and_never_will_is_not_told_to_be_tried_again(tmp_path, in_the_way, remedy):
    path = tmp_path / {"a file above": "file/run", "a long name": "x" * 300}.get(in_the_way, "file")
    if in_the_way == "a circle":
        path.symlink_to(path)
    elif in_the_way != "a long name":
        (tmp_path / "file").write_text("")
    for use in (runs_below, lambda path: RunFolder.open(path, "beef", FACTS)):
        with pytest.raises(RunFolderError) as caught:
            use(path)
        assert str(caught.value).endswith(remedy)


def test_a_disk_that_stays_away_is_asked_a_few_times_and_then_one_line(run, monkeypatch):
    calls = failing(monkeypatch, "fsync", errno.ESTALE, 1000)
    with pytest.raises(RunFolderError, match=r"cannot be written \(Stale file handle, at 4 tries\): what is committed"):
        commit(run)
    assert len(calls) == patience.NUM_TRIES


def be_away(monkeypatch) -> None:
    """Lets every read of a file fail, as that of a file system that is away."""

    def away(path):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(Path, "read_bytes", away)


def test_a_disk_that_is_away_hides_no_size_of_shards(run, tmp_path, monkeypatch):
    """As if none were there: the run would be planned anew and then refused as another's."""
    config = FACTS["config"] | {"shard_size": 3}
    sized = RunFolder.open(tmp_path / "sized", "f00d", FACTS | {"config": config}).location
    assert [shard_size_at(location) for location in (sized, run.location, tmp_path / "none", None)] == [
        3,
        None,
        None,
        None,
    ]

    be_away(monkeypatch)
    with pytest.raises(patience.PassingError, match="cannot be read"):
        shard_size_at(sized)


def test_a_lease_that_cannot_be_read_for_a_moment_is_not_free(run, monkeypatch):
    with Lease(run.storage):
        be_away(monkeypatch)
        with pytest.raises(patience.PassingError, match="cannot be read"), Lease(open_storage(run.location)):
            pass
        monkeypatch.undo()


def test_a_link_whose_answer_was_lost_is_ours(tmp_path, monkeypatch):
    """Over NFS the request is sent again and finds the name taken, by itself."""
    storage = LocalStorage(tmp_path)
    failing(monkeypatch, "link", errno.EEXIST, 1, after=True)
    assert storage.create("a", b"ours") is True
    assert storage.create("a", b"another's") is False
    assert storage.create("a", b"ours") is True


def test_content_is_on_disk_before_its_name_and_the_name_before_the_answer(tmp_path, monkeypatch):
    done: list[str] = []
    real = {name: getattr(os, name) for name in ("fsync", "link", "replace")}

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        done.append(f"fsync {path.relative_to(tmp_path) if path.is_dir() else path.suffix}")
        real["fsync"](descriptor)

    def noted(name: str):
        def call(*arguments, **named):
            done.append(name)
            return real[name](*arguments, **named)

        return call

    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("link", "replace"):
        monkeypatch.setattr(os, name, noted(name))
    storage = LocalStorage(tmp_path)
    storage.create("one", b"1")
    storage.replace("one", b"2")
    assert done == ["fsync .tmp", "link", "fsync .", "fsync .tmp", "replace", "fsync ."]
    done.clear()
    storage.create("below/two", b"2")
    assert done == ["fsync .", "fsync .tmp", "link", "fsync below"]
    done.clear()
    storage.create("below/two", b"another's")
    assert done[-1] == "fsync below", "who goes on from what another wrote relies on it"


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOTDIR])
def test_what_cannot_be_listed_is_an_error_and_no_other_run_overwrites_what_is_there(run, monkeypatch, error):
    commit(run)
    before = run.storage.read("run.json")

    def refused(folder):
        raise OSError(error, os.strerror(error), str(folder))

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(RunFolderError, match=r"commits' cannot be listed \(") as caught:
        refuse_others_results(run.location, "beef", FACTS)
    assert "\n" not in str(caught.value)
    with pytest.raises(RunFolderError, match="cannot be listed"):
        RunFolder.open(run.location, "beef", FACTS)
    monkeypatch.undo()
    assert run.storage.read("run.json") == before


def test_a_listing_that_fails_once_is_made_again_and_what_vanishes_meanwhile_is_not_there(run, monkeypatch):
    commit(run)
    real, calls = os.scandir, []

    def scandir(folder):
        calls.append(str(folder))
        if len(calls) == 1:
            raise OSError(errno.ESTALE, "Stale file handle")
        if str(folder).endswith("samples"):
            raise FileNotFoundError(errno.ENOENT, "deleted since it was seen")
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert run.storage.list("") == ["commits/00000.json", "run.json"]
    assert run.storage.list("none") == []


class Refusing(http.server.BaseHTTPRequestHandler):
    """An object store that answers every request with the same refusal."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        self.server.requests.append(self.command)
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, code = self.server.refusal
        if self.command in ("GET", "HEAD") and status == 412:
            status, code = 404, "NoSuchKey"
        body = b"" if self.command == "HEAD" else f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_GET = do_HEAD = do_POST = do_DELETE = answer  # noqa: N815

    def log_message(self, format: str, *arguments: object) -> None:
        return


@contextmanager
def refusing(monkeypatch, status: int, code: str) -> Generator[list[str]]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    server.refusal, server.requests = (status, code), []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    try:
        yield server.requests
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "asks_again", "says"),
    [
        (409, "ConditionalRequestConflict", True, "at 4 tries"),
        pytest.param(503, "SlowDown", True, "at 4 tries", marks=pytest.mark.slow),
        (500, "InternalError", True, "at 4 tries"),
        (429, "TooManyRequests", True, "at 4 tries"),
        (408, "RequestTimeout", True, "at 4 tries"),
        (412, "PreconditionFailed", True, "is there and is not, at 4 tries"),
        (409, "BucketNotEmpty", False, "check the bucket and its credentials"),
        (403, "AccessDenied", False, "check the bucket and its credentials"),
    ],
)
def test_a_store_that_refuses_for_ever_is_asked_a_few_times_if_that_may_help(
    monkeypatch, status, code, asks_again, says
):
    with refusing(monkeypatch, status, code) as requests, pytest.raises(RunFolderError) as caught:
        open_storage("s3://bucket/run").create("a", b"1")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (requests.count("PUT") >= patience.NUM_TRIES) == asks_again
    assert len(requests) < 150
