"""Where a run's files lie: a folder of this machine or of a network disk, or a prefix of an object store."""

import contextlib
import errno
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any, Protocol

from adadecode.errors import RunFolderError, UsageError
from adadecode.files import stored_beside, sync_folder

EXTRAS = {"s3": "s3", "gs": "gcs"}  # what to install for a URL's protocol
REMEDY = "make room or choose another --out; what is committed stays, and the same command continues"


class Storage(Protocol):
    """Files by relative names with `/`. What cannot be read or written raises RunFolderError with one line."""

    location: str
    num_parallel: int  # requests worth making at once

    def read(self, name: str) -> bytes:
        """The whole content; raises FileNotFoundError when there is none."""
        ...

    def replace(self, name: str, content: bytes) -> None:
        """Writes `name`, whole or not at all; on disk when this returns."""
        ...

    def create(self, name: str, content: bytes) -> bool:
        """Writes `name` as `replace` does unless it exists; False when it did. The first of several creators wins."""
        ...

    def list(self, folder: str) -> list[str]:
        """The names of all files below `folder`, at any depth, sorted; temporary files too."""
        ...

    def delete(self, name: str) -> None:
        """Deletes `name`, if it is there."""
        ...


def open_storage(location: str | Path) -> Storage:
    """The storage at a path, an `s3://` or a `gs://` URL; raises UsageError for other protocols and missing packages."""
    text = str(location)
    if not is_url(text):
        return LocalStorage(Path(text))
    protocol, _, rest = text.partition("://")
    if protocol not in EXTRAS or not rest.strip("/"):
        raise UsageError(
            f"{text!r}: give a folder, s3://BUCKET/FOLDER (pip install 'adadecode[s3]') or gs://BUCKET/FOLDER "
            "(pip install 'adadecode[gcs]')"
        )
    return ObjectStorage(text)


def is_url(location: str) -> bool:
    """Whether `location` is a URL of object storage, not a path."""
    return "://" in location


def join(location: str | Path, name: str) -> str:
    """`name` below `location`."""
    return f"{str(location).rstrip('/')}/{name}" if is_url(str(location)) else str(Path(location) / name)


def absolute(location: str | Path) -> str:
    """`location` for a process in another folder: a URL as it is, a path made absolute."""
    return str(location) if is_url(str(location)) else str(Path(location).resolve())


class LocalStorage:
    """A folder that every worker sees, on a file system with hard links: a local disk or NFS."""

    num_parallel = 1

    def __init__(self, path: Path) -> None:
        self.location, self._path = str(path), path

    def read(self, name: str) -> bytes:
        try:
            return (self._path / name).read_bytes()
        except FileNotFoundError:
            raise
        except NotADirectoryError as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._path / name)) from error
        except OSError as error:
            raise RunFolderError(f"{str(self._path / name)!r} cannot be read ({error.strerror})") from error

    def replace(self, name: str, content: bytes) -> None:
        path = self._path / name
        with _one_line(path), stored_beside(path, content) as temporary:
            temporary.replace(path)
            sync_folder(path.parent)

    def create(self, name: str, content: bytes) -> bool:
        path = self._path / name
        with _one_line(path), stored_beside(path, content) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                # over NFS a request that was sent again after a lost answer finds its own link
                return temporary.stat().st_nlink == 2
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                    raise
                raise RunFolderError(
                    f"{path}: this storage makes no hard links ({error.strerror}), which commits need: use a local "
                    "disk or NFS"
                ) from error
            sync_folder(path.parent)
        return True

    def list(self, folder: str) -> list[str]:
        found = (self._path / folder).rglob("*")
        return sorted(file.relative_to(self._path).as_posix() for file in found if file.is_file())

    def delete(self, name: str) -> None:
        with _one_line(self._path / name):
            (self._path / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _one_line(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise RunFolderError(f"{str(path)!r} cannot be written ({error.strerror}): {REMEDY}") from error


class ObjectStorage:
    """A prefix of a bucket. An object is written by one request, so it is there whole or not at all."""

    num_parallel = 32

    def __init__(self, url: str) -> None:
        """Opens `url`; raises UsageError when the package for its protocol is missing."""
        import fsspec

        protocol, _, path = url.partition("://")
        self.location, self._root = url, path.strip("/")
        try:
            self._files: Any = fsspec.filesystem(protocol, use_listings_cache=False, skip_instance_cache=True)
        except ImportError as error:
            extra = EXTRAS[protocol]
            raise UsageError(f"{url!r}: pip install 'adadecode[{extra}]' to use {protocol}:// locations") from error

    def __reduce__(self) -> tuple[Any, ...]:
        return ObjectStorage, (self.location,)  # a connection does not cross processes

    def read(self, name: str) -> bytes:
        try:
            return self._files.cat_file(self._path(name))
        except FileNotFoundError:
            raise
        except Exception as error:
            raise self._refused(name, "read", error) from error

    def replace(self, name: str, content: bytes) -> None:
        try:
            self._put(name, content, "overwrite")
        except Exception as error:
            raise self._refused(name, "written", error) from error

    def create(self, name: str, content: bytes) -> bool:
        try:
            self._put(name, content, "create")
        except Exception as error:
            # a request that was sent again after a lost answer finds its own object
            if not _lost_race(error):
                raise self._refused(name, "written", error) from error
            return self._holds(name, content)
        return True

    def list(self, folder: str) -> list[str]:
        try:
            found = self._files.find(self._path(folder))
        except FileNotFoundError:
            return []
        except Exception as error:
            raise self._refused(folder, "listed", error) from error
        return sorted(path.removeprefix(self._root + "/") for path in found)

    def delete(self, name: str) -> None:
        try:
            self._files.rm_file(self._path(name))
        except FileNotFoundError:
            return
        except Exception as error:
            raise self._refused(name, "deleted", error) from error

    def _holds(self, name: str, content: bytes) -> bool:
        """Whether the object is ours: contents of one attempt are no other's. False for contents two may share."""
        try:
            return self.read(name) == content
        except FileNotFoundError:
            return self.create(name, content)  # 409: the other creator was refused too

    def _put(self, name: str, content: bytes, mode: str) -> None:
        self._files.pipe_file(self._path(name), content, mode=mode, chunksize=max(len(content) + 1, 5 << 20))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _refused(self, name: str, done: str, error: Exception) -> RunFolderError:
        """What went wrong in one line, whichever of the client's many errors it was."""
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        where = join(self.location, name)
        return RunFolderError(f"{where!r} cannot be {done} ({reason}): check the bucket and its credentials; {REMEDY}")


def _lost_race(error: BaseException | None) -> bool:
    """Whether the store refused to create an object because it exists (412) or is being made (409)."""
    while error is not None:
        response = getattr(error, "response", None)
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
        code = found or getattr(error, "code", None) or getattr(error, "status", None)
        if isinstance(error, FileExistsError) or code in (409, 412, "409", "412"):
            return True
        error = error.__cause__
    return False
