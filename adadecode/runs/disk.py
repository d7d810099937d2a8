"""A run's files in a folder: hard links make a file at most once, and what is written outlasts a power cut."""

import contextlib
import errno
import os
from collections.abc import Generator
from pathlib import Path

from adadecode.errors import RunFolderError
from adadecode.files import PRIVATE, make_lasting, stored_in, sync_folder
from adadecode.runs.patience import NUM_TRIES, REMEDY, PassingError, patiently

# What a network disk says while its server restarts, and a disk of one bad moment. A full disk is not among them.
PASSING = {
    *(errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ENOLCK, errno.EREMOTEIO),
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.ESHUTDOWN, errno.EPIPE, errno.ENOTRECOVERABLE),
    errno.ENOENT,  # in a write: the temporary file was swept, or the answer to its renaming was lost
}
IN_THE_WAY = "a file is in the way: give a run's folder, or choose another --out"
NOT_ALLOWED = "check its permissions, or choose another --out"
# What no try of the same command mends, and what does
ITS_OWN_REMEDY = {
    errno.ENOTDIR: IN_THE_WAY,
    errno.EEXIST: IN_THE_WAY,
    errno.EISDIR: "a folder is in the way: move it, or choose another --out",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "its links lead in a circle: give another folder",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), NOT_ALLOWED),
}
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EXDEV}


class LocalStorage:
    """A folder that every worker sees, on a file system with hard links: a local disk or NFS.

    Temporary files lie in the folder itself, hidden, so that below it there are whole files only.
    """

    num_parallel = 2  # reading and unpacking one file while another is looked at

    def __init__(self, path: Path) -> None:
        self.location, self._path = str(path), path

    def read(self, name: str) -> bytes:
        path = self._path / name

        def request() -> bytes:
            with _one_line(path, "read"):
                return path.read_bytes()

        return patiently(request)

    def replace(self, name: str, content: bytes) -> None:
        path = self._path / name

        def request() -> None:
            with _one_line(path, "written"):
                self._make(path.parent)
                with stored_in(self._path, path.name, content) as temporary:
                    temporary.replace(path)
                sync_folder(path.parent)

        patiently(request)

    def create(self, name: str, content: bytes) -> bool:
        path = self._path / name

        def request() -> bool:
            with _one_line(path, "written"):
                self._make(path.parent)
                with stored_in(self._path, path.name, content) as temporary:
                    is_new = _linked(temporary, path)
                sync_folder(path.parent)
                return is_new or path.read_bytes() == content

        return patiently(request)

    def list(self, folder: str) -> list[str]:
        top = self._path / folder

        def request() -> list[str]:
            with _one_line(top, "listed"):
                return sorted(Path(file).relative_to(self._path).as_posix() for file in _files_below(top))

        return patiently(request)

    def delete(self, name: str) -> None:
        path = self._path / name

        def request() -> None:
            with _one_line(path, "deleted"):
                path.unlink(missing_ok=True)

        patiently(request)

    def _make(self, folder: Path) -> None:
        """Makes a `folder` of the run, whose own is for its user alone; raises RunFolderError for one that leads out."""
        make_lasting(self._path, PRIVATE)
        make_lasting(folder)
        if folder.resolve() != self._path.resolve() / folder.relative_to(self._path):
            raise RunFolderError(
                f"{str(folder)!r} is a link to another place: a run is written to its own folder alone"
            )


def _linked(temporary: Path, path: Path) -> bool:
    """Gives the file `temporary` the name `path` too; False when there is one of that name."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        raise RunFolderError(
            f"{path}: this storage makes no hard links ({error.strerror}), which commits need: use a local disk or NFS"
        ) from error
    return True


def _files_below(folder: Path | str) -> Generator[str]:
    """The paths of all files below `folder`. A folder that is gone, also by now, has none; others raise OSError."""
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except FileNotFoundError:
        return
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            yield from _files_below(entry.path)
        else:
            yield entry.path


@contextlib.contextmanager
def _one_line(path: Path, done: str) -> Generator[None]:
    """Makes a RunFolderError of what the system says when `path` cannot be `done`; nothing of a missing file to read."""
    try:
        yield
    except FileNotFoundError as error:
        if done == "read":
            raise
        raise _refusal(path, done, error) from error
    except NotADirectoryError as error:
        if done == "read":  # nothing lies below a file
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
        raise _refusal(path, done, error) from error
    except OSError as error:
        raise _refusal(path, done, error) from error


def _refusal(path: Path, done: str, error: OSError) -> RunFolderError:
    if error.errno in PASSING:
        return PassingError(f"{str(path)!r} cannot be {done} ({error.strerror}, at {NUM_TRIES} tries): {REMEDY}")
    remedy = f"make room or choose another --out; {REMEDY}" if done == "written" else REMEDY
    if error.errno is not None:
        remedy = ITS_OWN_REMEDY.get(error.errno, remedy)
    return RunFolderError(f"{str(path)!r} cannot be {done} ({error.strerror}): {remedy}")
