"""Whether a run's folder can be written, and is the same folder from everywhere: small files are left and looked for.

What is left is hidden and temporary by its name, so that a run sweeps what a killed process did not take away.
"""

import contextlib
import itertools
import shutil
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path

from adadecode.doctor.finding import Finding
from adadecode.errors import AdaDecodeError
from adadecode.files import TEMPORARY_SUFFIX
from adadecode.runs.storage import is_url, open_storage

LEAST_FREE = 1_000_000_000  # bytes; rows of a run are some kilobytes each, with their token ids
NOT_SHARED = "give an --out that every node sees under the same path, such as NFS, or a bucket (s3:// or gs://)"


@contextlib.contextmanager
def left_at(location: str) -> Generator[str]:
    """Leaves a file in the run folder at `location` while the context lasts, and gives its name.

    Folders that were made for it are gone afterwards too, unless something else lies in them by then. Raises
    RunFolderError where it cannot be written, or where files cannot be made at most once.
    """
    storage = open_storage(location)
    made = [] if is_url(location) else _missing(Path(location))
    name = new_name()
    try:
        storage.create(name, name.encode())
        yield name
    finally:
        with contextlib.suppress(AdaDecodeError):
            storage.delete(name)
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def new_name() -> str:
    """The name of a file that nobody else leaves."""
    return f".doctor-{uuid.uuid4().hex[:16]}{TEMPORARY_SUFFIX}"


def answer(location: str, left: str, name: str) -> str | None:
    """Why the file `left` at `location` cannot be answered from here with one called `name`; None when it was.

    Where it is not seen nothing is written: this is another folder.
    """
    try:
        storage = open_storage(location)
        storage.read(left)
        storage.create(name, name.encode())
    except FileNotFoundError:
        return f"the run folder {location} is not the driver's"
    except AdaDecodeError as error:
        return str(error)
    return None


def is_answered(location: str, name: str) -> bool:
    """Whether the file `name` is at `location` as seen from here; takes it away."""
    storage = open_storage(location)
    try:
        content = storage.read(name)
    except FileNotFoundError:
        return False
    storage.delete(name)
    return content == name.encode()


def folder(location: str) -> Iterator[Finding]:
    """The run folder at `location` can be written from this process, and its disk has room."""
    with left_at(location):
        pass
    free = None if is_url(location) else shutil.disk_usage(_there(Path(location))).free
    if free is not None and free < LEAST_FREE:
        what = f"{location} can be written, and its disk has {free / 1e6:.0f} MB left"
        yield Finding.warning("run folder", what, "make room, or give another --out")
    else:
        yield Finding.ok("run folder", f"{location} can be written")


def _missing(folder: Path) -> list[Path]:
    """`folder` and those above it that are not there, the innermost first."""
    return list(itertools.takewhile(lambda above: not above.exists(), (folder, *folder.parents)))


def _there(folder: Path) -> Path:
    """`folder`, or the first above it that is there."""
    return next(above for above in (folder, *folder.parents) if above.exists())
