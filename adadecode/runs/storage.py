"""Where a run's files lie: a folder of this machine or of a network disk, or a prefix of an object store."""

from pathlib import Path
from typing import Protocol

from adadecode.errors import UsageError
from adadecode.files import check_location
from adadecode.printable import has_password, without_password
from adadecode.runs.bucket import EXTRAS, ObjectStorage
from adadecode.runs.disk import LocalStorage


class Storage(Protocol):
    """Files by relative names with `/`.

    What cannot be read, written or listed raises RunFolderError with one line, at once or, where another try may do, after
    a few (`patience.py`).
    """

    location: str
    num_parallel: int  # requests worth making at once

    def read(self, name: str) -> bytes:
        """The whole content; raises FileNotFoundError when there is none."""
        ...

    def replace(self, name: str, content: bytes) -> None:
        """Writes `name`, whole or not at all; on disk when this returns."""
        ...

    def create(self, name: str, content: bytes) -> bool:
        """Writes `name` as `replace` does unless it exists; returns whether it holds `content` now.

        The first of several creators wins, and one whose answer was lost finds its own content.
        """
        ...

    def list(self, folder: str) -> list[str]:
        """The names of all files below `folder`, at any depth, sorted, temporary files too; none where it is not there."""
        ...

    def delete(self, name: str) -> None:
        """Deletes `name`, if it is there."""
        ...


def open_storage(location: str | Path) -> Storage:
    """The storage at a path, an `s3://` or a `gs://` URL; raises UsageError for others and for missing packages."""
    text = str(location)
    if not is_url(text):
        check_location(text)
        return LocalStorage(Path(text))
    check_url(text)
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


def check_url(url: str) -> None:
    """Raises UsageError where `url` holds a user name or a password: a run's location is stored and shown."""
    if has_password(url):
        raise UsageError(
            f"{without_password(url)!r}: give no user name or password in it; a store's keys come from the environment or "
            "the cloud's own files"
        )


def join(location: str | Path, name: str) -> str:
    """`name` below `location`."""
    return f"{str(location).rstrip('/')}/{name}" if is_url(str(location)) else str(Path(location) / name)


def absolute(location: str | Path) -> str:
    """`location` for a process in another folder: a URL as it is, a path made absolute; raises UsageError for neither.

    And for a URL with a password.
    """
    if is_url(str(location)):
        check_url(str(location))
        return str(location)
    check_location(str(location))
    return str(Path(location).resolve())
