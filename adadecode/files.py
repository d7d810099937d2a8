"""Files that are there whole or not at all, folders to put them in, and the hash that names a content."""

import contextlib
import hashlib
import itertools
import json
import os
import re
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import Any

from adadecode.errors import RunFolderError, UsageError

TEMPORARY_SUFFIX = ".tmp"
PRIVATE = 0o700  # of a folder that holds prompts and outputs: `chmod` opens it to others
OTHERS_WRITE = 0o022


def short_hash(*parts: str | bytes) -> str:
    """The first 16 digits of the SHA-256 of `parts` joined; text counts as UTF-8."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()[:16]


def from_json(content: str | bytes) -> Any:
    """The value that `content` is as JSON; raises ValueError, also when it is nested too deep to be read."""
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def check_location(text: str, flag: str = "") -> None:
    """Raises UsageError when the path `text`, given for `flag`, is empty, a URL that lacks a slash, or a flag itself."""
    if not text.strip():
        raise UsageError(f"{flag} {text!r} names no folder: give one".lstrip())
    named, path = f"{flag} {text!r}".lstrip(), str(Path(text))
    if (scheme := _scheme(path)) is not None:
        right = f"{scheme}://{path[len(scheme) + 1 :].lstrip('/')}"
        raise UsageError(f"{named} is neither a folder nor a URL: give {right}, or a folder of another name")
    if path.startswith("-"):
        raise UsageError(f"{named} looks like a flag: give a folder of another name")


def _scheme(path: str) -> str | None:
    """The `s3` of `s3:/b`; a path with a colon elsewhere, as in `/s3:/b` or `at 12:30`, has none."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):/", path) or re.match(r"(s3|gs):", path)
    return None if found is None else found[1]


def make_folder(folder: Path, flag: str = "--out", mode: int = 0o777) -> None:
    """Makes the `folder` of this machine that `flag` names, with `mode` less the umask, before work is done for it.

    Raises RunFolderError when it cannot be made or used, and UsageError for a URL and for a name like a flag's.
    """
    if _scheme(str(folder)) is not None:  # a Path of a URL has one slash
        raise UsageError(f"{flag} {str(folder)!r}: give a folder of this machine; this command writes to no URL")
    check_location(str(folder), flag)
    try:
        folder.mkdir(mode, parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(
            f"{flag} {str(folder)!r} cannot be made a folder ({error.strerror}): choose another folder"
        ) from error
    needed = {"read": os.R_OK | os.X_OK, "written": os.W_OK if flag == "--out" else 0}  # others' outputs are only read
    for done, mode in needed.items():
        if not os.access(folder, mode, effective_ids=os.access in os.supports_effective_ids):
            raise RunFolderError(f"{flag} {str(folder)!r} cannot be {done} by this user: choose another folder")


@contextlib.contextmanager
def readable(flag: str, path: Path) -> Generator[None]:
    """Makes a UsageError of what the system says when what lies at the `path` given for `flag` cannot be read."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{flag} {str(path)!r} cannot be read ({error.strerror}): check its name and permissions, or give another"
        ) from error


def keep_others_from_writing() -> None:
    """Has this process, and those it starts, make no file or folder that others may write to, however loose its umask."""
    os.umask(os.umask(OTHERS_WRITE) | OTHERS_WRITE)


def is_there(path: str | Path) -> bool:
    """Whether there is a file or folder at `path`; False where none can be, such as under a name too long."""
    try:
        return Path(path).exists()
    except OSError:
        return False


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes `content` to `path`, whole or not at all; text as UTF-8."""
    with whole_file(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def whole_file(path: Path, *, many_writers: bool = False) -> Generator[Path]:
    """Gives the name of a file to write, which becomes `path` when the block ends; a block that fails leaves nothing.

    It is on disk then: a power cut leaves the old content or the new one. What a killed process left is overwritten by the
    next, unless there are `many_writers` at once of the same path: then each has a name of its own, and the last to end
    wins.
    """
    with _temporary(path, of_its_own=many_writers) as unfinished:
        yield unfinished
        _sync(unfinished)
        unfinished.replace(path)
        _sync(path.parent)


@contextlib.contextmanager
def stored_in(folder: Path, name: str, content: bytes) -> Generator[Path]:
    """Gives a new hidden file in `folder`, which is made if missing, with `content` on disk; it is gone afterwards.

    To be renamed or linked to a path that ends in `name` on the same disk, after which `sync_folder` makes that last.
    """
    make_lasting(folder)
    with _temporary(folder / name, of_its_own=True) as temporary:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary


def make_lasting(folder: Path, mode: int = 0o777) -> None:
    """Makes `folder`, with `mode` less the umask, and those above it that are missing, to last through a power cut."""
    missing = list(itertools.takewhile(lambda above: not above.exists(), (folder, *folder.parents)))
    folder.mkdir(mode, parents=True, exist_ok=True)
    for made in missing:
        sync_folder(made.parent)


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` last through a power cut."""
    _sync(folder)


@contextlib.contextmanager
def _temporary(path: Path, *, of_its_own: bool) -> Generator[Path]:
    """Gives a name beside `path`; what is there when the block ends is deleted."""
    unique = f".{uuid.uuid4().hex[:8]}" if of_its_own else ""
    temporary = path.with_name(f".{path.name}{unique}{TEMPORARY_SUFFIX}")
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _sync(path: Path) -> None:
    """Returns when the file's content, or the folder's names, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
